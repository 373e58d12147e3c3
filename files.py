"""Files that a killed run leaves whole: lines that are appended, and files that are replaced at once."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO


def read_lines(file: Path) -> list[dict[str, Any]]:
    """
    The objects of a JSON Lines file, if there is one. It is read only: another process may be writing it.

    A last line without a newline counts if it is whole; if its writer was killed in it, or is not done with it, it is
    passed over. Empty lines are, too.

    Raises:
        ValueError: if a line is no JSON object; the message names the file and the line.
    """
    if not file.exists():
        return []
    *lines, last = file.read_bytes().split(b"\n")
    if _is_torn(last):
        last = b""
    return [_read_object(line, file, number) for number, line in enumerate([*lines, last], start=1) if line.strip()]


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
    _read_object(last, file, content.count(b"\n") + 1)
    with file.open("ab") as lines:
        lines.write(b"\n")


def _is_torn(last: bytes) -> bool:
    """Whether the end of a file is only the beginning of an object."""
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        return last.startswith(b"{")
    return False


def _read_object(line: bytes, file: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}, line {number} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file}, line {number} is no JSON object, but {type(value).__name__}")
    return value


def to_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def replace_file(file: Path, text: str) -> None:
    """Writes `text` beside the file and moves it there: whoever reads finds the old content or the new one."""
    beside = file.with_name(f"{file.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
