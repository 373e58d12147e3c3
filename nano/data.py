"""Renders the world to files, and reads such a folder as conversations for training."""

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

# Questions of one conversation: the video is the costly part, and each turn behind it is learned from as well.
TURNS = 8


def render(directory: Path, clips: int, seed: int, exercises: bool = False) -> Path:
    """
    Writes `clips` videos and everything that can be asked about them. The same seed gives the same folder.

    Args:
        exercises: Writes what is for learning only as well (see `questions.exercises`).

    Returns:
        The path of `questions.jsonl`: rows `{"video", "type", "question", "answer"}`, the video relative to
        `directory`.
    """
    (directory / "clips").mkdir(parents=True, exist_ok=True)
    questions = directory / "questions.jsonl"
    partial_file = questions.with_suffix(".jsonl.partial")
    with ProcessPoolExecutor() as pool, partial_file.open("w", encoding="utf-8") as lines:
        jobs = pool.map(partial(_render_clip, directory, seed, exercises), range(clips), chunksize=32)
        for rows in tqdm(jobs, total=clips, desc=f"Rendering to {directory}", unit="clip"):
            lines.writelines(json.dumps(row) + "\n" for row in rows)
    partial_file.replace(questions)
    return questions


def _render_clip(directory: Path, seed: int, exercises: bool, index: int) -> list[dict[str, str]]:
    scene, asked = questions.clip(seed, index)
    name = f"clips/{index:05d}.mp4"
    drawing.write_clip(directory / name, drawing.draw(scene))
    asked += questions.exercises(scene) if exercises else []
    return [{"video": name, **question} for question in asked]


def read_questions(directory: Path) -> list[dict[str, str]]:
    """The rows of `questions.jsonl`, `video` made a path that can be opened."""
    lines = (directory / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**row, "video": str(directory / row["video"])} for row in map(json.loads, lines)]


def video_conversations(directory: Path, seed: int) -> IterableDataset:
    """Endless conversations about the clips in `directory`, each with a new choice and order of questions."""
    from datasets import IterableDataset

    # The folder is passed, not a list of its clips: `datasets` takes lists for shards and would stay with the first
    return IterableDataset.from_generator(_video_rows, gen_kwargs={"directory": directory, "seed": seed})


def _video_rows(directory: Path, seed: int) -> Iterator[dict[str, Any]]:
    clips = [list(rows) for _, rows in groupby(read_questions(directory), key=lambda row: row["video"])]
    rng = random.Random(seed)
    order = list(range(len(clips)))
    while True:
        rng.shuffle(order)
        for index in order:
            turns = _choose_turns(clips[index], rng)
            yield {"messages": conversation("video", turns), "videos": [turns[0]["video"]]}


def image_conversations(seed: int) -> IterableDataset:
    """
    Endless conversations about still images, single frames of scenes, drawn when they are wanted.

    Every sixth is about a video that is not shown. Its answers can only be guessed, but a language model comes to
    PLLaVA knowing its language, and so it learns the words for what happens in videos; stage 2 trains no embeddings.
    """
    from datasets import IterableDataset

    return IterableDataset.from_generator(_image_rows, gen_kwargs={"seed": seed})


def _image_rows(seed: int) -> Iterator[dict[str, Any]]:
    for index in count():
        rng = random.Random(f"image/{seed}/{index}")
        scene, frame = world.sample_scene(rng), rng.randrange(world.NUM_FRAMES)
        if index % 6 == 0:
            turns = _choose_turns(questions.video_questions(scene, rng) + questions.exercises(scene), rng)
            yield {"messages": conversation(None, turns), "images": []}
        else:
            turns = _choose_turns(questions.image_questions(scene, frame, rng), rng)
            image = Image.fromarray(drawing.draw_frame(scene, frame))
            yield {"messages": conversation("image", turns), "images": [image]}


def _choose_turns(asked: list[dict[str, str]], rng: random.Random) -> list[dict[str, str]]:
    """Some questions in a random order; behind them or alone the caption or an exercise, which give answers away."""
    caption = next(row for row in asked if row["type"] == "caption")
    exercises = [row for row in asked if row["type"] in world.EXERCISE_TYPES]
    questions = [row for row in asked if row["type"] not in ("caption", *world.EXERCISE_TYPES)]
    turns = rng.sample(questions, min(len(questions), TURNS))
    last = rng.choice(exercises) if exercises and rng.random() < 0.45 else caption
    return [last] if rng.random() < 0.15 else turns + [last] * (rng.random() < 0.85)


def conversation(kind: str | None, turns: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Questions and answers as messages, the video or image (`kind`), if any, in the first."""
    messages = []
    media = [{"type": kind}] if kind else []
    for turn in turns:
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": turn["question"]}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn["answer"]}]})
        media = []
    return messages
