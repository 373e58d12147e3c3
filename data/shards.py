"""
Random access to the rows of Parquet and WebDataset files.

The rows are listed as references first; the bytes of a row are read when it is needed. In a tar file, a row can be
read by itself. In a Parquet file, a row group must be read from its start. [`GroupReader`] therefore reads each large
row group once, from start to end, and each of them belongs to one rank as far as they can be divided evenly.
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
        "members": List({"name": Value("string"), "offset": Value("int64"), "size": Value("int64")}),  # of a tar file
        "group": {  # a large row group of a Parquet file
            "number": Value("int64"),
            "index": Value("int64"),  # among the `count` large groups that have equally many rows
            "count": Value("int64"),
            "row_bytes": Value("int64"),
        },
    }
)
SMALL_GROUP_BYTES = 64_000  # row groups up to this size are read again for each row: the request costs as much
INTERLEAVED_GROUPS = 32  # row groups whose rows are interleaved, so that large groups of several files are mixed
READER_THREADS = 8
COLUMN_BUFFER_BYTES = 1_000_000  # of an open row group
DECODED_BYTES = 4_000_000  # the part of a row group that is decoded at once


def list_rows(files: list[str], seed: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """
    List references to all rows of `.parquet` or `.tar` files (paths or URLs); only metadata are read. The row groups
    of all Parquet files are permuted, and the rows of 32 groups at a time are interleaved.
    """
    for file in files:
        if file.endswith(".tar"):
            yield from _list_tar(file)
    parquet_files = [file for file in files if not file.endswith(".tar")]
    with ThreadPoolExecutor(READER_THREADS) as threads:
        groups = [group for groups in threads.map(_list_groups, parquet_files) for group in groups]
    groups = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    by_size = defaultdict(list)  # ranks are dealt groups with equally many rows
    for group in groups:
        if group.bytes > SMALL_GROUP_BYTES:
            by_size[group.rows].append(group)
    dealt = {group: (index, len(same)) for same in by_size.values() for index, group in enumerate(same)}
    for first in range(0, len(groups), INTERLEAVED_GROUPS):
        rows = (group.references(*dealt.get(group, ())) for group in groups[first : first + INTERLEAVED_GROUPS])
        for references in zip_longest(*rows):
            yield from filter(None, references)


def owner(reference: dict[str, Any] | None, position: int, world_size: int) -> int:
    """
    Return the rank that reads the row at this position of the stream. Large row groups belong to one rank each, and
    all ranks have equally many groups of a size. The rows of all other groups and files are dealt in turn.
    """
    group = reference and reference["group"]
    if group and group["index"] < group["count"] - group["count"] % world_size:
        return group["index"] % world_size
    return position % world_size


def read_row(reference: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """
    Read the row of a reference. Returns the row and its id.

    Raises:
        ValueError: if a [`GroupReader`] could not read the row.
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
def _naming_file(file: str) -> Iterator[None]:
    try:
        yield
    except (OSError, tarfile.TarError, pa.ArrowException) as error:
        raise ValueError(f"{file} is damaged, or not a Parquet or tar file: {error}") from error


# --- Parquet ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """A row group: its number in the file, the number of its first row, its number of rows, and its size in bytes."""

    file: str
    number: int
    first: int
    rows: int
    bytes: int

    def references(self, index: int | None = None, count: int = 0) -> Iterator[dict[str, Any]]:
        row_bytes = self.bytes // max(1, self.rows)
        group = {"number": self.number, "index": index, "count": count, "row_bytes": row_bytes}
        for row in range(self.first, self.first + self.rows):
            yield {"file": self.file, "row": row, "members": None, "group": None if index is None else group}


