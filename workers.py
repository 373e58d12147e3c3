"""Processes that read and decode ahead, for training and evaluation."""

import errno
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection, parent_process
from queue import SimpleQueue
from threading import Thread
from typing import Any

import av
import torch

PAUSES = (1, 5, 20)  # seconds before each further attempt
PASSING = {  # what a file system or a network reports while it fails, and not about a broken file
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH")
    if hasattr(errno, name)
}
TOO_BUSY = (408, 429)  # HTTP statuses below 500 that pass


def end_with_parent(worker_id: int) -> None:
    """A `worker_init_fn`: else a worker whose parent is killed while it waits to hand something over would stay."""

    def end() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=end, daemon=True).start()


def unchanged(item: Any) -> Any:
    """A `collate_fn` that leaves what a worker made as it is."""
    return item


# --- failures that pass ----------------------------------------------------------------------------------------------


def with_retries(function: Callable[..., Any], *args: Any) -> Any:
    """Calls `function`; after a failure of the storage or the network again, three times within half a minute."""
    for pause in PAUSES:
        try:
            return function(*args)
        except Exception as error:
            if not is_passing(error):
                raise
        time.sleep(pause)
    return function(*args)


def is_passing(error: BaseException | None) -> bool:
    """Whether storage or network failed, here or where the error came from, so that it may go well another time."""
    if error is None:
        return False
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, av.FFmpegError):
        failed = error.errno in PASSING and _cannot_be_read(error.filename)
    else:
        failed = isinstance(error, (ConnectionError, TimeoutError))
        failed |= isinstance(error, OSError) and error.errno in PASSING
    return (
        failed
        or (isinstance(status, int) and (status >= 500 or status in TOO_BUSY))
        or is_passing(error.__cause__ or error.__context__)
    )


def _cannot_be_read(file: str | None) -> bool:
    """Whether a plain read fails, too: ffmpeg reports EIO for damaged headers as well."""
    try:
        with open(str(file).removeprefix("file:"), "rb") as content:
            while content.read(1 << 20):
                pass
    except OSError as error:
        return error.errno in PASSING
    return False


# --- an ordered map over processes -----------------------------------------------------------------------------------


def ordered_map(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    num_workers: int,
    ahead: int,
    seconds: float,
    lost: Callable[[Any, str], Any],
) -> Iterator[Any]:
    """
    The results of `function` in the order of the tasks, from processes that work ahead. A process that ends, or is not
    done in time, is replaced, and the map goes on. That cannot be done with torch's `DataLoader`.

    Args:
        num_workers: Processes; with 0 this one calls `function`, and nothing limits the time.
        ahead: How many tasks are under way or done in advance.
        seconds: The time for one task.
        lost: Makes the result of a task whose process ended or was ended; the text says which.
    """
    if not num_workers:
        yield from map(function, tasks)
        return
    workers = [_Worker(function) for _ in range(num_workers)]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def work(task: Any) -> Any:
        worker = idle.get()
        try:
            return worker.run(task, seconds)
        except _LostTask as error:
            return lost(task, str(error))
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(num_workers)  # each waits for one process
    results = deque()
    try:
        for task in tasks:
            results.append(threads.submit(work, task))
            if len(results) >= ahead:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.end()


class _LostTask(Exception):
    """The process that worked on a task has ended."""


class _Worker:
    """A process that calls a function for one task after the other."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function, self.ended = function, False
        self._start()

    def _start(self) -> None:
        self.connection, theirs = torch.multiprocessing.Pipe()
        self.process = torch.multiprocessing.Process(target=_serve, args=(theirs, self.function), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, task: Any, seconds: float) -> Any:
        try:
            self.connection.send(task)
            if not connection.wait([self.connection, self.process.sentinel], seconds):
                raise _LostTask(f"it took more than {seconds:g} seconds, and was given up")
            result, failure = self.connection.recv()
        except (EOFError, OSError, _LostTask) as error:
            self.process.kill()
            self.process.join()
            reason = str(error) if isinstance(error, _LostTask) else f"the worker ended ({self.process.exitcode})"
            if not self.ended:
                self._start()
            raise _LostTask(reason) from None
        if failure is not None:
            raise RuntimeError(f"In a worker:\n{failure}")
        return result

    def end(self) -> None:
        self.ended = True
        self.process.kill()


def _serve(tasks: connection.Connection, function: Callable[[Any], Any]) -> None:
    end_with_parent(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    torch.set_num_threads(1)
    while True:
        try:
            task = tasks.recv()
        except EOFError:
            return
        try:
            answer = function(task), None
        except Exception:
            answer = None, traceback.format_exc()
        tasks.send(answer)
