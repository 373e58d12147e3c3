"""What a model gives: answers, and the time that they took."""

from dataclasses import dataclass


@dataclass
class Answer:
    """
    The texts that answer a sample's questions, or why there are none.

    Args:
        truncated: An answer reached the length limit.
        damaged: Why only a part of the clip could be read.
    """

    texts: tuple[str, ...] = ()
    error: str | None = None
    truncated: bool = False
    damaged: str | None = None


@dataclass
class Seconds:
    """By the clock: what the model took, and how long it waited for clips. Of all workers: what decoding took."""

    model: float = 0.0
    waited: float = 0.0
    decode: float = 0.0
