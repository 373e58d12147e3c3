"""Training PLLaVA on video instructions with TRL, PEFT and accelerate."""

from .collator import VideoChatCollator
from .trainer import build_trainer

__all__ = ["VideoChatCollator", "build_trainer"]
