"""Ways to ask the same questions: controls that take the video away or out of order, and settings of the model."""

import random
from dataclasses import dataclass
from pathlib import Path

from .benchmarks.samples import Clip

CONTROLS = {
    "no_video": "no video",
    "one_frame": "one frame",
    "shuffled": "frames shuffled",
    "reversed": "frames reversed",
}


@dataclass(frozen=True)
class Variant:
    """
    Args:
        name: Of the folder of its results; "" is the plain run, the benchmark as it is meant.
        control: One of `CONTROLS`.
        alpha: The strength of the adapter.
        pooling_shape: T' x h' x w'.
    """

    name: str = ""
    control: str | None = None
    alpha: float | None = None
    pooling_shape: tuple[int, int, int] | None = None


PLAIN = Variant()
CONTROL_VARIANTS = [Variant(name, control=name) for name in CONTROLS]


def parse_sweep(text: str) -> list[Variant]:
    """
    "alpha=0,4,32" or "pooling_shape=16x12x12,16x8x8" -> a variant for each value.

    Raises:
        ValueError: if it is neither.
    """
    setting, _, values = text.partition("=")
    try:
        if setting == "alpha":
            return [Variant(f"alpha={float(value):g}", alpha=float(value)) for value in values.split(",")]
        if setting == "pooling_shape":
            shapes = [tuple(int(side) for side in value.split("x")) for value in values.split(",")]
            if all(len(shape) == 3 and min(shape) > 0 for shape in shapes):
                return [Variant(f"pooling_shape={'x'.join(map(str, shape))}", pooling_shape=shape) for shape in shapes]
    except ValueError:
        pass
    raise ValueError(f"{text!r}: a sweep is alpha=0,4,32 or pooling_shape=16x12x12,16x8x8")


def choose_frames(control: str | None, count: int, clip: Clip) -> list[int]:
    """
    Which of `count` frames a control shows, in which order; shuffled by the clip's name and bounds, so that the order
    is the same in each run, whatever folder the clips are in.
    """
    frames = list(range(count))
    if control == "one_frame":
        return [count // 2]
    if control == "reversed":
        return frames[::-1]
    if control == "shuffled":
        path, start, end = clip
        random.Random(f"{Path(path).name} {start} {end}").shuffle(frames)
    return frames
