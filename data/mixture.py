"""
Mix several sources into one stream of rows, in a new order each epoch.

Where possible, the stream contains references to rows, a few bytes each. They can be shuffled cheaply; a row with its
texts and clips is read only when it is needed.
"""

from __future__ import annotations

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
from .row_formats import FEATURES, try_parse_row
from .shards import REFERENCE, list_rows, owner, read_row
from .sources import SUFFIXES, Source, load_source

REFERENCES = Features({"reference": {"part": Value("int32"), **REFERENCE}})

Seed = tuple[int, ...]
PERMUTED_FILES = 32  # Parquet files whose row groups are permuted together: the metadata of all of them is read first


def load_sources(sources: list[Source], stopping_strategy: str = "all_exhausted_without_replacement") -> Mixture:
    """
    Load several sources as one mixture.

    Args:
        sources: The sources. All of them have weights, or none: they are then sampled in proportion to their rows.
        stopping_strategy: When an epoch ends, as in `datasets.interleave_datasets`. By default, an epoch contains each
            row once. With "first_exhausted" or "all_exhausted", the weights hold until the end of the epoch.

    Raises:
        ValueError: if only some sources have a weight, or a streamed source, whose length is not known, has none.
    """
    parts = [_load_part(source) for source in sources]
    lengths = [len(part.rows) if isinstance(part, Table) else None for part in parts]
    weights = [source.weight for source in sources]
    if len(sources) > 1 and None in weights:
        if weights != [None] * len(sources) or None in lengths:
            raise ValueError(
                "Give all sources of a mixture a `weight`, or none of them; all need one if a source is streamed, "
                f"since its length is not known. Got {weights} for {[source.title for source in sources]}"
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
    """Return the URLs of the files of a dataset on the Hub, if all of them are Parquet files."""
    path = Path(source.path)
    if path.exists() or len(path.parts) > 2 or path.suffix in SUFFIXES:
        return []
    data_files = load_dataset_builder(source.path).config.data_files or {}
    files = [str(file) for file in data_files.get(source.split, ())]
    return files if all(file.endswith(".parquet") for file in files) else []


def as_mixture(rows: Dataset | IterableDataset | Mixture) -> Mixture:
    """Wrap a dataset as a mixture of one part."""
    if isinstance(rows, Mixture):
        return rows
    return Mixture([Table(rows) if isinstance(rows, Dataset) else Streamed(rows)])


@dataclass
class Mixture:
    """
    Several sources, mixed at random. Each source is permuted again for each epoch.

    Args:
        parts: The sources, as [`Table`]s, [`Shards`] and [`Streamed`].
        probabilities: The sampling probability of each part, if there are several.
        stopping_strategy: When an epoch ends, as in `datasets.interleave_datasets`.
    """

    parts: list[Table | Shards | Streamed]
    probabilities: list[float] | None = None
    stopping_strategy: str = "all_exhausted_without_replacement"

    @property
    def streamed(self) -> list[Streamed]:
        return [part for part in self.parts if isinstance(part, Streamed)]

    @property
    def length(self) -> int | None:
        """The number of rows in an epoch, if it is known."""
        known = all(isinstance(part, Table) for part in self.parts)
        if not known or (len(self.parts) > 1 and self.stopping_strategy != "all_exhausted_without_replacement"):
            return None
        return sum(len(part.rows) for part in self.parts)

    def columns(self) -> Dataset:
        """Return a dataset of one empty row, from which TRL reads the column names and the conversational format."""
        rows = self.parts[0].rows if not isinstance(self.parts[0], Shards) else None
        names = list(FEATURES if rows is None else rows.column_names or next(iter(rows)))
        row = {**dict.fromkeys(names), "messages": [{"role": "user", "content": ""}]}
        return Dataset.from_list([row])

    def epoch(self, number: int, seed: int, rank: int = 0, world_size: int = 1) -> IterableDataset:
        """Return the stream of references and rows of an epoch for one rank."""
        streams = [part.stream(i, (seed, number, i), rank, world_size) for i, part in enumerate(self.parts)]
        if len(streams) == 1:
            return streams[0]
        seed = int(np.random.default_rng((seed, number)).integers(1 << 31))
        return interleave_datasets(streams, self.probabilities, seed, stopping_strategy=self.stopping_strategy)

    def divides(self, world_size: int) -> bool:
        """Whether each rank reads its own shards: needed for streamed rows, possible if the shards can be divided."""
        counts = [part.rows.num_shards for part in self.streamed]
        return bool(counts) and world_size > 1 and all(count % world_size == 0 for count in counts)

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        """Read the row of a reference; a row is returned unchanged."""
        reference = row.get("reference")
        return row if reference is None else self.parts[reference["part"]].read(reference)

    def name(self, row: dict[str, Any]) -> tuple[str, str]:
        """Return the names of the source and the row, without reading the row if possible."""
        reference = row.get("reference")
        if reference is None:
            return str(row.get("source")), str(row.get("id"))
        return self.parts[reference["part"]].name(reference)


# --- parts of a mixture ----------------------------------------------------------------------------------------------


@dataclass
class Table:
    """Rows with random access. All of them are permuted."""

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
    Parquet or WebDataset files. The files are permuted, and so are the row groups of 32 Parquet files at a time; the
    loader shuffles the rows in blocks of the stream.
    """

    source: Source
    files: list[str]

    def stream(self, part: int, seed: Seed, rank: int, world_size: int) -> IterableDataset:
        files = [self.files[index] for index in np.random.default_rng(seed).permutation(len(self.files))]
        count = 1 if files[0].endswith(".tar") else PERMUTED_FILES
        groups = [files[first : first + count] for first in range(0, len(files), count)]
        share = {"part": part, "groups": groups, "seed": seed, "rank": rank, "world_size": world_size}
        return IterableDataset.from_generator(_list_references, features=REFERENCES, gen_kwargs=share)

    def read(self, reference: dict[str, Any]) -> dict[str, Any]:
        row, name = read_row(reference)
        folder = "" if is_address(reference["file"]) else str(Path(reference["file"]).absolute().parent)
        location = f"{reference['file']}, row {reference['row']}"
        return try_parse_row(row, self.source.title, name, folder, self.source.media, location)

    def name(self, reference: dict[str, Any]) -> tuple[str, str]:
        return self.source.title, f"{reference['file']}#{reference['row']}"


@dataclass
class Streamed:
    """Rows that can only be read in sequence: the stream contains the rows themselves. Their shards are permuted."""

    rows: IterableDataset

    def stream(self, part: int, seed: Seed, rank: int, world_size: int) -> IterableDataset:
        count = self.rows.num_shards
        if count == 1:
            return self.rows
        order = np.random.default_rng(seed).permutation(count)[rank::world_size]
        return concatenate_datasets([self.rows.shard(count, index) for index in order])


def _permuted(part: int, count: int, seed: Seed, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
    for row in np.random.default_rng(seed).permutation(count)[rank::world_size]:
        yield {"reference": {"part": part, "file": None, "row": int(row), "members": None, "group": None}}


def _list_references(
    part: int, groups: list[list[str]], seed: Seed, rank: int, world_size: int
) -> Iterator[dict[str, Any]]:
    for files in groups:
        for reference in list_rows(files, seed):
            if owner(reference, reference["row"], world_size) == rank:
                yield {"reference": {"part": part, **reference}}
