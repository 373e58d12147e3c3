"""Share an evaluation or captioning among processes: join them, and let each claim pieces of the work."""

from datetime import timedelta
from pathlib import Path
from threading import Lock

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

# torch's default on GPUs is ten minutes, during which another process may still be loading its model
BARRIER_TIMEOUT = timedelta(hours=24)


def join_processes() -> PartialState:
    """Return the state of this process: one of several started by `accelerate launch`, or a single one."""
    # On CPUs, accelerate joins processes only if told so
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, timeout=BARRIER_TIMEOUT)


class WorkClaims:
    """
    Distribute pieces of work: each goes to the first process that claims it, so that all processes finish at about the
    same time, however fast each is.

    Args:
        folder: A folder that all processes see, empty when they start.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._results: dict[int, bool] = {}
        self._lock = Lock()

    def claim(self, piece: int) -> bool:
        """Return whether piece number `piece` belongs to this process. Thread-safe."""
        with self._lock:
            if piece not in self._results:
                try:
                    (self.folder / str(piece)).touch(exist_ok=False)  # succeeds in one process on all machines
                    self._results[piece] = True
                except FileExistsError:
                    self._results[piece] = False
            return self._results[piece]
