"""Render clips of nano's world, with their questions."""

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import drawing, questions
from .scenes import MOST_SHAPES


def render(
    directory: Path,
    clips: int,
    seed: int,
    most_shapes: int = MOST_SHAPES,
    listings: bool = False,
    one_of_each: bool = False,
) -> Path:
    """
    Write `clips` videos with all questions about them. The same seed gives the same files.

    Args:
        most_shapes: Of a clip.
        listings: Write the exercise for training as well (see `questions.video_listing`).
        one_of_each: Write one question of each type about a clip only, see [`one_of_each_type`].

    Returns:
        The path of `questions.jsonl`: rows `{"video", "type", "question", "answer"}`, the video relative to
        `directory`.
    """
    (directory / "clips").mkdir(parents=True, exist_ok=True)
    file = directory / "questions.jsonl"
    render_clip = partial(_render_clip, directory, seed, most_shapes, listings, one_of_each)
    partial_file = file.with_suffix(".jsonl.partial")
    with ProcessPoolExecutor() as pool, partial_file.open("w", encoding="utf-8") as lines:
        results = pool.map(render_clip, range(clips), chunksize=32)
        for rows in tqdm(results, total=clips, desc=f"Rendering to {directory}", unit="clip"):
            lines.writelines(json.dumps(row) + "\n" for row in rows)
    partial_file.replace(file)
    return file


def _render_clip(
    directory: Path, seed: int, most_shapes: int, listings: bool, one_of_each: bool, index: int
) -> list[dict[str, str]]:
    scene, rows = questions.clip(seed, index, most_shapes)
    name = f"clips/{index:05d}.mp4"
    drawing.write_clip(directory / name, drawing.draw(scene))
    rows += [questions.video_listing(scene)] if listings else []
    rows = [{"video": name, **row} for row in rows]
    return one_of_each_type(rows) if one_of_each else rows


def one_of_each_type(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the first question of each type about a clip (their order is random), so that clips count equally."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        first.setdefault((row["video"], row["type"]), row)
    return list(first.values())


def read_questions(directory: Path) -> list[dict[str, str]]:
    """Read the rows of `questions.jsonl`, with the paths of the videos joined to `directory`."""
    lines = (directory / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**row, "video": str(directory / row["video"])} for row in map(json.loads, lines)]
