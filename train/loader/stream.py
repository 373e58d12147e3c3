"""The shuffled order in which a process goes through the rows of a mixture, resumable from a cursor."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...data.mixture import Mixture
from ...data.shards import GroupReader, owner

WHOLE_ROWS_PER_BLOCK = 100  # limit for rows that are held with the bytes of their clips
BLOCK_BYTES = 1_000_000_000  # limit for the rows of Parquet files in a block, over all processes

Block = deque[dict[str, Any] | None]  # rows or references, in shuffled order; None for those of other processes


class RowStream:
    """
    The rows of a mixture for one of several processes, shuffled, in endless epochs. In an epoch each row comes once,
    in one of the processes.

    All processes go through the same order of references to rows, and each reads its own rows only: of `world_size`
    positions in sequence, one each. Rows of Parquet files are distributed by row groups instead, as long as there are
    enough, so that each group is read once, by one process (see [`owner`]). Rows without references (see [`Mixture`])
    are distributed by shards, if the number of shards is a multiple of `world_size`.

    `cursor`, a small dict that can be written as JSON, is where the stream begins. Each row comes with the cursor
    behind it. Rows are shuffled in blocks, so that a cursor needs no rows, only the beginning of its block; `datasets`
    does not save the content of its own shuffle buffer.

    Memory: rows of Parquet files with row groups of more than 64 KB are read when their block begins, while the block
    before is trained on. A block ends early when these rows have 1 GB, over all processes. A single process thus holds
    up to 2 GB, several processes a share each.

    Args:
        seed: Of the order.
        buffer_size: References in a block; 1 keeps the order within a shard. Blocks of rows without references have
            at most 100 rows.
    """

    def __init__(self, mixture: Mixture, seed: int, buffer_size: int, rank: int = 0, world_size: int = 1):
        self.mixture, self.seed, self.rank, self.world_size = mixture, seed, rank, world_size
        self.buffer_size = min(buffer_size, WHOLE_ROWS_PER_BLOCK) if mixture.streamed else buffer_size
        self.by_shards = mixture.divides(world_size)
        self.cursor = {"epoch": 0, "block": 0, "offset": 0, "position": 0, "rows": None, "done": []}
        self.cursor["by_shards"] = self.by_shards

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield references or rows, each with the cursor behind it."""
        cursor = dict(self.cursor)
        while True:
            for block, rows_state in self._blocks(cursor):
                while block:
                    row = block.popleft()
                    cursor = {**cursor, "offset": cursor["offset"] + 1, "position": cursor["position"] + 1}
                    cursor["rows"] = rows_state
                    if row is not None:
                        yield row, cursor
                done = [positions for positions in cursor["done"] if max(positions) > cursor["position"]]
                cursor = {**cursor, "block": cursor["block"] + 1, "offset": 0, "done": done}
            if cursor["position"] == 0:
                raise ValueError("The training data have no rows")
            cursor = {**cursor, "epoch": cursor["epoch"] + 1, "block": 0, "offset": 0, "rows": None}

    def _blocks(self, cursor: dict[str, Any]) -> Iterator[tuple[Block, dict | None]]:
        """Yield the remaining blocks of an epoch, each with the dataset's state at its beginning, read one ahead."""
        share = (self.rank, self.world_size) if self.by_shards else (0, 1)
        dataset = self.mixture.epoch(cursor["epoch"], self.seed, *share)
        dataset.set_epoch(cursor["epoch"])  # in case the caller shuffles the dataset as well
        dataset.load_state_dict(cursor["rows"])
        rows, groups, state = iter(dataset), GroupReader(), cursor["rows"]
        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(self._read, rows, groups, cursor)
            try:
                while (read := reading.result()) is not None:
                    block, cursor = read
                    next_state = dataset.state_dict()
                    reading = reader.submit(self._read, rows, groups, cursor)
                    yield block, state
                    state = next_state
            finally:
                groups.stop()

    def _read(
        self, rows: Iterator[dict[str, Any]], groups: GroupReader, cursor: dict[str, Any]
    ) -> tuple[Block, dict[str, Any]] | None:
        """Return the rest of the block at the cursor, and the cursor of the next block."""
        block, size = [], 0
        for row in rows:
            block.append(row)
            size += _row_bytes(row)
            if len(block) == self.buffer_size or size >= BLOCK_BYTES:
                break
        if not block:
            return None
        order = np.random.default_rng([self.seed, cursor["epoch"], cursor["block"]]).permutation(len(block))
        start = cursor["position"] - cursor["offset"]
        own = deque(
            block[index] if self._is_own(block[index], position, cursor["done"]) else None
            for position, index in enumerate(order, start)
            if position >= cursor["position"]
        )
        groups.read([row["reference"] for row in own if row is not None and _row_bytes(row)])
        return own, {**cursor, "block": cursor["block"] + 1, "offset": 0, "position": start + len(block)}

    def _is_own(self, row: dict[str, Any], position: int, done: list[list[int]]) -> bool:
        """
        Args:
            done: For each resumption with another world size, the position that each of the processes had reached.
        """
        if self.by_shards:
            return True
        reference = row.get("reference")
        is_done = any(position < positions[owner(reference, position, len(positions))] for positions in done)
        return owner(reference, position, self.world_size) == self.rank and not is_done


def _row_bytes(row: dict[str, Any]) -> int:
    """Return the approximate size of a row that is read when its block begins; 0 for others."""
    reference = row.get("reference")
    return reference["group"]["row_bytes"] if reference and reference["group"] else 0
