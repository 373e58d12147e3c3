"""
A local source -> a dataset on the Hub whose Parquet files hold the clips.

`datasets` can push a stream, too. But it makes a file of each of the stream's own shards, in memory, and does not know
that our clips are files. Here a file on the disk is filled to the size that was asked for, uploaded and removed.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features
from datasets.utils.py_utils import convert_file_size_to_int
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from tqdm import tqdm
from transformers import AutoProcessor

from .. import NANO
from ..hub_cards.dataset_card import build_card
from .inspection import Clip, examine, find_problems, format_problem
from .media import find_medium
from .row_formats import FEATURES
from .sources import Source, load_source

SPLITS = "splits.json"  # in the repository: what each split holds; the card is written from it
SEED = 0  # of the order of the rows: a dataset is streamed, and neighbours should not be about one clip or task
STREAMED_TOGETHER = 100  # rows, with their clips, that are held and shuffled where the source is a stream itself
ROW_GROUP = 2_000_000  # bytes, which training reads together for each of their rows
ROW_GROUP_ROWS = 1000
LARGEST_CLIP = 2**31 - 1  # bytes that a value in a column can have


@dataclass
class Split:
    """What a split holds, and what was left out of it."""

    source: str
    license: str | None
    columns: list[str]
    samples: int = 0
    clips: int = 0  # a clip that several samples are about is in each of them
    images: int = 0
    malformed: int = 0  # samples that are no conversations, and are left out
    left_out_samples: int = 0
    left_out_clips: int = 0  # and images: missing or unreadable, each counted once
    shards: int = 0
    bytes: int = 0  # of the Parquet files


def publish(
    source: Source,
    repo_id: str,
    split: str = "train",
    private: bool = False,
    max_shard_size: str = "500MB",
    workers: int = 0,
    report: Callable[[str], None] = print,
) -> Split:
    """
    Puts the rows of `source`, with the bytes of their clips, on the Hub, as one split of a dataset. They appear there
    when all are uploaded. After a failure, do it again: what the Hub has already is not uploaded twice.

    Args:
        repo_id: The dataset. It is new, or one that this function made: the split is replaced, others stay.
        max_shard_size: Of a file. It is on the disk while it is uploaded; in memory are a few row groups of 2 MB.
        workers: Processes that look at the clips first.
        report: Is told of each clip that is left out.

    Raises:
        ValueError: if no sample can be read, or the dataset was made by something else, or with other columns.
    """
    if not re.fullmatch(r"\w+", split):
        raise ValueError(f"A split's name is of letters, digits and underscores; got {split!r}")
    max_bytes = convert_file_size_to_int(max_shard_size)
    counts = Split(source.title, source.license, [])
    rows = kept_rows(source, workers, counts, report)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{source.path}: not one of its {counts.left_out_samples} samples can be read")
    counts.columns = [name for name in FEATURES if first[name] is not None]  # preferences are not everywhere
    api = HfApi()
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True).repo_id
    present = set(api.list_repo_files(repo_id, repo_type="dataset"))
    splits = _read_splits(api, repo_id, present, split, counts)
    shards = _upload(api, repo_id, split, chain([first], rows), max_bytes, counts)
    splits[split] = asdict(counts)
    written = {SPLITS: json.dumps(splits, indent=2, ensure_ascii=False), "README.md": str(build_card(repo_id, splits))}
    old = {name for name in present if name.startswith(f"data/{split}-")} - {shard.path_in_repo for shard in shards}
    additions = shards + [CommitOperationAdd(name, text.encode()) for name, text in written.items()]
    api.create_commit(
        repo_id,
        additions + [CommitOperationDelete(name) for name in old],
        commit_message=f"Upload {split}",
        repo_type="dataset",
    )
    return counts


# --- rows ------------------------------------------------------------------------------------------------------------


def kept_rows(source: Source, workers: int, counts: Split, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows that can be trained on, shuffled, with the bytes of their clips."""
    rows, unfit = load_source(source), set()
    total = len(rows) if isinstance(rows, Dataset) else None
    rows = rows.shuffle(SEED) if total else rows.shuffle(SEED, buffer_size=STREAMED_TOGETHER)
    processor = AutoProcessor.from_pretrained(NANO)  # any: its tokens are not asked for
    for row, _, clips in tqdm(examine(rows, processor, workers, {}), source.title, total, unit="sample"):
        clips = {key: _embeddable(clip) for key, clip in clips.items()}
        if problems := find_problems(row, clips.values()):
            unfit |= {key for key, clip in clips.items() if clip.problem}
            counts.left_out_samples, counts.left_out_clips = counts.left_out_samples + 1, len(unfit)
            counts.malformed += row["error"] is not None
            for problem in problems:
                report(f"left out: {format_problem(source.title, problem)}")
            continue
        counts.samples += 1
        counts.clips += len(row["videos"])
        counts.images += len(row["images"])
        yield {**row, **{name: [_embed(item) for item in row[name]] for name in ("videos", "images")}}


