"""Lists of videos, with a prompt and bounds for each row: JSON Lines, CSV, Parquet, and datasets on the Hub."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ...extras import needs_extra
from ...files import iterate_lines
from ...video_source_pllava import is_address
from .clip import Bounds, Clip

HUB_SCHEME = "hf://datasets/"
ROWS_PER_BATCH = 1000  # of a Parquet file


def read_list(file: Path, prompts: tuple[str, ...], bounds: Bounds) -> Iterator[Clip]:
    """
    Yield the clips of a list. A row has a "video" and may have a "prompt", "start" and "end"; other columns are
    ignored. Paths are relative to the list's folder. Rows that follow each other and ask about the same clip become
    one, which is decoded once.

    Raises:
        ValueError: if a row has no video, or a time that is not a number.
    """
    rows = LIST_SUFFIXES[file.suffix.lower()](file)
    return _to_clips(rows, str(file), file.parent, prompts, bounds)


def read_dataset(address: str, prompts: tuple[str, ...], bounds: Bounds) -> Iterator[Clip]:
    """
    Yield the clips of a dataset on the Hub, `hf://datasets/USER/NAME[@REVISION][/SPLIT]`, as [`read_list`]. It is
    streamed; a video may be a file in the dataset, or the address of one.

    Raises:
        ModuleNotFoundError: without the extra `train`.
        OSError, ValueError: if there is no such dataset.
    """
    with needs_extra("train"):
        from datasets import load_dataset

    found = re.fullmatch(r"([^/@]+/[^/@]+)(?:@([^/]+))?(?:/([^/]+))?", address.removeprefix(HUB_SCHEME))
    if found is None:
        raise ValueError(f"{address}: a dataset is {HUB_SCHEME}USER/NAME, with @REVISION and /SPLIT if need be")
    name, revision, split = found.groups()
    rows = load_dataset(name, split=split or "train", revision=revision, streaming=True).decode(False)
    return _to_clips(rows, address, None, prompts, bounds)


def _read_csv(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as content:
        yield from csv.DictReader(content)


def _read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    with needs_extra("train"):
        import pyarrow.parquet as pq

    with pq.ParquetFile(file) as content:
        for batch in content.iter_batches(ROWS_PER_BATCH):
            yield from batch.to_pylist()


LIST_SUFFIXES: dict[str, Callable[[Path], Iterable[dict[str, Any]]]] = {
    ".jsonl": iterate_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


# --- rows ------------------------------------------------------------------------------------------------------------


def _to_clips(
    rows: Iterable[dict[str, Any]], where: str, folder: Path | None, prompts: tuple[str, ...], bounds: Bounds
) -> Iterator[Clip]:
    clips = (
        _parse(row, f"{where}, row {number}", folder, prompts, bounds) for number, row in enumerate(rows, start=1)
    )
    for _, group in groupby(clips, key=lambda clip: (clip.place, hash(clip.content))):
        first, *others = group
        asked = dict.fromkeys(prompt for clip in (first, *others) for prompt in clip.prompts)
        yield Clip(first.video, tuple(asked), first.start, first.end, first.content)


def _parse(row: dict[str, Any], where: str, folder: Path | None, prompts: tuple[str, ...], bounds: Bounds) -> Clip:
    video, content = row.get("video"), None
    if isinstance(video, dict):  # of the feature `Video`
        video, content = video.get("path") or where, video.get("bytes")
    if not isinstance(video, str) or not video:
        raise ValueError(f'{where}: there is no "video", but {sorted(row)}')
    if content is None and folder is not None and not is_address(video):
        video = str(folder / video)
    start, end = (_seconds(row.get(name), f"{where}: {name}") for name in ("start", "end"))
    asked = (row["prompt"],) if row.get("prompt") else prompts
    return Clip(video, asked, *(bounds if (start, end) == (None, None) else (start, end)), content)


def _seconds(value: Any, where: str) -> float | None:
    if value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} should be in seconds; it is {value!r}") from error
