"""From a stream of rows to batches: worker processes read and decode rows in advance, and full batches are made."""

import hashlib
from collections import deque
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import torch
from accelerate.utils import recursively_apply

from ...data.mixture import Mixture
from ...workers import DECODE_TIMEOUT, ordered_map, with_retries
from .collator import VideoChatCollator
from .skipped import Skipped, SkippedExamples
from .stream import RowStream


class StreamLoader:
    """
    Batches from a [`RowStream`]. Workers read and decode rows in advance, and this process collates them. What cannot
    be read is skipped, and every batch is full. The sampled frames depend on the seed, the epoch and the row only, so
    that neither the number of workers nor a resumption changes a batch.

    Args:
        num_workers: Processes that read and decode; with 0 this one does. A worker that crashes, or needs more than
            three minutes for an example, is replaced, and its example skipped; all processes wait for it meanwhile.
        prefetch_factor: Number of batches that all workers together decode in advance; 2 by default.
        pin_memory: Whether examples are copied into pinned memory when they arrive, while the model is at work.
    """

    def __init__(
        self,
        stream: RowStream,
        collator: VideoChatCollator,
        batch_size: int,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
    ):
        self.stream, self.collator, self.batch_size = stream, collator, batch_size
        self.pin_memory = pin_memory
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.skipped: SkippedExamples = collator.skipped
        self.waited = 0.0  # seconds in which the next batch was not ready, since the start
        self.cursor = stream.cursor  # behind the last example

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches whose media are not on the device yet (see [`VideoChatCollator.to_device`])."""
        cursors: deque[dict[str, Any]] = deque()

        def tasks() -> Iterator[tuple[dict[str, Any], int, int]]:
            for row, cursor in self.stream:
                cursors.append(cursor)
                yield row, cursor["epoch"], cursor["position"]

        encode = _RowEncoder(self.stream.mixture, self.collator, self.stream.seed)
        ahead = max(2 * self.num_workers, (self.prefetch_factor or 2) * self.batch_size)
        examples, start = [], perf_counter()
        receive = pin_tensors if self.pin_memory else lambda example: example
        for result in ordered_map(encode, tasks(), self.num_workers, ahead, DECODE_TIMEOUT, encode.skip, receive):
            self.cursor = cursors.popleft()
            if isinstance(self.skipped.count(result), Skipped):
                continue
            examples.append(result)
            if len(examples) == self.batch_size:
                batch = self.collator.pad(examples)
                batch |= {name: [example[name] for example in examples] for name in ("source", "id")}
                batch["feature_keys"] = [key for example in examples for key in example.get("feature_keys", ())]
                self.waited += perf_counter() - start
                yield batch
                examples, start = [], perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor behind the last batch, and the counts of skipped examples. Checkpoints have these keys."""
        return {"place": self.cursor, "skipped": self.skipped.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.cursor = self.cursor = state["place"]
        self.skipped.load_state_dict(state["skipped"])


def redistribute(states: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """
    Return the state from which one of any number of processes resumes, given the states of all earlier ones. It starts
    at the cursor of the one that was furthest behind, and the rows that others have done are left out.
    """
    cursors = [state["place"] for state in states]
    first = min(cursors, key=lambda cursor: cursor["position"])
    done = [*first["done"], [cursor["position"] for cursor in cursors]]
    # The counts of all earlier processes go to the first one
    skipped = {name: 0 if rank else sum(state["skipped"][name] for state in states) for name in states[0]["skipped"]}
    return {"place": {**first, "done": done}, "skipped": skipped}


def pin_tensors(example: dict[str, Any] | Skipped) -> dict[str, Any] | Skipped:
    """Return the example with its tensors in pinned memory."""
    return recursively_apply(torch.Tensor.pin_memory, example)


class _RowEncoder:
    """What the workers run: reads a row and encodes it as an example."""

    def __init__(self, mixture: Mixture, collator: VideoChatCollator, seed: int):
        self.mixture, self.collator, self.seed = mixture, collator, seed

    def __call__(self, task: tuple[dict[str, Any], int, int]) -> dict[str, Any] | Skipped:
        reference, epoch, position = task
        try:
            row = with_retries(self.mixture.read, reference)
        except (OSError, ValueError) as error:
            return self.skip(task, str(error))
        frames_seed = hashlib.sha256(f"{self.seed}/{epoch}/{row.get('id') or position}".encode()).digest()[:8]
        result = self.collator.try_encode(row, int.from_bytes(frames_seed, "big") >> 1)
        if isinstance(result, Skipped):
            return result
        return {**result, **{name: str(row.get(name)) for name in ("source", "id")}}

    def skip(self, task: tuple[dict[str, Any], int, int], error: str) -> Skipped:
        source, name = self.mixture.name(task[0])
        return Skipped(source, name, [], "unreadable", error)
