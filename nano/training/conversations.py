"""Conversations about clips and frames of nano's world, for training."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..world import drawing, questions, scenes
from ..world.rendering import read_questions
from .recipe import ImageStage, VideoStage

if TYPE_CHECKING:
    from datasets import IterableDataset

# The kinds of conversations, of which a recipe has a mixture: a listing of all shapes, several questions, the caption,
# or questions about a video that is not shown
IMAGE_KINDS, VIDEO_KINDS = ("listing", "questions", "caption", "unseen"), ("listing", "questions", "caption")
TURNS = 4  # questions in a conversation: the video's tokens are most of its length, and each turn is trained on


def video_conversations(directory: Path, stage: VideoStage, seed: int) -> IterableDataset:
    """
    Return an endless dataset of conversations about the clips in `directory`.

    Args:
        stage: Says how many conversations of which kinds there are. Those of a batch are of one kind: they differ
            little in length, so that a batch has little padding. Its `clips` are the first in the directory.

    Raises:
        ValueError: if the stage has a kind that is not in `VIDEO_KINDS`.
    """
    from datasets import IterableDataset

    _check_kinds(stage, VIDEO_KINDS)
    options = {"directory": directory, "stage": stage, "seed": seed}
    # Not a list of the clips: `datasets` takes lists for shards, and would read one clip forever before the next
    return IterableDataset.from_generator(_video_rows, gen_kwargs=options)


def _video_rows(directory: Path, stage: VideoStage, seed: int) -> Iterator[dict[str, Any]]:
    clips = [list(rows) for _, rows in groupby(read_questions(directory), key=lambda row: row["video"])][: stage.clips]
    rng = random.Random(seed)
    shuffled, asked = _shuffle_forever(clips, rng), _ask_by_type(clips, stage.types, rng)
    for kind in _draw_kinds(stage, random.Random(seed)):
        turns = next(asked) if kind == "questions" else _choose_turns(kind, next(shuffled), rng)
        yield {"messages": _conversation("video", turns), "videos": [turns[0]["video"]]}


def _shuffle_forever(clips: list[list[dict[str, str]]], rng: random.Random) -> Iterator[list[dict[str, str]]]:
    while True:
        yield from rng.sample(clips, len(clips))


def _ask_by_type(
    clips: list[list[dict[str, str]]], types: dict[str, float], rng: random.Random
) -> Iterator[list[dict[str, str]]]:
    """Draw the type of the first question, then a clip that has one, then the other questions about this clip."""
    having = {name: [rows for rows in clips if any(row["type"] == name for row in rows)] for name in types}
    weights = {name: weight for name, weight in types.items() if having[name]}
    while True:
        (name,) = rng.choices(list(weights), weights.values())
        rows = rng.choice(having[name])
        first = rng.choice([row for row in rows if row["type"] == name])
        yield [first, *_choose_turns("questions", [row for row in rows if row is not first], rng)][:TURNS]


def image_conversations(stage: ImageStage, seed: int) -> IterableDataset:
    """
    Return an endless dataset of conversations about single frames of scenes; see [`video_conversations`].

    The conversations of the kind "unseen" are about a video that is not shown. Their answers can only be guessed, but
    they teach the words for events in videos: the embeddings are frozen in stage 2. (PLLaVA starts from a trained
    language model.)

    Raises:
        ValueError: if the stage has a kind that is not in `IMAGE_KINDS`.
    """
    from datasets import IterableDataset

    _check_kinds(stage, IMAGE_KINDS)
    return IterableDataset.from_generator(_image_rows, gen_kwargs={"stage": stage, "seed": seed})


def _image_rows(stage: ImageStage, seed: int) -> Iterator[dict[str, Any]]:
    for index, kind in enumerate(_draw_kinds(stage, random.Random(seed))):
        rng = random.Random(f"image/{seed}/{index}")
        scene, frame = scenes.sample_scene(rng, stage.most_shapes), rng.randrange(scenes.NUM_FRAMES)
        if kind == "unseen":
            rows = [*questions.video_questions(scene, rng), questions.video_listing(scene)]
            turns = _choose_turns(rng.choice(VIDEO_KINDS), rows, rng)
            yield {"messages": _conversation(None, turns), "images": []}
        else:
            rows = [*questions.image_questions(scene, frame, rng), questions.image_listing(scene, frame)]
            image = Image.fromarray(drawing.draw_frame(scene, frame))
            yield {"messages": _conversation("image", _choose_turns(kind, rows, rng)), "images": [image]}


def _check_kinds(stage: ImageStage, known: Sequence[str]) -> None:
    if unknown := stage.mix.keys() - set(known):
        raise ValueError(f"There are no conversations of the kinds {sorted(unknown)}; there are {', '.join(known)}")


def _draw_kinds(stage: ImageStage, rng: random.Random) -> Iterator[str]:
    """Draw the kind of each batch by the weights at its step, and yield it for each conversation."""
    for step in count():
        progress = min(1, step / stage.steps)
        weights = [start + progress * (end - start) for start, end in stage.mix.values()]
        yield from rng.choices(list(stage.mix), weights) * stage.batch_size


def _choose_turns(kind: str, rows: list[dict[str, str]], rng: random.Random) -> list[dict[str, str]]:
    """Choose the turns of a conversation from all rows about a clip or image."""
    if kind in ("listing", "caption"):
        return [row for row in rows if row["type"] == kind]
    asked = [row for row in rows if row["type"] not in ("listing", "caption")]
    return rng.sample(asked, min(len(asked), TURNS))


def _conversation(kind: str | None, turns: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the turns as messages, with a placeholder of the video or image (`kind`) in the first."""
    messages = []
    media = [{"type": kind}] if kind else []
    for turn in turns:
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": turn["question"]}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn["answer"]}]})
        media = []
    return messages
