"""
Several sources as one stream of rows, in another order each epoch. What is shuffled are references, a few bytes each:
a row with its texts and clips is read when its turn comes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    Value,
    concatenate_datasets,
    interleave_datasets,
    load_dataset_builder,
)

from ..video_source_pllava import is_address
from .row_formats import FEATURES, read_conversation
from .shards import REFERENCE, list_rows, owner, read_row
from .sources import SUFFIXES, Source, load_source

REFERENCES = Features({"reference": {"part": Value("int32"), **REFERENCE}})

Seed = tuple[int, ...]
FILES_TOGETHER = 32  # Parquet files whose row groups are permuted; the indices of all are read before their first row


@dataclass
class Table:
    """Rows with random access: all of them are permuted."""

    rows: Dataset

    def stream(self, part: int, seed: Seed, rank: int, world_size: int) -> IterableDataset:
        share = {"part": part, "count": len(self.rows), "seed": seed, "rank": rank, "world_size": world_size}
        return IterableDataset.from_generator(_permuted, features=REFERENCES, gen_kwargs=share)

    def read(self, reference: dict[str, Any]) -> dict[str, Any]:
        return self.rows[reference["row"]]

    def name(self, reference: dict[str, Any]) -> tuple[str, str]:
        row = self.rows[reference["row"]]
        return str(row.get("source")), str(row.get("id"))


@dataclass
class Shards:
    """
    Parquet or WebDataset files: the files are permuted, of Parquet the row groups of 32 files at a time, too; rows are
    shuffled further on, in blocks of the stream.
    """

    source: Source
    files: list[str]

    def stream(self, part: int, seed: Seed, rank: int, world_size: int) -> IterableDataset:
        files = [self.files[index] for index in np.random.default_rng(seed).permutation(len(self.files))]
        count = 1 if files[0].endswith(".tar") else FILES_TOGETHER
        runs = [files[first : first + count] for first in range(0, len(files), count)]
        share = {"part": part, "runs": runs, "seed": seed, "rank": rank, "world_size": world_size}
        return IterableDataset.from_generator(_listed, features=REFERENCES, gen_kwargs=share)

    def read(self, reference: dict[str, Any]) -> dict[str, Any]:
        row, name = read_row(reference)
        folder = "" if is_address(reference["file"]) else str(Path(reference["file"]).absolute().parent)
        where = f"{reference['file']}, row {reference['row']}"
        return read_conversation(row, self.source, name, folder, where)

    def name(self, reference: dict[str, Any]) -> tuple[str, str]:
        return self.source.title, f"{reference['file']}#{reference['row']}"


@dataclass
class Streamed:
    """Rows that come whole, one behind the other; their shards are permuted."""

    rows: IterableDataset

    def stream(self, part: int, seed: Seed, rank: int, world_size: int) -> IterableDataset:
        count = self.rows.num_shards
        if count == 1:
            return self.rows
        order = np.random.default_rng(seed).permutation(count)[rank::world_size]
        return concatenate_datasets([self.rows.shard(count, index) for index in order])


class Mixture:
    """
    Sources, each read in an order of its own each epoch, mixed at random.

    Args:
        parts: [`Table`]s, [`Shards`] and [`Streamed`].
        probabilities: The parts' shares; one for each of several parts.
        stopping_strategy: When an epoch ends, as in `datasets.interleave_datasets`.
    """

    def __init__(
        self,
        parts: list[Table | Shards | Streamed],
        probabilities: list[float] | None = None,
        stopping_strategy: str = "all_exhausted_without_replacement",
    ):
        self.parts, self.probabilities, self.stopping_strategy = parts, probabilities, stopping_strategy
        self.streamed = [part for part in parts if isinstance(part, Streamed)]

    @property
    def length(self) -> int | None:
        """How many rows an epoch has, if that is known."""
        known = all(isinstance(part, Table) for part in self.parts)
        if not known or (len(self.parts) > 1 and self.stopping_strategy != "all_exhausted_without_replacement"):
            return None
        return sum(len(part.rows) for part in self.parts)

    def columns(self) -> Dataset:
        """One row without content, from which TRL learns what columns there are, and that they hold conversations."""
        rows = self.parts[0].rows if not isinstance(self.parts[0], Shards) else None
        names = list(FEATURES if rows is None else rows.column_names or next(iter(rows)))
        row = {**dict.fromkeys(names), "messages": [{"role": "user", "content": ""}]}
        return Dataset.from_list([row])

    def epoch(self, number: int, seed: int, rank: int = 0, world_size: int = 1) -> IterableDataset:
        """References and whole rows of an epoch, those of one of `world_size` processes."""
        streams = [part.stream(i, (seed, number, i), rank, world_size) for i, part in enumerate(self.parts)]
        if len(streams) == 1:
            return streams[0]
        seed = int(np.random.default_rng((seed, number)).integers(1 << 31))
        return interleave_datasets(streams, self.probabilities, seed, stopping_strategy=self.stopping_strategy)

    def divides(self, world_size: int) -> bool:
        """Whether each process has to, and can, read its own shards: rows that come whole are read to be dealt."""
        counts = [part.rows.num_shards for part in self.streamed]
        return bool(counts) and world_size > 1 and all(count % world_size == 0 for count in counts)

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row that a reference stands for; a whole row as it is."""
        reference = row.get("reference")
        return row if reference is None else self.parts[reference["part"]].read(reference)

    def name(self, row: dict[str, Any]) -> tuple[str, str]:
        """How the source and the row are called, without reading it."""
        reference = row.get("reference")
        if reference is None:
            return str(row.get("source")), str(row.get("id"))
        return self.parts[reference["part"]].name(reference)


