"""Files that a killed run leaves whole: lines that are appended, and files that are replaced at once."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, if there is one. A line that a run was killed in is cut off the file."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(file, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def to_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def replace_file(file: Path, text: str) -> None:
    """Writes `text` beside the file and moves it there: whoever reads finds the old content or the new one."""
    beside = file.with_name(f"{file.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
