"""The file of captions, as tests compare it."""

import json
from pathlib import Path
from typing import Any


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, each of which must be whole."""
    return [json.loads(line) for line in file.read_text().splitlines()]
