"""Publishing datasets on the Hub: training data with their clips, and captions."""

from .captions import publish_captions
from .training_data import Split, publish

__all__ = ["Split", "publish", "publish_captions"]
