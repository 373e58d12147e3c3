"""
Rows of Parquet and WebDataset files by reference: where each row lies is listed in advance, its bytes are read when
its turn comes. Of a tar file, these alone; of a Parquet file its row group is, which should therefore be small.
"""

import os
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

REFERENCE = Features(
    {
        "file": Value("string"),
        "row": Value("int64"),
        "members": List({"name": Value("string"), "offset": Value("int64"), "size": Value("int64")}),
    }
)
SMALL_GROUP = 32_000_000  # bytes of a row group that is kept for the next row
PARTS = 64  # that a larger one is read in, up to the wanted row


def list_rows(files: list[str]) -> Iterator[dict[str, Any]]:
    """The references to all rows of `.parquet` and `.tar` files, paths or URLs; only their indices are read."""
    for file in files:
        try:
            for row, members in enumerate(_list_tar(file) if file.endswith(".tar") else _list_parquet(file)):
                yield {"file": file, "row": row, "members": members}
        except (OSError, tarfile.TarError, pa.ArrowException) as error:
            raise ValueError(f"{file} is no whole file of rows: {error}") from error


def read_row(reference: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The row that a reference stands for, and its name."""
    file, number = reference["file"], reference["row"]
    name = file.rsplit("/")[-1]
    if reference["members"] is None:
        row = _read_parquet(file, number)
        return row, str(row.get("id") or f"{name}#{number}")
    row = _read_members(file, reference["members"])
    return row, f"{name}/{row['__key__']}"


def _list_parquet(file: str) -> Iterator[None]:
    with fsspec.open(file) as opened:
        rows = pq.read_metadata(opened).num_rows
    return iter([None] * rows)


def _list_tar(file: str) -> Iterator[list[dict[str, Any]]]:
    """The members of each row: those that follow each other and differ in what is behind the first dot."""
    with tarfile.open(file, "r:") as tar:
        members = ({"name": item.name, "offset": item.offset_data, "size": item.size} for item in tar if item.isfile())
        for key, row in groupby(members, key=lambda member: base_plus_ext(member["name"])[0]):
            if key is not None:
                yield list(row)


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


def _read_parquet(file: str, row: int) -> dict[str, Any]:
    parquet = _open(file, os.getpid())
    for group in range(parquet.num_row_groups):
        described = parquet.metadata.row_group(group)
        if row < described.num_rows:
            break
        row -= described.num_rows
    if described.total_byte_size <= SMALL_GROUP:
        return _read_group(file, group, os.getpid()).slice(row, 1).to_pylist()[0]
    for batch in parquet.iter_batches(-(-described.num_rows // PARTS), row_groups=[group], use_threads=False):
        if row < len(batch):
            return batch.slice(row, 1).to_pylist()[0]
        row -= len(batch)
    raise ValueError(f"{file}: row group {group} has fewer rows than the file says")


@lru_cache(maxsize=16)
def _open(file: str, process: int) -> pq.ParquetFile:
    # Not shared by processes: they would move each other's position in the file
    return pq.ParquetFile(fsspec.open(file).open())


@lru_cache(maxsize=1)
def _read_group(file: str, group: int, process: int) -> pa.Table:
    return _open(file, process).read_row_group(group, use_threads=False)
