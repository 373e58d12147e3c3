"""The card of a fine-tuned adapter: what it was trained from, on what, how, and what was left out."""

import os
from pathlib import Path
from typing import Any

import accelerate
import datasets
import peft
import torch
import transformers
import trl
from huggingface_hub import ModelCard, ModelCardData

from ..data.sources import Source

TEMPLATE = Path(__file__).with_name("trained_model_card.md")
LIBRARIES = (transformers, trl, peft, accelerate, datasets, torch)


def build_card(trainer: Any, sources: list[Source], global_batch: int) -> ModelCard:
    """The card of what `trainer` trains; its figures are those of this moment.

    Args:
        global_batch: Examples in an optimiser step, of all processes.
    """
    args, config = trainer.args, trainer.model.config
    base = config.name_or_path or "unknown"
    adapter = getattr(trainer.model, "active_peft_config", None)
    last = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    return ModelCard.from_template(
        card_data=ModelCardData(
            base_model=None if os.path.isdir(base) else base,
            library_name="transformers" if adapter is None else "peft",
            pipeline_tag="video-text-to-text",
            tags=["pllava", "lora", "trl", trainer._name.lower()] if adapter else ["pllava", "trl"],
            datasets=[source.path for source in sources if not source.files] or None,
        ),
        template_path=str(TEMPLATE),
        name=(args.hub_model_id or Path(args.output_dir).name).split("/")[-1],
        repository=args.hub_model_id or Path(args.output_dir).name,
        base=base,
        adapter=adapter,
        args=args,
        global_batch=global_batch,
        num_frames=config.num_frames,
        pooling_shape=" x ".join(map(str, config.pooling_shape)),
        sampling=trainer.loader.collator.sampling,
        steps=trainer.state.global_step,
        loss=last.get("loss"),
        losses={source: last.get(f"loss/{source.title}") for source in sources},
        skipped=trainer.loader.skipped.state_dict(),
        versions={library.__name__: library.__version__ for library in LIBRARIES},
    )
