"""What every benchmark is read into: samples, one question about a video each."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LETTERS = string.ascii_uppercase
Clip = tuple[str, float | None, float | None]  # path, start, end


@dataclass(frozen=True)
class Sample:
    """
    One question about a video.

    Args:
        id: One of its own in the benchmark.
        task: What it is averaged with.
        video: The path of a clip or a folder of frames; it need not exist, which is reported as any broken clip.
        questions: What is asked: one question, or two that the answers are to agree on.
        reference: The right answer, or what stands for it; "" where there is none.
        options: To choose from.
        start, end: The part of the clip that is asked about, in seconds.
    """

    id: str
    task: str
    video: str
    questions: tuple[str, ...]
    reference: str = ""
    options: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None

    @property
    def clip(self) -> Clip:
        """What is asked about: two samples about the same frames have the same."""
        return self.video, self.start, self.end

    @property
    def source(self) -> dict[str, Any]:
        """The clip as our video processor takes it."""
        bounds = {"start": self.start, "end": self.end}
        return {"path": self.video, **{name: value for name, value in bounds.items() if value is not None}}


def digest(value: Any) -> str:
    """A short name for a value that can be written as JSON: equal for equal values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def digest_samples(samples: Iterable[Sample]) -> str:
    """Of what is asked, in its order, and of what is right."""
    return digest([[sample.id, sample.questions, sample.reference] for sample in samples])
