"""The captions as a table: Parquet or CSV, beside the JSON Lines file that a run continues."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..extras import needs_extra
from ..files import new_file
from .clips import Row
from .run import batches

ROW_GROUP = 10_000
# The columns of a table and their types in Parquet. A row lacks some of them
TEXTS = (
    "id video path sha256 caption prompt prompt_hash model revision adapter adapter_revision sampling pooling dtype"
)
TEXTS += " quantization time damaged similar_to error"
COLUMNS = {
    **dict.fromkeys(TEXTS.split(), "string"),
    **dict.fromkeys(("bytes", "mtime_ns", "num_frames", "max_new_tokens"), "int64"),
    **dict.fromkeys(("start", "end", "alpha", "similarity"), "float64"),
    **dict.fromkeys(("served", "retried"), "bool"),
    **dict.fromkeys(("flags", "copies"), "list<string>"),
    "frames": "list<int64>",
    "embedding": "list<float>",
}


def write_table(rows: Iterable[Row], file: Path) -> None:
    """
    Write the rows as a table. It appears whole, or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with new_file(file) as new:
        FORMATS[file.suffix](rows, new)


def _write_parquet(rows: Iterable[Row], file: Path) -> None:
    with needs_extra("train"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    types = {
        "string": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "list<string>": pa.list_(pa.string()),
        "list<int64>": pa.list_(pa.int64()),
        "list<float>": pa.list_(pa.float32()),
    }
    schema = pa.schema([(name, types[type]) for name, type in COLUMNS.items()])
    with pq.ParquetWriter(file, schema) as writer:
        for group in batches(rows, ROW_GROUP):
            readable = [{name: _readable(value) for name, value in row.items()} for row in group]
            writer.write_table(pa.Table.from_pylist(readable, schema))


def _write_csv(rows: Iterable[Row], file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="") as content:
        writer = csv.DictWriter(content, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else _readable(value)


def _readable(value: Any) -> Any:
    """Escape what is not UTF-8 in the name of a file: tables cannot hold it."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


FORMATS: dict[str, Callable[[Iterable[Row], Path], None]] = {".parquet": _write_parquet, ".csv": _write_csv}