def _embeddable(clip: Clip) -> Clip:
    """The clip; it has a problem, too, where it can be trained on and its bytes cannot be put into a column."""
    file = find_medium(clip.name).file
    if clip.problem or file is None or not os.path.exists(file):  # of bytes, the name is any
        return clip
    if file.is_dir():
        return replace(clip, problem="a folder of images cannot be put into a file: make a video of it")
    if file.stat().st_size > LARGEST_CLIP:
        return replace(clip, problem="it has more than 2 GB, which is the limit in a Parquet file: cut it")
    return clip


def _embed(item: dict[str, Any]) -> dict[str, Any]:
    """A clip with the bytes of its file, and its bare name. An address elsewhere stays one."""
    medium = find_medium(item)
    if medium.file is not None:
        return {**item, "path": medium.file.name, "bytes": medium.file.read_bytes()}
    return {**item, "path": item["path"] and Path(item["path"]).name} if item["bytes"] is not None else item


# --- files -----------------------------------------------------------------------------------------------------------


def _read_splits(api: HfApi, repo_id: str, present: set[str], split: str, counts: Split) -> dict[str, dict[str, Any]]:
    """The splits that are there already; the new one must go with them."""
    if SPLITS not in present:
        if present - {".gitattributes"}:
            raise ValueError(f"{repo_id} holds files that this command did not write: choose another name")
        return {}
    file = api.hf_hub_download(repo_id, SPLITS, repo_type="dataset")
    splits = json.loads(Path(file).read_text(encoding="utf-8"))
    for name, other in splits.items():
        if name != split and other["columns"] != counts.columns:
            raise ValueError(
                f"{split} would have the columns {counts.columns}, but {name}, in {repo_id} already, has "
                f"{other['columns']}, and splits of a dataset have the same: choose another name"
            )
    return splits


def _upload(
    api: HfApi, repo_id: str, split: str, rows: Iterable[dict[str, Any]], max_bytes: int, counts: Split
) -> list[CommitOperationAdd]:
    """Uploads the rows, file by file, and gives what is to be committed."""
    shards = []
    with TemporaryDirectory() as folder:
        for file in write_shards(rows, counts.columns, Path(folder), split, max_bytes):
            shard = CommitOperationAdd(f"data/{file.name}", file)
            counts.shards, counts.bytes = counts.shards + 1, counts.bytes + file.stat().st_size
            api.preupload_lfs_files(repo_id, [shard], repo_type="dataset")
            file.unlink()
            shards.append(shard)
    return shards


def write_shards(
    rows: Iterable[dict[str, Any]], columns: list[str], folder: Path, split: str, max_bytes: int
) -> Iterator[Path]:
    """
    Parquet files of at most `max_bytes`, or of one row; the next one is begun when this one was taken.

    Args:
        rows: In the form of `FEATURES`, with the bytes of their clips.
        columns: Those that are written.
    """
    tables = _tables(rows, columns, min(ROW_GROUP, max_bytes))
    table = next(tables, None)
    for number in count():
        if table is None:
            return
        file, written = folder / f"{split}-{number:05d}.parquet", 0
        with pq.ParquetWriter(file, table.schema) as writer:
            while table is not None and (not written or written + table.nbytes <= max_bytes):
                writer.write_table(table)
                written += table.nbytes
                table = next(tables, None)
        yield file


def _tables(rows: Iterable[dict[str, Any]], columns: list[str], max_bytes: int) -> Iterator[pa.Table]:
    """The rows as tables that are a row group each."""
    schema = Features({name: FEATURES[name] for name in columns}).arrow_schema
    group, held = [], 0
    for row in rows:
        if any(row[name] for name in FEATURES.keys() - columns):
            raise ValueError(
                f"{row['source']} {row['id']} is a preference, and the first row is none: keep them apart"
            )
        size = sum(len(item["bytes"] or b"") for item in row["videos"] + row["images"])
        if group and (held + size > max_bytes or len(group) == ROW_GROUP_ROWS):
            yield pa.Table.from_pylist(group, schema)
            group, held = [], 0
        group.append(row)
        held += size
    yield pa.Table.from_pylist(group, schema)


# --- the card --------------------------------------------------------------------------------------------------------
