"""
The file of captions, JSON Lines, to which each process of a run appends.

The main process appends to the file itself, and each other one to a file of its own beside it, so that lines are never
torn. At the end these are merged, and there is one line for each caption and one for each clip that failed.
"""

import json
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..files import append_lines, is_disk_full, iterate_lines, new_file, part_file, part_files, to_lines
from .clips import HUB_SCHEME, Clip, Failed, Row
from .rows import Settings, caption_id, differences


class CaptionStore:
    """
    The captions that a file has, and those that are added.

    Args:
        file: The JSON Lines file, which need not exist.
        settings: How captions are made in this run.
        rank: The rank of this process; the main one has 0.
        retry_flagged: Whether captions with flags count as missing, once.

    Raises:
        ValueError: if the file has captions that were made in another way, or a line that is not of this command.
    """

    def __init__(self, file: Path, settings: Settings, rank: int = 0, retry_flagged: bool = False):
        self.file, self.settings, self.retry_flagged = file.resolve(), settings, retry_flagged
        self._own_file = part_file(self.file, rank)
        self._done: set[bytes] = set()  # the ids of captions
        self._files: dict[str, tuple[int | None, int | None, str]] = {}  # size, time and hash, by path
        self._errors: dict[str, str] = {}  # by place
        for row in self.rows():
            self._check(row)
            self._remember(row)

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all processes."""
        return chain.from_iterable(iterate_lines(file) for file in (self.file, *part_files(self.file)))

    def _check(self, row: Row) -> None:
        if not isinstance(row.get("video"), str):
            raise ValueError(f'{self.file} has a line without a "video", so it is not of this command: name another')
        if "caption" in row and not row.keys() >= {"id", "sha256"}:
            raise ValueError(f'{self.file} has a caption without "id" and "sha256", of an older version: name another')
        if "caption" in row and (different := differences(row, self.settings)):
            old, new = different
            raise ValueError(f"{self.file} has captions made with {old}, not with {new}: name another --out")

    def _remember(self, row: Row) -> None:
        if "error" in row:
            self._errors[_place(row)] = row["error"]
            return
        if "path" in row or HUB_SCHEME in row["video"]:  # a file of a dataset stands at a commit
            self._files[row.get("path", row["video"])] = row.get("bytes"), row.get("mtime_ns"), row["sha256"]
        for path in row.get("copies", ()):
            self._files.setdefault(path, (None, None, row["sha256"]))
        if "id" in row and not (self.retry_flagged and row.get("flags") and not row.get("retried")):
            self._done.add(bytes.fromhex(row["id"]))

    # --- what is missing ---------------------------------------------------------------------------------------------

    def recognise(self, clip: Clip | Failed) -> Clip | Failed:
        """
        Return the clip with the size and the time of modification of its file, and with its hash if a file of the
        same path, size and time is in the store: then it is not read again.
        """
        if isinstance(clip, Failed):
            return clip
        if clip.is_hub_file:
            return replace(clip, sha256=self._files.get(clip.video, (None,))[-1])
        if clip.path is None:
            return clip
        try:
            found = Path(clip.path).stat()
        except OSError:  # reported when the clip is read
            return clip
        if not stat.S_ISREG(found.st_mode):
            return clip
        clip = replace(clip, bytes=found.st_size, mtime_ns=found.st_mtime_ns)
        *known, sha256 = self._files.get(clip.path, (None, None, None))
        return replace(clip, sha256=sha256) if known == [clip.bytes, clip.mtime_ns] else clip

    def claim(self, clip: Clip) -> Clip | None:
        """
        Return the clip with the prompts that have no caption yet, or None if all have one. They count as done from
        now on, so that a copy of the clip is not captioned again.
        """
        ids = {prompt: bytes.fromhex(caption_id(clip, prompt, self.settings)) for prompt in clip.prompts}
        missing = tuple(prompt for prompt, id in ids.items() if id not in self._done)
        self._done.update(ids.values())
        return replace(clip, prompts=missing) if missing else None

    def is_copy(self, clip: Clip) -> bool:
        """Whether a clip that has captions has them under the name of another file."""
        return clip.path is not None and clip.path not in self._files

    # --- what is added -----------------------------------------------------------------------------------------------

    def append(self, rows: Iterable[Row]) -> None:
        """
        Append rows, all of them or none. An error that is in the store already is not added again.

        Raises:
            OSError: if they cannot be written, such as to a full disk. The file is whole then.
        """
        new = [row for row in rows if "error" not in row or self._errors.get(_place(row)) != row["error"]]
        with self._explaining_full_disk():
            append_lines(self._own_file, new)
        for row in new:
            self._remember(row)

    def note_copy(self, clip: Clip) -> None:
        """Record the name of a copy, for the rows of the captions that it has."""
        ids = [caption_id(clip, prompt, self.settings) for prompt in clip.prompts]
        row = clip.describe()
        self.append([{**row, "copy_of": id} for id in ids])

    def merge(self, finish: Callable[[Row], Row] = lambda row: row, rewrite: bool = False) -> None:
        """
        Merge the files of all processes into one, with one line for each caption and each clip that failed. Call it
        in the main process, when the others are done.

        Args:
            finish: Changes a row with a caption.
            rewrite: Whether to write the file even if only `finish` changes it.
        """
        kept, copies = self._choose()
        if not (rewrite or copies or part_files(self.file) or not all(kept)):
            return
        with self._explaining_full_disk(), new_file(self.file) as new, new.open("w", encoding="utf-8") as lines:
            for row, keep in zip(self.rows(), kept, strict=True):
                if keep and "caption" in row:
                    names = {*row.get("copies", []), *copies.get(row["id"], [])} - {row.get("path", row["video"])}
                    row = finish({**row, "copies": sorted(names)} if names else row)
                if keep:
                    lines.write(to_lines([row]))
        for part in part_files(self.file):
            part.unlink()

    @contextmanager
    def _explaining_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise OSError(
                f"The disk is full; all captions so far are kept in {self.file.parent}. Free space there, and run the "
                "same command again"
            ) from error

    def _choose(self) -> tuple[list[bool], dict[str, list[str]]]:
        """Return for each row whether it is kept, and the names of copies by the id of their caption."""
        # Of a caption: if its best line has flags, if nobody has tried to do better, its number and its name
        best: dict[str, tuple[bool, bool, int, str]] = {}
        last_error: dict[str, int] = {}
        captioned: set[str] = set()
        copies: dict[str, list[str]] = defaultdict(list)
        total = 0
        for number, row in enumerate(self.rows()):
            total = number + 1
            if "error" in row:
                last_error[_place(row)] = number
                continue
            captioned |= {_place(row), _place(row, whole=True)}
            name = row.get("path", row["video"])
            if "copy_of" in row:
                copies[row["copy_of"]].append(name)
                continue
            line = bool(row.get("flags")), not row.get("retried"), number, name
            other = best.setdefault(row["id"], line)
            if other[-1] != name:  # two processes captioned copies at the same time
                copies[row["id"]] += [name, other[-1]]
            best[row["id"]] = min(line, other)
        numbers = {number for *_, number, _ in best.values()}
        numbers |= {number for place, number in last_error.items() if place not in captioned}
        return [number in numbers for number in range(total)], copies


def _place(row: Row, whole: bool = False) -> str:
    """Return what tells clips apart whose content cannot be read."""
    bounds = [None, None] if whole else [row.get("start"), row.get("end")]
    return json.dumps([row.get("path", row["video"]), *bounds])
