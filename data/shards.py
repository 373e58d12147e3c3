"""
Rows of Parquet and WebDataset files by reference: where each row lies is listed in advance, its bytes are read when
its turn comes. Of a tar file, these alone. Of a Parquet file only a row group can be read, from its start on: groups
are read by [`GroupReader`], from start to end, and each belongs to one process where there are enough of its size.
"""

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from ..workers import with_retries

REFERENCE = Features(
    {
        "file": Value("string"),
        "row": Value("int64"),
        "members": List({"name": Value("string"), "offset": Value("int64"), "size": Value("int64")}),
        "group": {  # of a Parquet file; none where a row is read by itself
            "number": Value("int64"),
            "turn": Value("int64"),  # its place in the order of `turns` groups of its size
            "turns": Value("int64"),
            "row_bytes": Value("int64"),
        },
    }
)
SMALL_GROUP = 64_000  # bytes of a row group that is read anew for each of its rows: asking costs as much as reading
TOGETHER = 32  # row groups whose rows take turns, so that large groups of different files are mixed
AT_ONCE = 8  # files that are read from
BUFFER = 1_000_000  # bytes that a column of an open row group is read in
PART = 4_000_000  # bytes of a row group that are decoded at once


def list_rows(files: list[str], seed: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """
    The references to all rows of `.parquet` or `.tar` files, paths or URLs; only their indices are read. The row
    groups of all these Parquet files are permuted, and the rows of 32 of them take turns.
    """
    for file in files:
        if file.endswith(".tar"):
            yield from _list_tar(file)
    parquet = [file for file in files if not file.endswith(".tar")]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = [group for groups in threads.map(_list_groups, parquet) for group in groups]
    groups = [found[index] for index in np.random.default_rng(seed).permutation(len(found))]
    alike = defaultdict(list)  # by their number of rows, so that processes which take turns have equally many
    for group in groups:
        if group.bytes > SMALL_GROUP:
            alike[group.rows].append(group)
    turns = {group: (turn, len(same)) for same in alike.values() for turn, group in enumerate(same)}
    for first in range(0, len(groups), TOGETHER):
        rows = (group.references(*turns.get(group, (None, 0))) for group in groups[first : first + TOGETHER])
        for references in zip_longest(*rows):
            yield from filter(None, references)


def owner(reference: dict[str, Any] | None, position: int, world_size: int) -> int:
    """
    The process that reads a row. Of the row groups with as many rows as each other, all have equally many, each whole;
    of the groups that are left over, and of all else, they take the rows by turns.
    """
    group = reference and reference["group"]
    if group and group["turn"] < group["turns"] - group["turns"] % world_size:
        return group["turn"] % world_size
    return position % world_size


def read_row(reference: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """
    The row that a reference stands for, and its name.

    Raises:
        ValueError: if a [`GroupReader`] could not read it.
    """
    file, number, content = reference["file"], reference["row"], reference.get("content")
    name = file.rsplit("/")[-1]
    if isinstance(content, ValueError):
        raise content
    if reference["members"] is None:
        row = content or _read_parquet(file, number)
        return row, str(row.get("id") or f"{name}#{number}")
    row = _read_members(file, reference["members"])
    return row, f"{name}/{row['__key__']}"


@contextmanager
def _named(file: str) -> Iterator[None]:
    try:
        yield
    except (OSError, tarfile.TarError, pa.ArrowException) as error:
        raise ValueError(f"{file} is no whole file of rows: {error}") from error


# --- Parquet ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """A row group: its number in a file, the number of its first row, how many rows it has, and their size."""

    file: str
    number: int
    first: int
    rows: int
    bytes: int

    def references(self, turn: int | None, turns: int) -> Iterator[dict[str, Any]]:
        group = {"number": self.number, "turn": turn, "turns": turns, "row_bytes": self.bytes // max(1, self.rows)}
        for row in range(self.first, self.first + self.rows):
            yield {"file": self.file, "row": row, "members": None, "group": None if turn is None else group}


def _list_groups(file: str) -> list[_Group]:
    with _named(file):
        metadata, groups, first = _metadata(file), [], 0
    for number in range(metadata.num_row_groups):
        described = metadata.row_group(number)
        groups.append(_Group(file, number, first, described.num_rows, described.total_byte_size))
        first += described.num_rows
    return groups


class GroupReader:
    """
    Reads the rows of large row groups ahead of their turn. A group is read once, from its start on, as far as its rows
    are asked for: it is kept open for those that come next, and holds a part of about 4 MB.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], _OpenGroup] = {}
        self._is_stopped = False

    def read(self, references: list[dict[str, Any]]) -> None:
        """Adds to each reference its row as `content`, or the error where that cannot be read."""
        asked = defaultdict(list)
        for reference in references:
            asked[reference["file"], reference["group"]["number"]].append(reference)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            opened = zip(asked, threads.map(self._try_read, asked, asked.values()), strict=True)
            self._open = {key: group for key, group in opened if group is not None and not group.is_through}

    def stop(self) -> None:
        """Groups that are still to be read, in another thread, are not needed any more."""
        self._is_stopped = True

    def _try_read(self, key: tuple[str, int], references: list[dict[str, Any]]) -> "_OpenGroup | None":
        if self._is_stopped:
            return None
        references.sort(key=lambda reference: reference["row"])
        try:
            return with_retries(self._read, key, references)
        except (OSError, ValueError, pa.ArrowException) as error:
            for reference in references:
                reference.setdefault("content", ValueError(f"{key[0]} cannot be read: {error}"))
            return None

    def _read(self, key: tuple[str, int], references: list[dict[str, Any]]) -> "_OpenGroup":
        group = self._open.pop(key, None)
        if group is None or references[0]["row"] < group.first:
            group = _OpenGroup(*key)
        for reference in references:
            reference["content"] = group.read(reference["row"])
        return group


class _OpenGroup:
    """A row group that is read from its start to its end."""

    def __init__(self, file: str, number: int):
        parquet = pq.ParquetFile(fsspec.open(file).open(), metadata=_metadata(file), buffer_size=BUFFER)
        described = parquet.metadata.row_group(number)
        rows = max(1, described.num_rows * PART // described.total_byte_size)
        self.file, self.number = file, number
        self.first = sum(parquet.metadata.row_group(before).num_rows for before in range(number))
        self.end = self.first + described.num_rows
        self.batch: pa.RecordBatch | tuple = ()
        self.batches = parquet.iter_batches(rows, row_groups=[number], use_threads=False)
        self.is_through = False

    def read(self, row: int) -> dict[str, Any]:
        while row >= self.first + len(self.batch):
            self.first += len(self.batch)
            self.batch = next(self.batches, None)
            if self.batch is None:
                raise ValueError(f"row group {self.number} has fewer rows than the file says")
        self.is_through = row == self.end - 1
        return self.batch.slice(row - self.first, 1).to_pylist()[0]


def _read_parquet(file: str, row: int) -> dict[str, Any]:
    """A row by itself: its whole group is read."""
    group = next(group for group in _list_groups(file) if row < group.first + group.rows)
    table = _open(file, os.getpid()).read_row_group(group.number, use_threads=False)
    return table.slice(row - group.first, 1).to_pylist()[0]


@lru_cache(maxsize=64)
def _metadata(file: str) -> pq.FileMetaData:
    with fsspec.open(file) as opened:
        return pq.read_metadata(opened)


@lru_cache(maxsize=16)
def _open(file: str, process: int) -> pq.ParquetFile:
    # Not shared by processes: they would move each other's position in the file
    return pq.ParquetFile(fsspec.open(file).open(), metadata=_metadata(file))


# --- WebDataset ------------------------------------------------------------------------------------------------------


def _list_tar(file: str) -> Iterator[dict[str, Any]]:
    """A row's members follow each other, and differ in what is behind the first dot."""
    with _named(file), tarfile.open(file, "r:") as tar:
        members = ({"name": item.name, "offset": item.offset_data, "size": item.size} for item in tar if item.isfile())
        rows = groupby(members, key=lambda member: base_plus_ext(member["name"])[0])
        for number, row in enumerate(list(row) for key, row in rows if key is not None):
            yield {"file": file, "row": number, "members": row, "group": None}


def _read_members(file: str, members: list[dict[str, Any]]) -> dict[str, Any]:
    """The members' contents, each under what is behind its name's first dot."""
    row = {"__key__": base_plus_ext(members[0]["name"])[0], "__url__": file}
    with Path(file).open("rb") as tar:
        for member in members:
            tar.seek(member["offset"])
            content = tar.read(member["size"])
            suffix = base_plus_ext(member["name"])[1]
            decode = WebDataset.DECODERS.get(suffix.split(".")[-1].lower())
            row[suffix] = decode(content) if decode else {"path": member["name"], "bytes": content}
    return row
