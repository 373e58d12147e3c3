"""Measure nano's accuracy on held-out clips, with controls that show whether it needs the video."""

import json
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoProcessor

from .. import load_model, model_path
from ..eval import PLAIN, LocalModel, Variant, load_benchmark, load_prompts
from ..eval import evaluate as run_benchmark
from ..files import read_lines, replace_file
from ..hub_cards.cards.model_card import write_model_card
from ..hub_cards.cards.nano_card import EVALUATION_FILE, MAIN, NO_VIDEO, SHUFFLED
from .world.questions import ORDERED_TYPES, TYPES, UNORDERED_TYPES, clip
from .world.rendering import render
from .world.scenes import MOTIONS

VARIANTS = {
    MAIN: PLAIN,
    NO_VIDEO: Variant("no_video", control="no_video"),
    SHUFFLED: Variant("shuffled", control="shuffled"),
}


def evaluate(model_name: str, clips: int, seed: int) -> None:
    """
    Ask one question of each type about each of `clips` held-out clips, and write `evaluation.json` and the card into
    the checkpoint's folder.
    """
    path = Path(model_path(model_name))
    model = LocalModel(load_model(path), AutoProcessor.from_pretrained(path))
    with TemporaryDirectory() as directory:
        rows = read_lines(render(Path(directory), clips, seed, one_of_each=True))
        benchmark, variants = load_benchmark("nano", load_prompts()), list(VARIANTS.values())
        metrics = run_benchmark(benchmark, model, directory, Path(directory, "results"), variants, seed=seed)
    moving = [len(clip(seed, index)[0].acting(*MOTIONS)) for index in range(clips)]
    results = {
        "clips": clips,
        "seed": seed,
        "types": [ORDERED_TYPES, UNORDERED_TYPES],  # groups of the card's table
        "questions": {kind: sum(row["type"] == kind for row in rows) for kind in (*TYPES, "caption")},
        "clips_with_two_moving_shapes": sum(count > 1 for count in moving),
        "chance": {kind: 100 / choices for kind, choices in benchmark.choices.items()},
        "accuracy": {name: accuracy(metrics[variant.name]["per_task"]) for name, variant in VARIANTS.items()},
        "time": metrics[PLAIN.name]["time"],
    }
    replace_file(path / EVALUATION_FILE, json.dumps(results, indent=2) + "\n")
    write_model_card(path, "path/to/nano")
    print(json.dumps(results, indent=2))


def accuracy(per_task: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the percentage of exact answers for each type, and the "mean" of all types but captions."""
    percent = {kind: 100 * per_task[kind]["accuracy"] for kind in (*TYPES, "caption") if kind in per_task}
    return {**percent, "mean": fmean(percent[kind] for kind in TYPES if kind in percent)}
