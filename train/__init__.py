"""Training PLLaVA on video instructions with TRL, PEFT and accelerate."""

from .collator import VideoChatCollator
from .trainer import build_trainer, lora_config

__all__ = ["VideoChatCollator", "build_trainer", "lora_config"]
