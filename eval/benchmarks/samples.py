"""A sample: one question about a video. Every benchmark is read into a list of samples."""

import hashlib
import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LETTERS = string.ascii_uppercase
ClipKey = tuple[str | bytes, float | None, float | None]  # path, start, end


@dataclass(frozen=True)
class Sample:
    """
    One question about a video.

    Args:
        id: Unique within the benchmark.
        task: The task that the sample counts towards.
        video: The path of a clip or of a folder of frames, or the bytes of a file. A missing file is reported like any
            unreadable clip.
        questions: One question, or two phrasings of it whose answers are compared for consistency.
        reference: The right answer; "" if there is none.
        options: The options of a multiple choice question.
        start, end: The interval of the clip that the question is about, in seconds.
    """

    id: str
    task: str
    video: str | bytes
    questions: tuple[str, ...]
    reference: str = ""
    options: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None

    @property
    def clip(self) -> ClipKey:
        """The clip as a key: equal for samples that share the same frames."""
        return self.video, self.start, self.end

    @property
    def source(self) -> dict[str, Any]:
        """The clip as the video processor takes it."""
        source = {"path": self.video, "start": self.start, "end": self.end}
        return {name: value for name, value in source.items() if value is not None}


def digest(value: Any) -> str:
    """Return a short hash of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def digest_samples(samples: Iterable[Sample]) -> str:
    """Return a hash of the questions and references, in their order."""
    return digest([[sample.id, sample.questions, sample.reference] for sample in samples])
