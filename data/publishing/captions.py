"""
Publish the captions of `pllava caption` as a dataset on the Hub, and append those of later runs.

A push reads what tells rows apart from the dataset's files, not their clips, and adds the rows that are not there in
one commit, together with the card. If another process commits in the meantime, the push starts again, so that
neither's rows are lost or doubled. `datasets.push_to_hub` replaces a split, and embeds clips that are not checked.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value, Video
from datasets.utils.py_utils import convert_file_size_to_int
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi, HfFileSystem
from tqdm import tqdm

from ...hub_cards.cards.dataset_cards import CaptionSummary, build_captions_card
from ...hub_cards.cards.rendering import METHOD_FIGURE
from ...hub_cards.uploading import commit_on_newest, create_repository, explaining_errors
from ...origins import published_name
from ..media import Medium, content_hash, find_medium
from .parquet_files import group_rows, upload_shard, why_not_embeddable, write_shards

Row = dict[str, Any]

COLUMNS = {
    "caption": Value("string"),
    "prompt": Value("string"),
    "prompt_hash": Value("string"),
    "flags": List(Value("string")),
    "model": Value("string"),
    "revision": Value("string"),
    "adapter": Value("string"),
    "adapter_revision": Value("string"),
    "alpha": Value("float64"),
    "num_frames": Value("int32"),
    "frames": List(Value("int32")),
    "sampling": Value("string"),
    "pooling": Value("string"),
    "dtype": Value("string"),
    "quantization": Value("string"),
    "max_new_tokens": Value("int32"),
    "start": Value("float64"),
    "end": Value("float64"),
    "sha256": Value("string"),
    "time": Value("string"),
}
# The other columns say how a caption was made
NOT_IN_KEY = ("video", "caption", "prompt_hash", "flags", "frames", "sha256", "time")
OUR_FILES = r"\.gitattributes|README\.md|method\.png|data/train-\d{5}\.parquet"
# Row groups are larger than those of training data: a later push sends one request for each
ROW_GROUP_BYTES, ROW_GROUP_ROWS = 32_000_000, 10_000


@dataclass
class CaptionPush:
    """What became of the rows of a file: each is counted once."""

    repo_id: str
    added: int = 0
    present: int = 0  # in the dataset already
    failed: int = 0  # rows with an error instead of a caption
    left_out: dict[str, str] = field(default_factory=dict)  # why a clip could not be embedded, by its name
    addresses: int = 0  # added rows whose clips are URLs, which are not embedded
    shards: int = 0
    bytes: int = 0  # of the Parquet files


@dataclass
class _Published:
    """What a dataset holds at a commit."""

    commit: str
    shards: list[str] = field(default_factory=list)
    embedded: bool | None = None  # None: it is empty
    license: str | None = None
    keys: set[bytes] = field(default_factory=set)
    summary: CaptionSummary = field(default_factory=CaptionSummary)

    @property
    def next_shard(self) -> int:
        """The number of the next shard. Earlier ones may have been removed."""
        return int(re.search(r"\d+", self.shards[-1])[0]) + 1 if self.shards else 0

    def add(self, row: Row) -> None:
        """Count a row, whose `video` is a name."""
        self.keys.add(_key(row))
        self.summary.add(row)


def publish_captions(
    rows: list[Row],
    repo_id: str,
    embed_clips: bool = False,
    private: bool = False,
    license: str | None = None,
    max_shard_size: str = "500MB",
) -> CaptionPush:
    """
    Add the captions that a dataset on the Hub does not have yet, in a single commit. After a failure, call it again.

    Args:
        rows: Lines of the file that `pllava caption` writes, one for each caption and each clip that failed.
        repo_id: The dataset: a new one, or one that this function has made.
        embed_clips: Whether rows hold the clips' files. Else they name them.
        license: The license of the videos, for the card; by default the one that the card has.
        max_shard_size: The limit of a Parquet file. One file at a time is on disk, a row group of 32 MB in memory.

    Raises:
        OSError: if the Hub cannot be reached or refuses: the message says what to do.
        ValueError: if there is no caption, or the dataset was not made by this function, or its rows hold clips and
            these do not, or the other way round, or `private` is asked for and it is public.
    """
    max_bytes = convert_file_size_to_int(max_shard_size)
    if not any("caption" in row for row in rows):
        raise ValueError(f"{repo_id}: there is nothing to publish, since none of the {len(rows)} rows has a caption")
    with explaining_errors(repo_id):
        repo_id = create_repository(repo_id, "dataset", private)
        return commit_on_newest(lambda: _append(rows, repo_id, embed_clips, license, max_bytes))


def _append(rows: list[Row], repo_id: str, embed: bool, license: str | None, max_bytes: int) -> CaptionPush:
    api = HfApi()
    published = _read_published(api, repo_id)
    if published.embedded not in (None, embed):
        has, option = ("has clips in its rows", "with") if published.embedded else ("names its clips", "without")
        raise ValueError(f"{repo_id} {has}, so push to it {option} --push-clips, or choose another dataset")
    push = CaptionPush(repo_id, failed=sum("caption" not in row for row in rows))
    features = Features({"video": Video(decode=False) if embed else Value("string"), **COLUMNS})
    new = tqdm(_new_rows(rows, published, embed, push), "Publishing", unit="caption", delay=2)
    groups = group_rows(new, features.arrow_schema, _size, min(ROW_GROUP_BYTES, max_bytes), ROW_GROUP_ROWS)
    shards = []
    with TemporaryDirectory() as folder:
        for file in write_shards(groups, Path(folder), "train", max_bytes, published.next_shard):
            push.shards, push.bytes = push.shards + 1, push.bytes + file.stat().st_size
            shards.append(upload_shard(api, repo_id, file))
    if shards or published.shards and license not in (None, published.license):
        card = build_captions_card(repo_id, published.summary, embed, license or published.license)
        api.create_commit(
            repo_id,
            [
                *shards,
                CommitOperationAdd("README.md", str(card).encode()),
                CommitOperationAdd(METHOD_FIGURE.name, METHOD_FIGURE),
            ],
            commit_message=f"Add {push.added} captions",
            repo_type="dataset",
            parent_commit=published.commit,
        )
    return push


# --- what is there ---------------------------------------------------------------------------------------------------


def _read_published(api: HfApi, repo_id: str) -> _Published:
    """
    Read the commit, the keys and the counts of a dataset.

    Raises:
        ValueError: if it has a file that [`publish_captions`] did not write.
    """
    info = api.repo_info(repo_id, repo_type="dataset")
    names = sorted(file.rfilename for file in info.siblings)
    published = _Published(info.sha, [name for name in names if name.startswith("data/")])
    foreign = [name for name in names if not re.fullmatch(OUR_FILES, name)]
    if not published.shards:  # a card without data is somebody's text
        foreign += [name for name in names if name == "README.md"]
    system = HfFileSystem()
    for name in [] if foreign else published.shards:
        # Without a cache of its own, the file reads no more than what Parquet asks for
        with system.open(f"datasets/{repo_id}@{info.sha}/{name}", cache_type="none") as opened:
            foreign += [] if _read_shard(pq.ParquetFile(opened), published) else [name]
    if foreign:
        raise ValueError(
            f"{repo_id} holds files that this command did not write ({foreign[0]}): choose another dataset"
        )
    if "README.md" in names:
        card = DatasetCard.load(api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=info.sha))
        published.license = card.data.get("license_name") or card.data.license
    return published


def _read_shard(file: pq.ParquetFile, published: _Published) -> bool:
    """Count a shard's rows without reading their clips. Returns whether its columns are ours."""
    schema = file.schema_arrow
    if schema.names != ["video", *COLUMNS]:
        return False
    published.embedded = pa.types.is_struct(schema.field("video").type)
    columns = ["video.path" if published.embedded else "video", *COLUMNS]
    for batch in file.iter_batches(columns=columns):
        for row in batch.to_pylist():
            name = row["video"]["path"] if published.embedded else row["video"]
            published.add({**row, "video": name})
    return True


