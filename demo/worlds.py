"""Clips and pictures of nano's synthetic world, with their questions and true answers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from ..nano.world import drawing, questions
from ..nano.world.scenes import NUM_FRAMES
from .conversation import Medium

SEED = 17  # nano was trained on clips of seed 0
CLIPS = 1_000_000  # to roll from
EXAMPLES = {40: "bounces", 6: "order", 14: "speed", 23: "image"}  # clips, and what is asked about them
SCALE = 4  # of pictures: 96 pixels are too few to look at


def roll(folder: Path, number: int | None = None) -> Medium:
    """Write a clip into `folder`: a random one, or that of a number."""
    number = random.randrange(CLIPS) if number is None else number
    scene, rows = questions.clip(SEED, number)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"world-{number}.mp4"
    with _new_file(path) as part:
        drawing.write_clip(part, drawing.draw(scene))
    return Medium(str(path), "video", path.name, str(path), truths=_truths(rows))


def picture(folder: Path, number: int) -> Medium:
    """Write the frame in the middle of a clip as an image."""
    rng = random.Random(f"{SEED}/{number}/image")
    scene, _ = questions.clip(SEED, number)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"world-{number}.png"
    image = Image.fromarray(drawing.draw_frame(scene, NUM_FRAMES // 2))
    with _new_file(path) as part:
        image.resize((SCALE * image.width, SCALE * image.height), Image.Resampling.NEAREST).save(part)
    truths = _truths(questions.image_questions(scene, NUM_FRAMES // 2, rng))
    return Medium(str(path), "image", path.name, str(path), truths=truths)


def example(folder: Path, number: int, kind: str) -> tuple[Medium, str]:
    """Write a clip, or a picture if the kind is "image". Return it with a question of this kind about it."""
    if kind == "image":
        medium = picture(folder, number)
        return medium, next(question for question in medium.truths if question.startswith("What colour"))
    medium = roll(folder, number)
    return medium, next(row["question"] for row in questions.clip(SEED, number)[1] if row["type"] == kind)


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file. It appears whole: another visitor may be reading the clip of the same number."""
    with TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder, path.name)
        yield part
        part.replace(path)


def _truths(rows: list[dict[str, str]]) -> dict[str, str]:
    return {row["question"]: row["answer"] for row in rows}