def _list_groups(file: str) -> list[_Group]:
    with _naming_file(file):
        metadata, groups, first = _read_metadata(file), [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        groups.append(_Group(file, number, first, group.num_rows, group.total_byte_size))
        first += group.num_rows
    return groups


class GroupReader:
    """
    Reads rows of large row groups before they are needed. Each group is read once, from its start, as far as its rows
    are requested. Until its last row it stays open for the next request, with about 4 MB in memory.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], _OpenGroup] = {}
        self._is_stopped = False

    def read(self, references: list[dict[str, Any]]) -> None:
        """Add to each reference its row as `content`, or the error if it cannot be read."""
        by_group = defaultdict(list)
        for reference in references:
            by_group[reference["file"], reference["group"]["number"]].append(reference)
        with ThreadPoolExecutor(READER_THREADS) as threads:
            groups = zip(by_group, threads.map(self._try_read, by_group, by_group.values()), strict=True)
            self._open = {key: group for key, group in groups if group is not None and not group.is_exhausted}

    def stop(self) -> None:
        """Skip the groups that a call of `read` in another thread has not begun."""
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
        parquet = _open(file, buffer_size=COLUMN_BUFFER_BYTES)
        metadata = parquet.metadata.row_group(number)
        rows = max(1, metadata.num_rows * DECODED_BYTES // metadata.total_byte_size)
        self.number = number
        self.first = sum(parquet.metadata.row_group(before).num_rows for before in range(number))
        self.end = self.first + metadata.num_rows
        self.batch: pa.RecordBatch | tuple = ()
        self.batches = parquet.iter_batches(rows, row_groups=[number], use_threads=False)
        self.is_exhausted = False

    def read(self, row: int) -> dict[str, Any]:
        while row >= self.first + len(self.batch):
            self.first += len(self.batch)
            self.batch = next(self.batches, None)
            if self.batch is None:
                raise ValueError(f"row group {self.number} has fewer rows than the metadata say")
        self.is_exhausted = row == self.end - 1
        return self.batch.slice(row - self.first, 1).to_pylist()[0]


def _read_parquet(file: str, row: int) -> dict[str, Any]:
    """Read a row by reading its whole row group."""
    group = next(group for group in _list_groups(file) if row < group.first + group.rows)
    table = _open_in_process(file, os.getpid()).read_row_group(group.number, use_threads=False)
    return table.slice(row - group.first, 1).to_pylist()[0]


@lru_cache(maxsize=64)
def _read_metadata(file: str) -> pq.FileMetaData:
    with fsspec.open(file) as opened:
        return pq.read_metadata(opened)


@lru_cache(maxsize=16)
def _open_in_process(file: str, process_id: int) -> pq.ParquetFile:
    # Forked processes would share the position in the file
    return _open(file)


def _open(file: str, buffer_size: int = 0) -> pq.ParquetFile:
    return pq.ParquetFile(fsspec.open(file).open(), metadata=_read_metadata(file), buffer_size=buffer_size)


# --- WebDataset ------------------------------------------------------------------------------------------------------


def _list_tar(file: str) -> Iterator[dict[str, Any]]:
    """List the rows of a tar file: successive members whose names are equal up to the first dot."""
    with _naming_file(file), tarfile.open(file, "r:") as tar:
        members = ({"name": item.name, "offset": item.offset_data, "size": item.size} for item in tar if item.isfile())
        rows = groupby(members, key=lambda member: base_plus_ext(member["name"])[0])
        for number, row in enumerate(list(row) for key, row in rows if key is not None):
            yield {"file": file, "row": number, "members": row, "group": None}


def _read_members(file: str, members: list[dict[str, Any]]) -> dict[str, Any]:
    """Read the members' contents, with their suffixes as keys."""
    row = {"__key__": base_plus_ext(members[0]["name"])[0], "__url__": file}
    with Path(file).open("rb") as tar:
        for member in members:
            tar.seek(member["offset"])
            content = tar.read(member["size"])
            suffix = base_plus_ext(member["name"])[1]
            decode = WebDataset.DECODERS.get(suffix.split(".")[-1].lower())
            row[suffix] = decode(content) if decode else {"path": member["name"], "bytes": content}
    return row
