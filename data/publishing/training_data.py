"""
Publish a local source as a dataset on the Hub, with its clips in Parquet files.

`datasets.push_to_hub` can push a stream as well. But it builds one file in memory for each shard of the stream, and
does not embed clips that are files. Here, each file is written to disk up to the requested size, uploaded and removed.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features
from datasets.utils.py_utils import convert_file_size_to_int
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from tqdm import tqdm
from transformers import AutoProcessor

from ... import NANO
from ...hub_cards.cards.dataset_cards import build_dataset_card
from ...hub_cards.cards.rendering import METHOD_FIGURE
from ...hub_cards.uploading import commit_on_newest, create_repository, explaining_errors
from ..inspection import ClipStatistics, find_problems, format_problem, inspect_rows
from ..media import find_medium
from ..row_formats import FEATURES
from ..sources import Source, load_source
from .parquet_files import group_rows, upload_shard, why_not_embeddable, write_shards

SPLITS_FILE = "splits.json"  # in the repository: the fields of each `Split`, from which the card is written
SHUFFLE_SEED = 0  # datasets are streamed in order, and neighbouring rows should not share a clip or a task
SHUFFLE_BUFFER = 100  # rows of a streamed source that are in memory, with their clips, to be shuffled
ROW_GROUP_BYTES, ROW_GROUP_ROWS = 2_000_000, 1000


@dataclass
class Split:
    """The content of a split, and how much of the source was left out."""

    source: str
    license: str | None
    columns: list[str]
    samples: int = 0
    clips: int = 0  # a clip is embedded in each sample that uses it
    images: int = 0
    malformed: int = 0  # samples that were left out because they are not conversations
    left_out_samples: int = 0
    left_out_clips: int = 0  # missing or unreadable clips and images, each counted once
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
    Upload the rows of `source`, with the bytes of their clips, as one split of a dataset. The rows become visible in a
    single commit at the end. After a failure, call it again: files that were uploaded are not uploaded twice.

    Args:
        repo_id: The dataset: a new one, or one that this function has made. The split is replaced, others stay.
        max_shard_size: The limit of a Parquet file. One file at a time is on disk, and a few row groups of 2 MB are in
            memory.
        workers: Processes that check the clips before they are uploaded.
        report: Is called with a line about each problem because of which a sample is left out.

    Raises:
        OSError: if the Hub cannot be reached or refuses: the message says what to do.
        ValueError: if no sample can be read, the dataset was not made by this function or has other columns, or
            `private` is asked for and it is public.
    """
    if not re.fullmatch(r"\w+", split):
        raise ValueError(f"The name of a split consists of letters, digits and underscores; got {split!r}")
    max_bytes = convert_file_size_to_int(max_shard_size)
    counts = Split(source.title, source.license, [])
    rows = usable_rows(source, workers, counts, report)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{source.path}: none of its {counts.left_out_samples} samples can be read")
    counts.columns = [name for name in FEATURES if first[name] is not None]  # `chosen` only for preferences
    api = HfApi()
    with explaining_errors(repo_id):
        repo_id = create_repository(repo_id, "dataset", private)
        _read_published(api, repo_id, split, counts)  # before anything is uploaded
        shards = _upload(api, repo_id, split, chain([first], rows), max_bytes, counts)
        commit_on_newest(lambda: _commit(api, repo_id, split, shards, counts))
    return counts


def _commit(api: HfApi, repo_id: str, split: str, shards: list[CommitOperationAdd], counts: Split) -> None:
    """Make uploaded files the split, in one commit with the card and without the split's earlier files."""
    commit, present, splits = _read_published(api, repo_id, split, counts)
    splits[split] = asdict(counts)
    texts = {
        SPLITS_FILE: json.dumps(splits, indent=2, ensure_ascii=False),
        "README.md": str(build_dataset_card(repo_id, splits)),
    }
    old = {name for name in present if name.startswith(f"data/{split}-")} - {shard.path_in_repo for shard in shards}
    operations = [*shards, *(CommitOperationAdd(name, text.encode()) for name, text in texts.items())]
    operations += [CommitOperationAdd(METHOD_FIGURE.name, METHOD_FIGURE)]
    operations += [CommitOperationDelete(name) for name in old]
    api.create_commit(repo_id, operations, commit_message=f"Upload {split}", repo_type="dataset", parent_commit=commit)


