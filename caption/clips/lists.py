"""Lists of videos, with a prompt and bounds for each row: JSON Lines, CSV, Parquet, and datasets on the Hub."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from ...extras import needs_extra
from ...media.batch import is_remote
from ...video_source_pllava import is_address
from .clip import HUB_SCHEME, Bounds, Clip, Failed

COLUMNS = ["video", "prompt", "start", "end"]
ROWS_PER_BATCH = 32  # of a Parquet file: its rows may hold the videos
ListRow = dict[str, Any] | str  # the columns, or what is wrong with the line


def read_list(path: str, prompts: tuple[str, ...], bounds: Bounds) -> Iterator[Clip | Failed]:
    """
    Yield the clips of a list. A row has a "video" and may have a "prompt", "start" and "end"; other columns are
    ignored, and so are empty values. Paths are relative to the list's folder. Rows that follow each other and ask
    about the same clip become one, which is decoded once. A row that is wrong becomes a [`Failed`].

    Raises:
        ValueError: if there is no row, or the first one is wrong: before the first clip. If the file is damaged.
    """
    file = Path(path)
    rows = _naming(str(file), LIST_SUFFIXES[file.suffix.lower()](file))
    return _to_clips(rows, str(file), RowParser(prompts, bounds, folder=file.parent))


def read_dataset(address: str, prompts: tuple[str, ...], bounds: Bounds) -> Iterator[Clip | Failed]:
    """
    Yield the clips of a dataset on the Hub, `hf://datasets/USER/NAME[@REVISION][/SPLIT]`, as [`read_list`]. It is
    streamed; a video may be in its row, a file of the dataset, or an http(s) address.

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
    numbered = ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    return _to_clips(numbered, address, RowParser(prompts, bounds, files=f"{HUB_SCHEME}{name}@"))


# --- formats: each row with its place in the file --------------------------------------------------------------------


def _read_jsonl(file: Path) -> Iterator[tuple[str, ListRow]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                row = row if isinstance(row, dict) else f"it should be an object; it is {row!r}"
            except json.JSONDecodeError as error:
                row = f"it is not JSON ({error})"
            yield f"line {number}", row


def _read_csv(file: Path) -> Iterator[tuple[str, ListRow]]:
    with file.open(encoding="utf-8-sig", newline="") as content:
        reader = csv.DictReader(content)
        for row in reader:
            yield f"line {reader.line_num}", row


def _read_parquet(file: Path) -> Iterator[tuple[str, ListRow]]:
    with needs_extra("train"):
        import pyarrow.parquet as pq

    with pq.ParquetFile(file) as content:
        names = [name for name in COLUMNS if name in content.schema_arrow.names]
        batches = content.iter_batches(ROWS_PER_BATCH, columns=names if "video" in names else None)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


LIST_SUFFIXES: dict[str, Callable[[Path], Iterable[tuple[str, ListRow]]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _naming(name: str, rows: Iterable[tuple[str, ListRow]]) -> Iterator[tuple[str, ListRow]]:
    """Name the list in the errors of the libraries that read it."""
    try:
        yield from rows
    except (ValueError, csv.Error) as error:  # ValueError: of pyarrow, and of a wrong encoding, too
        raise ValueError(f"{name} cannot be read: {error}") from error


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowParser:
    """
    Turns rows into clips.

    Args:
        prompts, bounds: For rows without their own.
        folder: What paths are relative to; None if rows may not name local files: they are from a stranger.
        files: What the addresses of the dataset's own files begin with.
    """

    prompts: tuple[str, ...]
    bounds: Bounds
    folder: Path | None = None
    files: str | None = None

    def parse(self, row: ListRow, where: str) -> Clip:
        """
        Raises:
            ValueError: if the row is wrong. The message says where it stands.
        """
        try:
            return self._parse(row, where)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _parse(self, row: ListRow, where: str) -> Clip:
        if isinstance(row, str):
            raise ValueError(row)
        video, content = row.get("video"), None
        if isinstance(video, dict):  # of the feature `Video`
            video, content = video.get("path") or where, video.get("bytes")
        if not isinstance(video, str) or not video:
            raise ValueError(f'there is no "video"; the columns are {", ".join(map(str, row))}')
        if content is None:
            video = self._locate(video)
        prompt = _unless_empty(row.get("prompt"))
        if not isinstance(prompt, str | None):
            raise ValueError(f'"prompt" should be a text; it is {prompt!r}')
        start, end = _seconds(row, "start"), _seconds(row, "end")
        if start is not None and end is not None and end <= start:
            raise ValueError(f'"end" should be after "start"; they are {end:g} and {start:g}')
        bounds = self.bounds if (start, end) == (None, None) else (start, end)
        return Clip(video, self.prompts if prompt is None else (prompt,), *bounds, content)

    def _locate(self, video: str) -> str:
        if self.folder is not None:
            return video if is_address(video) else str(self.folder / video)
        if is_remote(video) or video.split("::")[-1].startswith(self.files):  # "zip://0.mp4::hf://datasets/..."
            return video
        raise ValueError(f"{video} is neither a file of the dataset nor an http(s) address")


def _to_clips(rows: Iterable[tuple[str, ListRow]], name: str, parser: RowParser) -> Iterator[Clip | Failed]:
    """Check the first row, and return an iterator over the clips of all."""
    rows = ((f"{name}, {where}", row) for where, row in rows)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{name} has no rows")
    parser.parse(first[1], first[0])
    return _join_prompts(_parse_or_fail(row, where, parser) for where, row in chain([first], rows))


def _parse_or_fail(row: ListRow, where: str, parser: RowParser) -> Clip | Failed:
    try:
        return parser.parse(row, where)
    except ValueError as error:
        return Failed(Clip(where, parser.prompts, content=b""), str(error))  # the place is its name, and no path


def _join_prompts(clips: Iterable[Clip | Failed]) -> Iterator[Clip | Failed]:
    def key(clip: Clip | Failed) -> tuple:
        return (clip.clip.video,) if isinstance(clip, Failed) else clip.key

    for _, group in groupby(clips, key):
        first, *others = group
        if isinstance(first, Failed):
            yield first
        else:
            asked = dict.fromkeys(prompt for clip in (first, *others) for prompt in clip.prompts)
            yield replace(first, prompts=tuple(asked))


def _unless_empty(value: Any) -> Any:
    """Return None for what tables have in empty cells: an empty text, and NaN."""
    is_empty = not value.strip() if isinstance(value, str) else isinstance(value, float) and math.isnan(value)
    return None if is_empty else value


def _seconds(row: dict[str, Any], name: str) -> float | None:
    value = _unless_empty(row.get(name))
    try:
        seconds = None if value is None else float(value)
    except (TypeError, ValueError):
        seconds = math.inf
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f'"{name}" should be in seconds; it is {value!r}')
    return seconds
