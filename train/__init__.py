"""Training PLLaVA on conversations about videos with TRL, PEFT and accelerate."""

import warnings

from ..extras import needs_extra

# TRL and PEFT use the name that transformers 5.24 replaces by `activation_checkpointing`; 5.19 knows no other
warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)

with needs_extra("train"):
    from .loader.collator import PreferenceCollator, VideoChatCollator
    from .saving import PickleFreeMixin
    from .trainer import build_trainer

__all__ = ["PickleFreeMixin", "PreferenceCollator", "VideoChatCollator", "build_trainer"]
