"""From a stream of rows to batches: in one order whatever the number of workers, which a killed run goes on with."""

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch import Generator
from torch.utils.data import DataLoader

from ..workers import end_with_parent, unchanged
from .collator import VideoChatCollator
from .skipped import Skipped, SkippedExamples


class RowStream:
    """
    The rows of a dataset for one of several processes, shuffled, epoch after epoch without end. No row is lost or
    comes twice in an epoch: processes take turns, or have shards of their own where there are enough.

    `place` is where it begins, a small dict that can be written as JSON; each row comes with the place behind it.
    Blocks of `buffer_size` rows are shuffled, so that a place needs to name only where its block begins: `datasets`
    does not save the content of its own shuffle buffer.

    Args:
        dataset: Its rows are dicts; nothing in them is decoded.
        seed: Of the order.
        buffer_size: How many rows are held and shuffled together; 1 keeps the order of the dataset.
        rank, world_size: Which of how many processes this is.
    """

    def __init__(self, dataset: IterableDataset, seed: int, buffer_size: int, rank: int = 0, world_size: int = 1):
        self.by_shards = world_size > 1 and dataset.num_shards % world_size == 0
        self.dataset = split_dataset_by_node(dataset, rank, world_size) if self.by_shards else dataset
        self.seed, self.buffer_size, self.rank, self.world_size = seed, buffer_size, rank, world_size
        self.place = {"epoch": 0, "block": 0, "offset": 0, "position": 0, "rows": None}

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows, each with the place behind it."""
        place = dict(self.place)
        while True:
            before = place["position"]
            for rows, state in self._blocks(place["epoch"], place["rows"]):
                order = np.random.default_rng([self.seed, place["epoch"], place["block"]]).permutation(len(rows))
                for index in order[place["offset"] :]:
                    place = {**place, "offset": place["offset"] + 1, "position": place["position"] + 1, "rows": state}
                    if self.by_shards or (place["position"] - 1) % self.world_size == self.rank:
                        yield rows[index], place
                place = {**place, "block": place["block"] + 1, "offset": 0}
            if place["position"] == before == 0:
                raise ValueError("The training data have no rows")
            place = {**place, "epoch": place["epoch"] + 1, "block": 0, "offset": 0, "rows": None}

    def _blocks(self, epoch: int, state: dict | None) -> Iterator[tuple[list[dict[str, Any]], dict | None]]:
        """Blocks of rows of an epoch, each with the dataset's state at its beginning; read one ahead, in a thread."""
        self.dataset.set_epoch(epoch)
        self.dataset.load_state_dict(state)
        rows = iter(self.dataset)
        with ThreadPoolExecutor(1) as reader:
            block = reader.submit(_read, rows, self.buffer_size)
            while read := block.result():
                following = self.dataset.state_dict()
                block = reader.submit(_read, rows, self.buffer_size)
                yield read, state
                state = following


def _read(rows: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return list(islice(rows, count))


class StreamLoader:
    """
    Batches from a [`RowStream`]. Workers decode the rows in advance, this process puts them together: what cannot be
    read is passed over, and every batch is full. Which frames are drawn depends on the seed and the row's position
    only, so that neither the number of workers nor a resumption changes a batch.

    Args:
        batch_size: Examples in a batch.
        num_workers: Processes that decode; 0 decodes in this one.
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

        def tasks() -> Iterator[tuple[dict[str, Any], int]]:
            for row, place in self.rows:
                places.append(place)
                yield row, _seed(self.rows.seed, place["epoch"], row.get("id") or place["position"])

        workers = {}
        if self.num_workers:
            examples_ahead = (self.prefetch_factor or 2) * self.batch_size
            workers["prefetch_factor"] = max(2, math.ceil(examples_ahead / self.num_workers))
        encoded = DataLoader(
            _Encoder(self.collator),
            sampler=tasks(),
            batch_size=None,
            collate_fn=unchanged,
            worker_init_fn=end_with_parent,
            num_workers=self.num_workers,
            generator=Generator(),  # or its seed would be drawn from the generator that dropout uses
            **workers,
        )
        examples, began = [], time.perf_counter()
        for row, result in encoded:
            self.place = places.popleft()
            if isinstance(self.skipped.count(result), Skipped):
                continue
            examples.append({**result, "source": row["source"], "id": row["id"]})
            if len(examples) == self.batch_size:
                batch = self.collator.pad(examples)
                batch |= {name: [example[name] for example in examples] for name in ("source", "id")}
                batch["feature_keys"] = [key for example in examples for key in example.get("feature_keys", ())]
                self.waited += time.perf_counter() - began
                yield batch
                examples, began = [], time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Where the last batch ended, and what was skipped up to there."""
        return {"place": self.place, "skipped": self.skipped.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows.place = self.place = state["place"]
        self.skipped.load_state_dict(state["skipped"])


class _Encoder:
    """What the workers do; the sampler hands them rows in place of indices."""

    def __init__(self, collator: VideoChatCollator):
        self.collator = collator

    def __getitem__(self, task: tuple[dict[str, Any], int]) -> tuple[dict[str, Any], dict[str, Any] | Skipped]:
        row, seed = task
        names = {name: str(row.get(name)) for name in ("source", "id")}
        return names, self.collator.try_encode(row, seed)


def _seed(seed: int, epoch: int, row: str | int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{row}".encode()).digest()[:8], "big") >> 1
