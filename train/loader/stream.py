"""From a mixture of rows to batches: in one order whatever the number of workers, which a killed run goes on with."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np

from ...data.mixture import Mixture
from ...data.shards import GroupReader, owner
from ...workers import DECODE_TIMEOUT, ordered_map, with_retries
from .collator import VideoChatCollator
from .skipped import Skipped, SkippedExamples

WHOLE_ROWS = 100  # are held at most where rows come whole, with the bytes of their clips
GROUP_BYTES = 1_000_000_000  # of rows of Parquet files, at most, in a block: all processes together hold so much


class RowStream:
    """
    The rows of a mixture for one of several processes, shuffled, epoch after epoch without end. No row is lost or
    comes twice in an epoch. All processes go through the same order. What they go through are references, so that each
    reads the bytes of its own rows only: they take turns, the row at position p is for the process p modulo their
    number. Rows of a Parquet file are dealt by row groups, so that each group is read once, by one process, as long as
    there are groups enough (see [`owner`]). Rows that come whole (see [`Mixture`]) are dealt by shards where the
    number of shards allows it.

    `place` is where it begins, a small dict that can be written as JSON; each row comes with the place behind it.
    Blocks of `buffer_size` references are shuffled, so that a place needs to name only where its block begins:
    `datasets` does not save the content of its own shuffle buffer.

    Memory: of Parquet files with row groups of more than 64 KB, a process reads its rows of a block when the block
    begins, while those of the block before are trained on. A block ends early when these rows have 1 GB, those of all
    processes counted. A single process thus holds up to 2 GB, several hold their shares of it.

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
        while True:
            before = place["position"]
            for block, state in self._blocks(place):
                while block:
                    row = block.popleft()
                    place = {**place, "offset": place["offset"] + 1, "position": place["position"] + 1, "rows": state}
                    if row is not None:
                        yield row, place
                left = [positions for positions in place["done"] if max(positions) > place["position"]]
                place = {**place, "block": place["block"] + 1, "offset": 0, "done": left}
            if place["position"] == before == 0:
                raise ValueError("The training data have no rows")
            place = {**place, "epoch": place["epoch"] + 1, "block": 0, "offset": 0, "rows": None}

    def _blocks(self, place: dict[str, Any]) -> Iterator[tuple[deque[dict[str, Any] | None], dict | None]]:
        """
        What is left of the blocks of an epoch, each with the dataset's state at its beginning; read one ahead, in a
        thread.
        """
        share = (self.rank, self.world_size) if self.by_shards else (0, 1)
        dataset = self.mixture.epoch(place["epoch"], self.seed, *share)
        dataset.set_epoch(place["epoch"])  # for a stream that its owner shuffles, too
        dataset.load_state_dict(place["rows"])
        rows, groups, state = iter(dataset), GroupReader(), place["rows"]
        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(self._read, rows, groups, place)
            try:
                while (read := reading.result()) is not None:
                    block, place = read
                    following = dataset.state_dict()
                    reading = reader.submit(self._read, rows, groups, place)
                    yield block, state
                    state = following
            finally:
                groups.stop()

    def _read(
        self, rows: Iterator[dict[str, Any]], groups: GroupReader, place: dict[str, Any]
    ) -> tuple[deque[dict[str, Any] | None], dict[str, Any]] | None:
        """The rows of a block from `place` on, `None` for those of other processes; and the next block's place."""
        block = _take(rows, self.buffer_size)
        if not block:
            return None
        order = np.random.default_rng([self.seed, place["epoch"], place["block"]]).permutation(len(block))
        start = place["position"] - place["offset"]
        own = deque(
            block[index] if self._is_own(block[index], position, place["done"]) else None
            for position, index in enumerate(order, start)
            if position >= place["position"]
        )
        groups.read([row["reference"] for row in own if row is not None and _row_bytes(row)])
        return own, {**place, "block": place["block"] + 1, "offset": 0, "position": start + len(block)}

    def _is_own(self, row: dict[str, Any], position: int, done: list[list[int]]) -> bool:
        if self.by_shards:
            return True
        reference = row.get("reference")
        is_done = any(position < positions[owner(reference, position, len(positions))] for positions in done)
        return owner(reference, position, self.world_size) == self.rank and not is_done


def _take(rows: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` rows, and fewer where they have too many bytes."""
    block, held = [], 0
    for row in rows:
        block.append(row)
        held += _row_bytes(row)
        if len(block) == count or held >= GROUP_BYTES:
            break
    return block


def _row_bytes(row: dict[str, Any]) -> int:
    """How large about a row is that is read when its block begins; 0 of any other one."""
    reference = row.get("reference")
    return reference["group"]["row_bytes"] if reference and reference["group"] else 0


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
        for result in ordered_map(encode, tasks(), self.num_workers, ahead, DECODE_TIMEOUT, encode.skip):
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
    done = [*first["done"], [place["position"] for place in places]]
    skipped = {name: sum(state["skipped"][name] for state in states) for name in states[0]["skipped"]}
    if rank:  # the first one counts what the others had
        skipped = dict.fromkeys(skipped, 0)
    return {"place": {**first, "done": done}, "skipped": skipped}


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