def _read_published(
    api: HfApi, repo_id: str, split: str, counts: Split
) -> tuple[str, set[str], dict[str, dict[str, Any]]]:
    """
    Return the newest commit of a dataset, its files, and its splits as `SPLITS_FILE` has them.

    Raises:
        ValueError: if it has a file that [`publish`] did not write, or splits with other columns.
    """
    info = api.repo_info(repo_id, repo_type="dataset")
    present, splits = {file.rfilename for file in info.siblings}, {}
    if SPLITS_FILE in present:
        file = api.hf_hub_download(repo_id, SPLITS_FILE, repo_type="dataset", revision=info.sha)
        splits = json.loads(Path(file).read_text(encoding="utf-8"))
    elif present - {".gitattributes"}:
        raise ValueError(f"{repo_id} holds files that this command did not write: choose another dataset")
    for name, other in splits.items():
        if name != split and other["columns"] != counts.columns:
            raise ValueError(
                f"{split} would have the columns {counts.columns}, but {name}, which is in {repo_id} already, has "
                f"{other['columns']}. All splits of a dataset have the same columns: choose another dataset"
            )
    return info.sha, present, splits


# --- rows ------------------------------------------------------------------------------------------------------------


def usable_rows(
    source: Source, workers: int, counts: Split, report: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield the rows that can be trained on, shuffled, with the bytes of their clips; count and report the others."""
    rows, unusable = load_source(source), set()
    total = len(rows) if isinstance(rows, Dataset) else None
    rows = rows.shuffle(SHUFFLE_SEED) if total else rows.shuffle(SHUFFLE_SEED, buffer_size=SHUFFLE_BUFFER)
    processor = AutoProcessor.from_pretrained(NANO)  # any processor: the number of tokens is not used
    for row, _, clips in tqdm(inspect_rows(rows, processor, workers, {}), source.title, total, unit="sample"):
        clips = {key: _check_embeddable(clip) for key, clip in clips.items()}
        if problems := find_problems(row, clips.values()):
            unusable |= {key for key, clip in clips.items() if clip.problem}
            counts.left_out_samples, counts.left_out_clips = counts.left_out_samples + 1, len(unusable)
            counts.malformed += row["error"] is not None
            for problem in problems:
                report(f"left out: {format_problem(source.title, problem)}")
            continue
        counts.samples += 1
        counts.clips += len(row["videos"])
        counts.images += len(row["images"])
        yield {**row, **{name: [_embed(item) for item in row[name]] for name in ("videos", "images")}}


def _check_embeddable(clip: ClipStatistics) -> ClipStatistics:
    """Add a problem to a clip that can be trained on, but cannot be embedded in a Parquet file."""
    file = find_medium(clip.name).file
    if clip.problem or file is None or not os.path.exists(file):  # embedded bytes may have any name
        return clip
    return replace(clip, problem=why_not_embeddable(file))


def _embed(item: dict[str, Any]) -> dict[str, Any]:
    """Return the clip with the bytes of its file, and without its folder. URLs are not embedded."""
    medium = find_medium(item)
    if medium.file is not None:
        return {**item, "path": medium.file.name, "bytes": medium.file.read_bytes()}
    return {**item, "path": item["path"] and Path(item["path"]).name} if item["bytes"] is not None else item


# --- files -----------------------------------------------------------------------------------------------------------


def _upload(
    api: HfApi, repo_id: str, split: str, rows: Iterable[dict[str, Any]], max_bytes: int, counts: Split
) -> list[CommitOperationAdd]:
    """Upload the rows, one file at a time. Returns the operations to commit."""
    shards = []
    groups = row_groups(rows, counts.columns, max_bytes)
    with TemporaryDirectory() as folder:
        for file in write_shards(groups, Path(folder), split, max_bytes):
            counts.shards, counts.bytes = counts.shards + 1, counts.bytes + file.stat().st_size
            shards.append(upload_shard(api, repo_id, file))
    return shards


def row_groups(rows: Iterable[dict[str, Any]], columns: list[str], max_bytes: int) -> Iterator[pa.Table]:
    """
    Collect rows to the row groups of Parquet files of at most `max_bytes`.

    Args:
        rows: In the form of `FEATURES`, with the bytes of their clips.
        columns: The columns to write.
    """
    schema = Features({name: FEATURES[name] for name in columns}).arrow_schema
    rows = map(partial(_check_columns, columns), rows)
    return group_rows(rows, schema, _clip_bytes, min(ROW_GROUP_BYTES, max_bytes), ROW_GROUP_ROWS)


def _check_columns(columns: list[str], row: dict[str, Any]) -> dict[str, Any]:
    if any(row[name] for name in FEATURES.keys() - columns):
        raise ValueError(
            f"{row['source']} {row['id']} is a preference, but the first row is not: publish them separately"
        )
    return row


def _clip_bytes(row: dict[str, Any]) -> int:
    return sum(len(item["bytes"] or b"") for item in row["videos"] + row["images"])