def as_mixture(rows: Dataset | IterableDataset | Mixture) -> Mixture:
    """A dataset as a mixture of one part."""
    if isinstance(rows, Mixture):
        return rows
    return Mixture([Table(rows) if isinstance(rows, Dataset) else Streamed(rows)])


def load_sources(sources: list[Source], stopping_strategy: str = "all_exhausted_without_replacement") -> Mixture:
    """
    The sources as one stream, mixed at random by their weights.

    Args:
        sources: Without weights, each comes in proportion to its rows; all of them have weights, or none.
        stopping_strategy: When an epoch ends, as in `datasets.interleave_datasets`. By default when each row was seen,
            each once. With "first_exhausted" or "all_exhausted", the weights hold to the end of the epoch.

    Raises:
        ValueError: if only some sources have a weight, or streams, whose length is not known, have none.
    """
    parts = [_load_part(source) for source in sources]
    lengths = [len(part.rows) if isinstance(part, Table) else None for part in parts]
    weights = [source.weight for source in sources]
    if len(sources) > 1 and None in weights:
        if weights != [None] * len(sources) or None in lengths:
            raise ValueError(
                "Give each source of a mixture a `weight`, or none of them; they all need one where a source is "
                f"streamed, since its length is not known. Got { ({s.title: s.weight for s in sources}) }"
            )
        weights = lengths
    probabilities = [weight / sum(weights) for weight in weights] if len(parts) > 1 else None
    return Mixture(parts, probabilities, stopping_strategy)


def _load_part(source: Source) -> Table | Shards | Streamed:
    files = [str(file) for file in source.files] or _hub_parquet(source)
    if {Path(file).suffix for file in files} in ({".parquet"}, {".tar"}):
        return Shards(source, files)
    rows = load_source(source)
    return Table(rows) if isinstance(rows, Dataset) else Streamed(rows)


def _hub_parquet(source: Source) -> list[str]:
    """The files of a dataset on the Hub that has Parquet files only, as URLs; rows of other ones come whole."""
    path = Path(source.path)
    if path.exists() or len(path.parts) > 2 or path.suffix in SUFFIXES:
        return []
    found = load_dataset_builder(source.path).config.data_files or {}
    files = [str(file) for file in found.get(source.split, ())]
    return files if all(file.endswith(".parquet") for file in files) else []


def _permuted(part: int, count: int, seed: Seed, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
    for row in np.random.default_rng(seed).permutation(count)[rank::world_size]:
        yield {"reference": {"part": part, "file": None, "row": int(row), "members": None, "group": None}}


def _listed(part: int, runs: list[list[str]], seed: Seed, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
    for files in runs:
        for reference in list_rows(files, seed):
            if owner(reference, reference["row"], world_size) == rank:
                yield {"reference": {"part": part, **reference}}
