"""Files that a killed run leaves whole: lines that are appended, files that are replaced, and who may write them."""

import errno
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

PATIENCE = 3  # seconds for which a lock outlives a process that was killed: its workers have to see that


def read_lines(file: Path, *names: str) -> list[dict[str, Any]]:
    """
    The objects of a JSON Lines file, if there is one. It is read only: another process may be writing it.

    A last line without a newline counts if it is whole; if its writer was killed in it, or is not done with it, it is
    passed over. Empty lines are, too.

    Args:
        names: That each object must have.

    Raises:
        ValueError: if a line is no such JSON object; the message names the file and the line.
    """
    if not file.exists():
        return []
    *lines, last = file.read_bytes().split(b"\n")
    if _is_torn(last):
        last = b""
    return [
        _to_object(line, f"{file}, line {number}", names)
        for number, line in enumerate([*lines, last], start=1)
        if line.strip()
    ]


def read_object(file: Path, *names: str) -> dict[str, Any]:
    """
    The object of a JSON file.

    Args:
        names: That it must have.

    Raises:
        ValueError: if there is no such object in the file, which the message names.
    """
    return _to_object(file.read_bytes(), str(file), names)


def open_to_append(file: Path) -> TextIO:
    """
    For the one process that writes a JSON Lines file: opens it so that what is written begins a line. A last line that
    is torn is cut off; one that is whole gets its newline. The folder is made if need be.

    Raises:
        ValueError: if the last line is neither an object nor the beginning of one: the file is none of ours.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as content:
        content.seek(max(0, content.tell() - 1))
        if content.read(1) not in (b"", b"\n"):
            _end_last_line(file)
    return file.open("a", encoding="utf-8")


def _end_last_line(file: Path) -> None:
    content = file.read_bytes()
    last = content[content.rfind(b"\n") + 1 :]
    if _is_torn(last):
        os.truncate(file, len(content) - len(last))
        return
    number = content.count(b"\n") + 1
    _to_object(last, f"{file}, line {number}")
    with file.open("ab") as lines:
        lines.write(b"\n")


def _is_torn(last: bytes) -> bool:
    """Whether the end of a file is only the beginning of an object."""
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        return last.startswith(b"{")
    return False


def _to_object(content: bytes, where: str, names: Iterable[str] = ()) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no JSON object, but {type(value).__name__}")
    if lacking := [name for name in names if name not in value]:
        raise ValueError(f"{where} lacks {', '.join(map(repr, lacking))}: it has {list(value)}")
    return value


def to_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def replace_file(file: Path, text: str) -> None:
    """Writes `text` beside the file and moves it there: whoever reads finds the old content or the new one."""
    beside = file.with_name(f"{file.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """
    Keeps other processes from writing a file or a folder until this one is done, however it ends: by a lock beside it,
    whatever name for it they are given.

    Raises:
        ValueError: if another process holds it.
    """
    file = path.resolve().with_name(f"{path.resolve().name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=PATIENCE):
            file.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
    except Timeout as error:
        holder = file.read_text(encoding="utf-8") or "another process"
        raise ValueError(f"{holder} is writing {path}: wait for it, or name another --out") from error


# Files that are taken for videos, in the order in which they are preferred where names differ in the suffix only
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif", ".m4v"),
    *(".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv"),
)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of room. safetensors has no number for it, and torch says where it broke off."""
    signs = ("No space left on device", "unexpected pos", "PytorchStreamWriter failed")
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or any(sign in str(error) for sign in signs)
