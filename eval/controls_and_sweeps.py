"""Variants of a run: controls that remove or reorder the video's frames, and sweeps over a setting of the model."""

import random
from dataclasses import dataclass
from pathlib import Path

from ..configuration_pllava import PllavaConfig
from ..model_pooling import choose_pooling
from ..result_files.folders import CONTROLS
from .benchmarks.samples import ClipKey


@dataclass(frozen=True)
class Variant:
    """
    Args:
        name: The name of its results folder; "" is the plain run, without control and with the model's own settings.
        control: One of `CONTROLS`.
        alpha: The LoRA strength.
        pooling: In the notation of `parse_pooling`, with its shape.
    """

    name: str = ""
    control: str | None = None
    alpha: float | None = None
    pooling: str | None = None


PLAIN = Variant()
CONTROL_VARIANTS = [Variant(name, control=name) for name in CONTROLS]


def parse_sweep(text: str, config: PllavaConfig, num_frames: int | None = None) -> list[Variant]:
    """
    Return one variant for each value in "alpha=0,4,32" or "pooling=average-16x8x8,slowfast,merge".

    Args:
        config: The model's. A pooling without a shape has the preset shape for it, which is in the variant's name.
        num_frames: Frames of a clip, by default as many as the model was trained with.

    Raises:
        ValueError: if the text has neither form, or the model cannot have a pooling.
    """
    setting, _, values = text.partition("=")
    try:
        if setting == "alpha":
            return [Variant(f"alpha={float(value):g}", alpha=float(value)) for value in values.split(",")]
    except ValueError:
        pass
    if setting == "pooling" and values:
        poolings = dict.fromkeys(str(choose_pooling(config, value, num_frames)) for value in values.split(","))
        return [Variant(f"pooling={pooling}", pooling=pooling) for pooling in poolings]
    raise ValueError(f"{text!r}: a sweep is alpha=0,4,32 or pooling=average-16x8x8,slowfast,merge")


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
