"""Share an evaluation or captioning among processes: join them, and let each claim pieces of the work."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


def cores_per_process() -> int:
    """Return this machine's cores, divided among the processes of this job that run on it."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


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


@contextmanager
def sharing_work(folder: Path) -> Iterator[WorkClaims]:
    """
    Let all processes claim pieces of one job. They begin together, and the block ends when all are done.

    Args:
        folder: For the claims, which all processes see; it is there during the block only.
    """
    state = join_processes()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
        folder.mkdir(parents=True)
    state.wait_for_everyone()
    try:
        yield WorkClaims(folder)
        state.wait_for_everyone()
    finally:
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
