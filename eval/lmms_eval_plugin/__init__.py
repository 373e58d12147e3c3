"""
The model `pllava` for lmms-eval, which finds this plugin by its entry point:

    python -m lmms_eval --model pllava --model_args pretrained=nano --tasks mvbench --batch_size 8

It is a package of its own, `pllava_lmms_eval`, because lmms-eval imports it in every run, whatever the model, and
should import `pllava` only when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Return the entry point's manifest."""
    # Not at the top of the file: lmms-eval calls this while it is importing its own modules
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("pllava", chat_class_path=f"{__name__}.model.LmmsEvalPllava")
