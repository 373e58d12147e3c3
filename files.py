"""Writing files that stay valid when a run is killed: JSON Lines, atomic replacement, locks, and full disks."""

import errno
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

LOCK_TIMEOUT = 3  # seconds: workers of a killed process keep its lock until they notice that it has ended

# Suffixes of video files, in order of preference where names differ only in the suffix
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif", ".m4v"),
    *(".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv"),
)


def read_lines(file: Path, *names: str) -> list[dict[str, Any]]:
    """
    Read a JSON Lines file of objects that must have the keys `names`; an empty list if there is no file. Empty lines
    are skipped, and a truncated last one, which another process may be writing. Others are a `ValueError`.
    """
    return list(iterate_lines(file, *names))


def iterate_lines(file: Path, *names: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file, as [`read_lines`], with one line in memory at a time."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            is_whole = line.endswith(b"\n")
            if line.strip() and (is_whole or not _is_truncated(line)):
                yield _parse_object(line, f"{file}, line {number}", names)
            if not is_whole:  # what another process adds meanwhile is the rest of this line
                return


def read_object(file: Path, *names: str) -> dict[str, Any]:
    """Read a JSON file with an object that must have the keys `names`; others are a `ValueError`."""
    return _parse_object(file.read_bytes(), str(file), names)


def open_to_append(file: Path) -> TextIO:
    """
    Open a JSON Lines file, in the only process that writes it, so that the next write begins a line: a truncated last
    line is cut off, and a complete one without a newline gets it. Any other last line is a `ValueError`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as content:
        content.seek(max(0, content.tell() - 1))
        if content.read(1) not in (b"", b"\n"):
            content.seek(0)
            *lines, last = content.read().split(b"\n")
            if _is_truncated(last):
                content.truncate(content.tell() - len(last))
            else:
                _parse_object(last, f"{file}, line {len(lines) + 1}")
                content.write(b"\n")
    return file.open("a", encoding="utf-8")


def append_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """
    Append rows to a JSON Lines file, in the only process that writes it: all of them or, if that fails, none. What a
    killed process left of a line is cut off first, see [`open_to_append`].

    Raises:
        OSError: if they cannot be written.
    """
    with open_to_append(file) as lines:
        size = lines.tell()
        content = to_lines(rows).encode()
        try:
            while content:
                content = content[os.write(lines.fileno(), content) :]
        except OSError:
            os.truncate(lines.fileno(), size)
            raise


def part_file(file: Path, rank: int) -> Path:
    """Return where the process of a rank writes its lines: the main one to the file itself, others to parts of it."""
    return file.with_name(f"{file.stem}.part-{rank}{file.suffix}") if rank else file


def part_files(file: Path) -> list[Path]:
    """Return the parts of a file that processes other than the main one have written."""
    return sorted(file.parent.glob(f"{escape(file.stem)}.part-*{file.suffix}"))


def to_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Return the rows as JSON Lines. A name of a file that is not UTF-8 is escaped, and read again as it was."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):x}", lines)


def replace_file(file: Path, content: str | bytes) -> None:
    """Replace a file's content atomically: readers see the old content or the new."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(file)


@contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """
    Yield the path under which to write a file, which then appears whole. Several processes may write the same one.
    What a failure leaves is removed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file or a folder, by a file beside it; a `ValueError` if another process has the lock."""
    file = path.resolve().with_name(f"{path.resolve().name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=LOCK_TIMEOUT):
            file.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
    except Timeout as error:
        owner = file.read_text(encoding="utf-8") or "another process"
        raise ValueError(f"{owner} is writing {path}: wait for it, or name another place") from error


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full. safetensors and torch raise errors without an errno for it."""
    messages = ("No space left on device", "unexpected pos", "PytorchStreamWriter failed")
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(m in str(error) for m in messages)


def _is_truncated(line: bytes) -> bool:
    """Whether the line is only the beginning of an object."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.startswith(b"{")
    return False


def _parse_object(content: bytes, where: str, names: Iterable[str] = ()) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a JSON object, but a {type(value).__name__}")
    if missing := [name for name in names if name not in value]:
        raise ValueError(f"{where} lacks {', '.join(map(repr, missing))}: it has {list(value)}")
    return value
