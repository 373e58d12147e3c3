"""The interface of a model that answers a benchmark's questions, and what it returns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Sample
from ..controls_and_sweeps import Variant


@dataclass
class Answer:
    """
    The texts that answer a sample's questions, or the reason why there are none.

    Args:
        texts: One for each question; none if there is an error.
        error: Why the clip could not be read, or the server failed.
        truncated: Whether a text reached the length limit.
        damaged: Why only a part of the clip could be read.
    """

    texts: tuple[str, ...] = ()
    error: str | None = None
    truncated: bool = False
    damaged: str | None = None


@dataclass
class Timing:
    """
    The "time" of metrics.json.

    Args:
        answered: The number of answers.
        seconds, model_seconds, waited_for_clips_seconds: Wall time: all of it, the model's, and waiting for clips.
        decode_seconds: Decoding time, summed over the workers.
        processes: The number of processes; the other values are one process's share.
    """

    answered: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    decode_seconds: float = 0.0
    waited_for_clips_seconds: float = 0.0
    processes: int = 1


@dataclass(frozen=True)
class Work:
    """
    The questions that a model is asked.

    Args:
        variants: The ways in which each sample is asked.
        is_done: Whether a variant of a sample has its answer already.
        claim: Whether this process does piece number `piece` of the work; by default it does all.
    """

    benchmark: Benchmark
    samples: Sequence[Sample]
    variants: Sequence[Variant]
    is_done: Callable[[Variant, Sample], bool] = lambda variant, sample: False
    claim: Callable[[int], bool] = lambda piece: True


class Answerer(Protocol):
    """
    A model that answers questions: a [`LocalModel`], or an [`Endpoint`] for a model behind a server. It adds the
    seconds of the model and of the clips to `timing`.
    """

    timing: Timing

    def describe(self, variant: Variant) -> dict[str, Any]:
        """
        Return the settings of the model that its answers depend on, for `run.json`.

        Raises:
            ValueError: if the model cannot answer in this variant.
        """

    def answers(self, work: Work) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]:
        """Yield the missing answers as they come."""
