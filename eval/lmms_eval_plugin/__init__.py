"""
PLLaVA as the model `pllava` of lmms-eval, which finds it by the entry point of this package:

    python -m lmms_eval --model pllava --model_args pretrained=nano --tasks mvbench --batch_size 8

Its package is `pllava_lmms_eval`, beside `pllava`: lmms-eval imports it in every run, whatever the model, and only a
run of this one is to load `pllava`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """What the entry point gives to lmms-eval."""
    # Not at the top: it is while lmms-eval imports its models that it asks for this
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("pllava", chat_class_path=f"{__name__}.model.LmmsEvalPllava")
