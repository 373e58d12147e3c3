"""What nano's card has in addition to that of other models. All figures are from files that its scripts write."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from ...files import read_object
from ...result_files.formatting import markdown_table
from .rendering import render

TRAINING_FILE, EVALUATION_FILE = "training.json", "evaluation.json"
# Keys of "accuracy" in evaluation.json
MAIN, NO_VIDEO, SHUFFLED = "video", "no video", "frames shuffled"
SUMMARY = (
    "A small video model of a synthetic world of moving shapes, [PLLaVA](https://arxiv.org/abs/2404.16994): with it, "
    "all parts of the project can be tried in seconds, on any computer."
)


def nano_options(checkpoint: Path) -> dict[str, Any]:
    """Return the summary, the metadata and the section of nano's card; nothing for other models."""
    files = checkpoint / TRAINING_FILE, checkpoint / EVALUATION_FILE
    if not all(file.exists() for file in files):
        return {}
    training, results = (read_object(file) for file in files)
    weights = checkpoint / SAFE_WEIGHTS_NAME
    section = render(
        "nano.md",
        parameters=f"{_count_parameters(weights):,}",
        megabytes=f"{weights.stat().st_size / 1e6:.1f}",
        training=training,
        results=results,
        table=_table(results),
    )
    metadata = {"model_name": "PLLaVA nano", "license": "apache-2.0", "eval_results": _eval_results(results)}
    return {"summary": SUMMARY, "metadata": metadata, "sections": [section]}


def _eval_results(results: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="video-text-to-text",
            dataset_type="synthetic",
            dataset_name="The world of pllava.nano, held-out clips",
            metric_type="accuracy",
            metric_name=f"exact answers, {kind} (%)",
            metric_value=value,
        )
        for kind, value in results["accuracy"][MAIN].items()
    ]


def _table(results: dict[str, Any]) -> str:
    columns = [results["accuracy"][name] for name in (MAIN, NO_VIDEO, SHUFFLED)]
    heads, rows = ["question", "asked", "accuracy (%)", "no video", "shuffled", "chance"], []
    types = [kind for group in results["types"] for kind in group]
    for group in [*results["types"], ["mean", "caption"]]:
        rows += [[""] * len(heads)] if rows else []
        for kind in (kind for kind in group if kind in columns[0]):
            asked = results["questions"].get(kind, sum(results["questions"][name] for name in types))
            chance = f"{results['chance'][kind]:.1f}" if kind in results["chance"] else ""
            rows.append([kind, str(asked), *(f"{column[kind]:.1f}" for column in columns), chance])
    return markdown_table(heads, rows)


def _count_parameters(weights: Path) -> int:
    with safe_open(weights, "pt") as tensors:
        return sum(tensors.get_tensor(key).numel() for key in tensors.keys())
