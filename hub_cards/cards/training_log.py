"""What a training run says of itself for the card: training_summary.json, and the loss curve as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...environment import hardware, library_versions
from ...files import read_object, replace_file

SUMMARY_FILE, LOSS_FIGURE = "training_summary.json", "loss.png"
LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "torch")
# Arguments of transformers and TRL that the card shows, where the trainer has them, and their names there
ARGUMENTS = {
    "learning_rate": "learning rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "optim": "optimizer",
    "adam_beta1": "AdamW, beta 1",
    "adam_beta2": "AdamW, beta 2",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradient clipping",
    "max_length": "longest example, in tokens",
    "seed": "seed",
}


@dataclass
class TrainingSummary:
    """
    A training run. All figures are those of its trainer.

    Args:
        trainer: Its class.
        base: The model that it started from: the fields of a [`~pllava.origins.ModelSource`].
        frames: `num_frames`, `pooling` in the notation of `parse_pooling`, the config's `image_pooling_shape`, and how
            frames were drawn (`sampling`) if it is known.
        batch_size: Examples in an optimizer step, of all processes.
        arguments: The values of `ARGUMENTS`.
        lora: Rank, alpha, dropout and targets, if an adapter was trained.
        data: `name` of each source, and its `repo_id` and `license` if they are known.
        skipped: The counts of examples that were read and skipped.
        losses: Step and training loss, as logged; `eval_losses` by the name of the dataset.
        source_losses: The last loss logged of each source.
        seconds: Of the last call of `train`.
    """

    trainer: str
    base: dict[str, Any]
    frames: dict[str, Any]
    steps: int
    max_steps: int
    epoch: float | None
    batch_size: int
    arguments: dict[str, Any]
    lora: dict[str, Any] | None
    precision: str
    processes: int
    hardware: str
    seconds: float | None
    data: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, int] | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    eval_losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    source_losses: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, trainer: Any, base: dict[str, Any], batch_size: int, sampling: str | None = None, **facts: Any
    ) -> TrainingSummary:
        """Summarise a trainer of transformers or TRL in its current state. `facts` are `data` and `skipped`."""
        args, state, model = trainer.args, trainer.state, trainer.accelerator.unwrap_model(trainer.model)
        config, adapter = model.config, getattr(model, "active_peft_config", None)
        log, gpus = state.log_history, torch.cuda.device_count()
        evaluations: dict[str, list[tuple[int, float]]] = {}
        for entry in log:
            for key in entry:
                if key.startswith("eval_") and key.endswith("loss"):
                    name = key.removeprefix("eval_").removesuffix("loss").strip("_") or "evaluation"
                    evaluations.setdefault(name, []).append((entry["step"], entry[key]))
        last = next((entry for entry in reversed(log) if "loss" in entry), {})
        return cls(
            trainer=type(trainer).__name__,
            base=base,
            frames={
                "num_frames": config.num_frames,
                "sampling": sampling,
                "pooling": str(config.video_pooling),
                "image_pooling_shape": config.image_pooling_shape,
            },
            steps=state.global_step,
            max_steps=state.max_steps,
            epoch=state.epoch,
            batch_size=batch_size,
            arguments={
                title: getattr(value, "value", value)
                for name, title in ARGUMENTS.items()
                if (value := getattr(args, name, None)) is not None
            },
            lora=adapter and _lora(adapter),
            precision="bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
            processes=args.world_size,
            hardware=f"{gpus} x {hardware()}" if gpus else hardware(),
            seconds=next((entry["train_runtime"] for entry in reversed(log) if "train_runtime" in entry), None),
            losses=[(entry["step"], entry["loss"]) for entry in log if "loss" in entry],
            eval_losses=evaluations,
            source_losses={key.removeprefix("loss/"): last[key] for key in last if key.startswith("loss/")},
            versions=library_versions(LIBRARIES),
            **facts,
        )

    @classmethod
    def read(cls, directory: Path) -> TrainingSummary | None:
        """Read what [`save`] wrote; None if the directory has no summary. Another file is a `ValueError`."""
        file = directory / SUMMARY_FILE
        try:
            return cls(**read_object(file)) if file.exists() else None
        except TypeError as error:
            raise ValueError(f"{file} is not the summary of a training ({error}): remove it") from error

    def save(self, directory: Path) -> None:
        replace_file(directory / SUMMARY_FILE, json.dumps(asdict(self), indent=2) + "\n")
        if len(self.losses) > 1:
            plot_losses(self.losses, self.eval_losses, directory / LOSS_FIGURE)


def _lora(config: Any) -> dict[str, Any]:
    targets = config.target_modules
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "targets": targets if isinstance(targets, str) else sorted(targets or ()),
        "trained in full": sorted(config.modules_to_save or ()),
    }


def plot_losses(
    losses: Sequence[tuple[int, float]], eval_losses: dict[str, list[tuple[int, float]]], file: Path
) -> None:
    """Draw the losses by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    axes.plot(*zip(*losses, strict=True), color="#0066b3", lw=1.2, label="training")
    for (name, values), style in zip(eval_losses.items(), ("o-", "s-", "^-", "D-") * len(eval_losses), strict=False):
        axes.plot(*zip(*values, strict=True), style, color="#c4540a", ms=4, lw=1, label=name)
    axes.grid(color="#d0d7de", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if eval_losses:
        axes.legend(frameon=False)
    figure.savefig(file, dpi=150, facecolor="white", metadata={"Software": None})
