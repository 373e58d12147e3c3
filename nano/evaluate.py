"""
Held-out accuracy of nano for each type of question, with the controls that show whether it needs the video at all.
"""

import json
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoProcessor

from .. import load_model, model_path
from ..eval import PLAIN, LocalModel, Variant, load_benchmark, load_prompts
from ..eval import evaluate as run_benchmark
from ..files import read_lines, replace_file, to_lines
from ..hub_cards.nano_card import MAIN, NO_VIDEO, SHUFFLED, write_card
from . import questions, world
from .data import render

WAYS = {
    MAIN: PLAIN,
    NO_VIDEO: Variant("no_video", control="no_video"),
    SHUFFLED: Variant("shuffled", control="shuffled"),
}


def evaluate(model_name: str, clips: int, seed: int) -> None:
    """
    Asks one question of each type about each of `clips` held-out clips, and writes `evaluation.json` and the card into
    the checkpoint's folder.
    """
    path = Path(model_path(model_name))
    model = LocalModel(load_model(path), AutoProcessor.from_pretrained(path))
    with TemporaryDirectory() as directory:
        rows_file = render(Path(directory), clips, seed)
        rows = one_of_each_type(read_lines(rows_file))
        replace_file(rows_file, to_lines(rows))
        benchmark = load_benchmark("nano", load_prompts())
        found = run_benchmark(benchmark, model, directory, Path(directory, "results"), list(WAYS.values()), seed=seed)
    results = {
        "clips": clips,
        "seed": seed,
        "questions": {kind: sum(row["type"] == kind for row in rows) for kind in (*world.TYPES, "caption")},
        "clips_with_two_moving_shapes": sum(
            len(questions.clip(seed, index)[0].acting(*world.MOTIONS)) > 1 for index in range(clips)
        ),
        "chance": {kind: 100 / choices for kind, choices in benchmark.choices.items()},
        "accuracy": {name: accuracy(found[way.name]["per_task"]) for name, way in WAYS.items()},
        "time": found[PLAIN.name]["time"],
    }
    replace_file(path / "evaluation.json", json.dumps(results, indent=2) + "\n")
    write_card(path, results, (world.ORDERED_TYPES, world.UNORDERED_TYPES))
    print(json.dumps(results, indent=2))


def one_of_each_type(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of each clip's questions of a type, which are in a random order: a clip counts once for each type."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        first.setdefault((row["video"], row["type"]), row)
    return list(first.values())


def accuracy(per_task: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Per cent of exact answers for each type, and "mean": over the types of question, captions apart."""
    percent = {kind: 100 * per_task[kind]["accuracy"] for kind in (*world.TYPES, "caption") if kind in per_task}
    return {**percent, "mean": fmean(percent[kind] for kind in world.TYPES if kind in percent)}
