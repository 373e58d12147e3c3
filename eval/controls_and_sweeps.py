"""Variants of a run: controls that remove or reorder the video's frames, and sweeps over a setting of the model."""

import random
from dataclasses import dataclass
from pathlib import Path

from ..result_files.folders import CONTROLS
from .benchmarks.samples import ClipKey


@dataclass(frozen=True)
class Variant:
    """
    Args:
        name: The name of its results folder; "" is the plain run, without control and with the model's own settings.
        control: One of `CONTROLS`.
        alpha: The LoRA strength.
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
    Return one variant for each value in "alpha=0,4,32" or "pooling_shape=16x12x12,16x8x8".

    Raises:
        ValueError: if the text has neither form.
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


def choose_frames(control: str | None, count: int, clip: ClipKey) -> list[int]:
    """
    Return the indices of the frames, of `count`, that a control shows, in its order. The shuffled order depends on the
    clip's file name and interval only, so it is the same in each run, wherever the clips are stored.
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
