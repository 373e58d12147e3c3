"""The card of a fine-tuned model or adapter: its base model, its data, how it was trained, and what was skipped."""

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

from . import TEMPLATES

LIBRARIES = (transformers, trl, peft, accelerate, datasets, torch)


def build_trained_model_card(
    trainer: Any, licenses: list[tuple[str, str | None]], hub_datasets: list[str], global_batch_size: int
) -> ModelCard:
    """
    Build the card of the model in `trainer` from the trainer's current state.

    Args:
        licenses: The name of each source of training data, and its license if it is known.
        hub_datasets: The ids of the sources that are datasets on the Hub.
        global_batch_size: Examples in an optimizer step, of all processes.
    """
    args, config = trainer.args, trainer.model.config
    base = config.name_or_path or "unknown"
    name = args.hub_model_id or Path(args.output_dir).name
    adapter = getattr(trainer.model, "active_peft_config", None)
    last_log = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    return ModelCard.from_template(
        card_data=ModelCardData(
            base_model=None if os.path.isdir(base) else base,
            library_name="transformers" if adapter is None else "peft",
            pipeline_tag="video-text-to-text",
            tags=["pllava", "lora", "trl", trainer._name.lower()] if adapter else ["pllava", "trl"],
            datasets=hub_datasets or None,
        ),
        template_path=str(TEMPLATES / "trained_model.md"),
        name=name.split("/")[-1],
        repository=name,
        base=base,
        adapter=adapter,
        args=args,
        global_batch_size=global_batch_size,
        num_frames=config.num_frames,
        pooling_shape=" x ".join(map(str, config.pooling_shape)),
        sampling=trainer.loader.collator.sampling,
        steps=trainer.state.global_step,
        loss=last_log.get("loss"),
        data=[(source, last_log.get(f"loss/{source}"), license) for source, license in licenses],
        skipped=trainer.loader.skipped.state_dict(),
        versions={library.__name__: library.__version__ for library in LIBRARIES},
    )
