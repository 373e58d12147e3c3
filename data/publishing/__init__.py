"""Publishing datasets on the Hub: training data with their clips."""

from .training_data import Split, publish

__all__ = ["Split", "publish"]
