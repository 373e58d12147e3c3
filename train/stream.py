"""From a mixture of rows to batches: in one order whatever the number of workers, which a killed run goes on with."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np

from ..workers import ordered_map, with_retries
from .collator import VideoChatCollator
from .mixture import Mixture
from .skipped import Skipped, SkippedExamples

WHOLE_ROWS = 100  # are held at most where rows come whole, with the bytes of their clips
EXAMPLE_SECONDS = 180  # for reading and decoding an example; less than the time that processes wait for each other


class RowStream:
    """
    The rows of a mixture for one of several processes, shuffled, epoch after epoch without end. No row is lost or
    comes twice in an epoch. All processes go through the same order, and take turns: the row at position p is for the
    process p modulo their number. What they go through are references, so that each reads the bytes of its own rows
    only. Rows that come whole (see [`Mixture`]) are dealt by shards where the number of shards allows it.

    `place` is where it begins, a small dict that can be written as JSON; each row comes with the place behind it.
    Blocks of `buffer_size` references are shuffled, so that a place needs to name only where its block begins:
    `datasets` does not save the content of its own shuffle buffer.

    Args:
        mixture: What is read.
        seed: Of the order.
        buffer_size: How many references are held and shuffled together; 1 keeps the order within a shard. Of rows
            that come whole, at most 100 are held.
        rank, world_size: Which of how many processes this is.
    """

    def __init__(self, mixture: Mixture, seed: int, buffer_size: int, rank: int = 0, world_size: int = 1):
        self.mixture = mixture
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.buffer_size = min(buffer_size, WHOLE_ROWS) if self.mixture.streamed else buffer_size
        self.by_shards = self.mixture.divides(world_size)
        self.place = {"epoch": 0, "block": 0, "offset": 0, "position": 0, "rows": None, "done": []}
        self.place["by_shards"] = self.by_shards

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """References or rows, each with the place behind it."""
        place = dict(self.place)
        done = set(place["done"])
        while True:
            before = place["position"]
            for rows, state in self._blocks(place["epoch"], place["rows"]):
                order = np.random.default_rng([self.seed, place["epoch"], place["block"]]).permutation(len(rows))
                for index in order[place["offset"] :]:
                    position = place["position"]
                    place = {**place, "offset": place["offset"] + 1, "position": position + 1, "rows": state}
                    if self.by_shards or (position % self.world_size == self.rank and position not in done):
                        yield rows[index], place
                left = [position for position in place["done"] if position >= place["position"]]
                place = {**place, "block": place["block"] + 1, "offset": 0, "done": left}
            if place["position"] == before == 0:
                raise ValueError("The training data have no rows")
            place = {**place, "epoch": place["epoch"] + 1, "block": 0, "offset": 0, "rows": None}

    def _blocks(self, epoch: int, state: dict | None) -> Iterator[tuple[list[dict[str, Any]], dict | None]]:
        """Blocks of rows of an epoch, each with the dataset's state at its beginning; read one ahead, in a thread."""
        share = (self.rank, self.world_size) if self.by_shards else (0, 1)
        dataset = self.mixture.epoch(epoch, self.seed, *share)
        dataset.set_epoch(epoch)  # for a stream that its owner shuffles, too
        dataset.load_state_dict(state)
        rows = iter(dataset)
        with ThreadPoolExecutor(1) as reader:
            block = reader.submit(_read, rows, self.buffer_size)
            while read := block.result():
                following = dataset.state_dict()
                block = reader.submit(_read, rows, self.buffer_size)
                yield read, state
                state = following


def _read(rows: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return list(islice(rows, count))


class StreamLoader:
    """
    Batches from a [`RowStream`]. Workers read and decode the rows in advance, this process puts them together: what
    cannot be read is passed over, and every batch is full. Which frames are drawn depends on the seed and the row's
    position only, so that neither the number of workers nor a resumption changes a batch.

    Args:
        batch_size: Examples in a batch.
        num_workers: Processes that read and decode; 0 does so in this one. A worker that crashes, or needs more than
            three minutes for an example, is replaced, and its example skipped; all processes wait for it meanwhile.
        prefetch_factor: Batches that the workers decode in advance, together; 2 by default.
    """

    def __init__(
        self,
        rows: RowStream,
        collator: VideoChatCollator,
        batch_size: int,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
    ):
        self.rows, self.collator, self.batch_size = rows, collator, batch_size
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.skipped: SkippedExamples = collator.skipped
        self.waited = 0.0  # seconds in which the next batch was not ready, since the start
        self.place = rows.place

    def __iter__(self) -> Iterator[dict[str, Any]]:
        places: deque[dict[str, Any]] = deque()

        def tasks() -> Iterator[tuple[dict[str, Any], int, int]]:
            for row, place in self.rows:
                places.append(place)
                yield row, place["epoch"], place["position"]

        encode = _Encoder(self.rows.mixture, self.collator, self.rows.seed)
        ahead = max(2 * self.num_workers, (self.prefetch_factor or 2) * self.batch_size)
        examples, began = [], perf_counter()
        for result in ordered_map(encode, tasks(), self.num_workers, ahead, EXAMPLE_SECONDS, encode.skip):
            self.place = places.popleft()
            if isinstance(self.skipped.count(result), Skipped):
                continue
            examples.append(result)
            if len(examples) == self.batch_size:
                batch = self.collator.pad(examples)
                batch |= {name: [example[name] for example in examples] for name in ("source", "id")}
                batch["feature_keys"] = [key for example in examples for key in example.get("feature_keys", ())]
                self.waited += perf_counter() - began
                yield batch
                examples, began = [], perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Where the last batch ended, and what was skipped up to there."""
        return {"place": self.place, "skipped": self.skipped.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows.place = self.place = state["place"]
        self.skipped.load_state_dict(state["skipped"])


def deal_anew(states: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """
    The state with which one of any number of processes goes on, from those of all processes that there were: at the
    place of the one that was behind, from where what the others have done is passed over.
    """
    places = [state["place"] for state in states]
    first = min(places, key=lambda place: place["position"])
    done = {position for place in places for position in place["done"] if position >= first["position"]}
    for old_rank, place in enumerate(places):
        positions = range(first["position"], place["position"])
        done |= {position for position in positions if position % len(states) == old_rank}
    skipped = {name: sum(state["skipped"][name] for state in states) for name in states[0]["skipped"]}
    if rank:  # the first one counts what the others had
        skipped = dict.fromkeys(skipped, 0)
    return {"place": {**first, "done": sorted(done)}, "skipped": skipped}


class _Encoder:
    """What the workers do: they read a row and make an example of it."""

    def __init__(self, mixture: Mixture, collator: VideoChatCollator, seed: int):
        self.mixture, self.collator, self.seed = mixture, collator, seed

    def __call__(self, task: tuple[dict[str, Any], int, int]) -> dict[str, Any] | Skipped:
        reference, epoch, position = task
        try:
            row = with_retries(self.mixture.read, reference)
        except (OSError, ValueError) as error:
            return self.skip(task, str(error))
        result = self.collator.try_encode(row, self._frames_seed(epoch, row.get("id") or position))
        if isinstance(result, Skipped):
            return result
        return {**result, **{name: str(row.get(name)) for name in ("source", "id")}}

    def skip(self, task: tuple[dict[str, Any], int, int], error: str) -> Skipped:
        source, name = self.mixture.name(task[0])
        return Skipped(source, name, [], "unreadable", error)

    def _frames_seed(self, epoch: int, row: str | int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{epoch}/{row}".encode()).digest()[:8], "big") >> 1