def _key(row: Row) -> bytes:
    """Return a hash of what tells a row apart: its clip, and how its caption was made."""
    made = {name: value for name, value in row.items() if name not in NOT_IN_KEY}
    for name in ("model", "adapter"):
        if row["revision" if name == "model" else "adapter_revision"]:  # which is the same whatever the folder's name
            del made[name]
    # Several clips may have the same name: if there is no hash, the captions tell them apart
    clip = row["sha256"] or [row["video"], row["caption"]]
    return hashlib.sha256(json.dumps([clip, made], sort_keys=True).encode()).digest()


# --- what is new -----------------------------------------------------------------------------------------------------


def _new_rows(rows: Iterable[Row], published: _Published, embed: bool, push: CaptionPush) -> Iterator[Row]:
    """Yield the rows that the dataset lacks, and count all."""
    for line in rows:
        if "caption" not in line:
            continue
        medium = find_medium(line.get("path", line["video"]))
        row = _public_row(line, medium)
        if _key(row) in published.keys:
            push.present += 1
            continue
        content = None
        if embed and medium.file is not None:
            if problem := _why_left_out(medium.file, line.get("sha256")):
                push.left_out[line["video"]] = problem
                continue
            content = medium.file.read_bytes()
        published.add(row)
        push.added, push.addresses = push.added + 1, push.addresses + (embed and medium.file is None)
        yield {**row, "video": {"path": row["video"], "bytes": content}} if embed else row


def _public_row(line: Row, medium: Medium) -> Row:
    """Return the columns of a line, without folders of this machine and secrets of URLs."""
    row = {name: line.get(name) for name in COLUMNS}
    # Numbers as they are read again, since they are in the key
    row |= {name: float(row[name]) for name in ("alpha", "start", "end") if row[name] is not None}
    row |= {name: row[name] and published_name(row[name]) for name in ("model", "adapter")}
    return {"video": medium.file.name if medium.file else medium.name, **row}


def _why_left_out(file: Path, sha256: str | None) -> str | None:
    if not file.exists():
        return "there is no such file any more"
    if problem := why_not_embeddable(file):
        return problem
    return "it has changed since it was captioned" if sha256 and content_hash(find_medium(file)) != sha256 else None


def _size(row: Row) -> int:
    content = row["video"]["bytes"] if isinstance(row["video"], dict) else None
    return len(content or b"") + len(row["caption"])
