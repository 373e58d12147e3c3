"""Render clips of nano's world with their questions, and make conversations of them for training."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from . import drawing, questions, world

if TYPE_CHECKING:
    from datasets import IterableDataset

# Questions in a conversation: decoding the video is the costly part, and training learns from every turn
TURNS = 8


def render(directory: Path, clips: int, seed: int, exercises: bool = False) -> Path:
    """
    Write `clips` videos with all questions about them. The same seed gives the same files.

    Args:
        exercises: Write the questions for training as well (see `questions.exercises`).

    Returns:
        The path of `questions.jsonl`: rows `{"video", "type", "question", "answer"}`, the video relative to
        `directory`.
    """
    (directory / "clips").mkdir(parents=True, exist_ok=True)
    file = directory / "questions.jsonl"
    partial_file = file.with_suffix(".jsonl.partial")
    with ProcessPoolExecutor() as pool, partial_file.open("w", encoding="utf-8") as lines:
        results = pool.map(partial(_render_clip, directory, seed, exercises), range(clips), chunksize=32)
        for rows in tqdm(results, total=clips, desc=f"Rendering to {directory}", unit="clip"):
            lines.writelines(json.dumps(row) + "\n" for row in rows)
    partial_file.replace(file)
    return file


def _render_clip(directory: Path, seed: int, exercises: bool, index: int) -> list[dict[str, str]]:
    scene, rows = questions.clip(seed, index)
    name = f"clips/{index:05d}.mp4"
    drawing.write_clip(directory / name, drawing.draw(scene))
    rows += questions.exercises(scene) if exercises else []
    return [{"video": name, **row} for row in rows]


def read_questions(directory: Path) -> list[dict[str, str]]:
    """Read the rows of `questions.jsonl`, with the paths of the videos joined to `directory`."""
    lines = (directory / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**row, "video": str(directory / row["video"])} for row in map(json.loads, lines)]


def video_conversations(directory: Path, seed: int) -> IterableDataset:
    """Return an endless dataset of conversations about the clips in `directory`, with random questions."""
    from datasets import IterableDataset

    # Not a list of the clips: `datasets` takes lists for shards, and would read one clip forever before the next
    return IterableDataset.from_generator(_video_rows, gen_kwargs={"directory": directory, "seed": seed})


def _video_rows(directory: Path, seed: int) -> Iterator[dict[str, Any]]:
    clips = [list(rows) for _, rows in groupby(read_questions(directory), key=lambda row: row["video"])]
    rng = random.Random(seed)
    order = list(range(len(clips)))
    while True:
        rng.shuffle(order)
        for index in order:
            turns = _choose_turns(clips[index], rng)
            yield {"messages": _conversation("video", turns), "videos": [turns[0]["video"]]}


def image_conversations(seed: int) -> IterableDataset:
    """
    Return an endless dataset of conversations about single frames of scenes.

    Every sixth conversation is about a video that is not shown. Its answers can only be guessed, but they teach the
    words for events in videos: the embeddings are frozen in stage 2. (PLLaVA starts from a trained language model.)
    """
    from datasets import IterableDataset

    return IterableDataset.from_generator(_image_rows, gen_kwargs={"seed": seed})


def _image_rows(seed: int) -> Iterator[dict[str, Any]]:
    for index in count():
        rng = random.Random(f"image/{seed}/{index}")
        scene, frame = world.sample_scene(rng), rng.randrange(world.NUM_FRAMES)
        if index % 6 == 0:
            turns = _choose_turns(questions.video_questions(scene, rng) + questions.exercises(scene), rng)
            yield {"messages": _conversation(None, turns), "images": []}
        else:
            turns = _choose_turns(questions.image_questions(scene, frame, rng), rng)
            image = Image.fromarray(drawing.draw_frame(scene, frame))
            yield {"messages": _conversation("image", turns), "images": [image]}


def _choose_turns(rows: list[dict[str, str]], rng: random.Random) -> list[dict[str, str]]:
    """Choose random questions, the caption or an exercise, or both; these come last, since they reveal answers."""
    caption = next(row for row in rows if row["type"] == "caption")
    exercises = [row for row in rows if row["type"] in questions.EXERCISE_TYPES]
    others = [row for row in rows if row["type"] not in ("caption", *questions.EXERCISE_TYPES)]
    turns = rng.sample(others, min(len(others), TURNS))
    last = rng.choice(exercises) if exercises and rng.random() < 0.45 else caption
    return [last] if rng.random() < 0.15 else turns + [last] * (rng.random() < 0.85)


def _conversation(kind: str | None, turns: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the turns as messages, with a placeholder of the video or image (`kind`) in the first."""
    messages = []
    media = [{"type": kind}] if kind else []
    for turn in turns:
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": turn["question"]}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn["answer"]}]})
        media = []
    return messages
