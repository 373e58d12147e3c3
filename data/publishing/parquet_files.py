"""Parquet files of a dataset, written and uploaded one at a time: neither memory nor disk holds all of them."""

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, HfApi

MAX_CLIP_BYTES = 2**31 - 1  # the limit of a value in a Parquet file


def why_not_embeddable(file: Path) -> str | None:
    """Return why a clip that can be read cannot be a value in a Parquet file; None if it can."""
    if file.is_dir():
        return "a folder of images cannot be embedded: make a video of it"
    if file.stat().st_size > MAX_CLIP_BYTES:
        return "it has more than 2 GB, the limit in a Parquet file: cut it"
    return None


def group_rows(
    rows: Iterable[dict[str, Any]],
    schema: pa.Schema,
    size: Callable[[dict[str, Any]], int],
    max_bytes: int,
    max_rows: int,
) -> Iterator[pa.Table]:
    """
    Collect rows to tables of at most `max_bytes` and `max_rows`, or of a single row; each becomes a row group.

    Args:
        size: Returns the bytes of a row's content.
    """
    group, group_bytes = [], 0
    for row in rows:
        row_bytes = size(row)
        if group and (group_bytes + row_bytes > max_bytes or len(group) == max_rows):
            yield pa.Table.from_pylist(group, schema)
            group, group_bytes = [], 0
        group.append(row)
        group_bytes += row_bytes
    if group:
        yield pa.Table.from_pylist(group, schema)


def write_shards(
    tables: Iterator[pa.Table], folder: Path, split: str, max_bytes: int, first: int = 0
) -> Iterator[Path]:
    """
    Write Parquet files of at most `max_bytes`, or of a single table. Each file is written when it is requested.

    Args:
        tables: The row groups.
        first: The number of the first file.
    """
    table = next(tables, None)
    for number in count(first):
        if table is None:
            return
        file, written = folder / f"{split}-{number:05d}.parquet", 0
        with pq.ParquetWriter(file, table.schema) as writer:
            while table is not None and (not written or written + table.nbytes <= max_bytes):
                writer.write_table(table)
                written += table.nbytes
                table = next(tables, None)
        yield file


def upload_shard(api: HfApi, repo_id: str, file: Path) -> CommitOperationAdd:
    """Upload a Parquet file to `data/` of a dataset and remove it here. It becomes visible with a later commit."""
    shard = CommitOperationAdd(f"data/{file.name}", file)
    api.preupload_lfs_files(repo_id, [shard], repo_type="dataset")
    file.unlink()
    return shard
