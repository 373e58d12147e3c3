"""Training PLLaVA on video instructions with TRL, PEFT and accelerate."""

from .collator import PreferenceCollator, VideoChatCollator
from .saving import PickleFreeMixin
from .trainer import build_trainer

__all__ = ["PickleFreeMixin", "PreferenceCollator", "VideoChatCollator", "build_trainer"]
