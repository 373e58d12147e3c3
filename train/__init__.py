"""Training PLLaVA on video instructions with TRL, PEFT and accelerate."""

from ..extras import needs_extra

with needs_extra("train"):
    from .loader.collator import PreferenceCollator, VideoChatCollator
    from .saving import PickleFreeMixin
    from .trainer import build_trainer

__all__ = ["PickleFreeMixin", "PreferenceCollator", "VideoChatCollator", "build_trainer"]
