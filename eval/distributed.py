"""What the processes of an evaluation have in common: how long they wait for each other, and who does what."""

from datetime import timedelta
from pathlib import Path
from threading import Lock

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

PATIENCE = timedelta(hours=24)  # torch's own is ten minutes on GPUs, in which one process may still load its model


def join_processes() -> PartialState:
    """This process among those that `accelerate launch` has started, or by itself."""
    # accelerate joins processes on CPUs only where it is told that it is on one
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, timeout=PATIENCE)


class Shares:
    """
    Deals out pieces of work: each goes to the process that first asks for it, so that all of them end together,
    however fast each is.

    Args:
        folder: That all processes see. It must be empty when they begin.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._mine: dict[int, bool] = {}
        self._lock = Lock()

    def take(self, piece: int) -> bool:
        """Whether this process is the one that does a piece, by its number; threads may ask."""
        with self._lock:
            if piece not in self._mine:
                self._mine[piece] = self._create(self.folder / str(piece))
            return self._mine[piece]

    def _create(self, file: Path) -> bool:
        try:
            file.touch(exist_ok=False)  # of all processes on all machines, this succeeds in one
        except FileExistsError:
            return False
        return True
