"""nano's model card. All figures come from the files that training and evaluation write."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from . import TEMPLATES

# Keys of "accuracy" in evaluation.json
MAIN, NO_VIDEO, SHUFFLED = "video", "no video", "frames shuffled"


def write_nano_card(checkpoint: Path, results: dict[str, Any], sections: tuple[tuple[str, ...], ...]) -> None:
    """
    Write README.md into the folder `checkpoint`, from its other files and the `results` of the evaluation.

    Args:
        sections: The question types, grouped as in the table.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    training = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
    weights = checkpoint / "model.safetensors"
    card = ModelCard.from_template(
        card_data=_metadata(results),
        template_path=str(TEMPLATES / "nano.md"),
        parameters=f"{_count_parameters(weights):,}",
        megabytes=f"{weights.stat().st_size / 1e6:.1f}",
        num_frames=config["num_frames"],
        pooling_shape=" x ".join(map(str, config["pooling_shape"])),
        training=training,
        results=results,
        table=_table(results, sections),
    )
    card.save(checkpoint / "README.md")


def _metadata(results: dict[str, Any]) -> ModelCardData:
    scores = [
        EvalResult(
            task_type="video-text-to-text",
            dataset_type="synthetic",
            dataset_name="The world of pllava.nano, held-out clips",
            metric_type="accuracy",
            metric_name=f"exact answers, {kind} (%)",
            metric_value=round(value, 1),
        )
        for kind, value in results["accuracy"][MAIN].items()
    ]
    return ModelCardData(
        model_name="PLLaVA nano",
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        license="apache-2.0",
        language="en",
        tags=["pllava", "custom_code"],
        eval_results=scores,
    )


def _table(results: dict[str, Any], sections: tuple[tuple[str, ...], ...]) -> str:
    columns = [results["accuracy"][name] for name in (MAIN, NO_VIDEO, SHUFFLED)]
    lines = ["| question | asked | accuracy (%) | no video | shuffled | chance |", "|---|---:|---:|---:|---:|---:|"]
    types = [kind for section in sections for kind in section]
    sections = (*sections, ("mean", "caption"))
    for section in sections:
        for kind in (kind for kind in section if kind in columns[0]):
            asked = results["questions"].get(kind, sum(results["questions"][name] for name in types))
            chance = f"{results['chance'][kind]:.1f}" if kind in results["chance"] else ""
            values = " | ".join(f"{column[kind]:.1f}" for column in columns)
            lines.append(f"| {kind} | {asked} | {values} | {chance} |")
        lines += ["| | | | | | |"] * (section is not sections[-1])
    return "\n".join(lines)


def _count_parameters(weights: Path) -> int:
    with safe_open(weights, "pt") as tensors:
        return sum(tensors.get_tensor(key).numel() for key in tensors.keys())
