"""A disk that is full ends a run with a line that says what is left to go on from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..files import is_disk_full
from .trainer import last_checkpoint


@contextmanager
def said_if_disk_is_full(output_dir: str) -> Iterator[None]:
    """Around what writes into `output_dir`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        kept = last_checkpoint(Path(output_dir))
        left = f"{kept} is whole: make room, and go on with --resume_from_checkpoint true"
        sys.exit(f"Error: No room on the disk for {output_dir}. {left if kept else 'No checkpoint of it is whole.'}")
