"""Worker processes that decode ahead, for training and evaluation, and retries of reads that failed for the moment."""

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

DECODE_TIMEOUT = 180  # seconds for reading and decoding one example; distributed processes wait longer for each other
RETRY_DELAYS = (1, 5, 20)  # seconds
TRANSIENT_ERRORS = {  # from a file system or a network that fails, not from a broken file
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH")
    if hasattr(errno, name)
}
TRANSIENT_STATUSES = {408, 429}  # of HTTP, beside those from 500 on


def ordered_map(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    num_workers: int,
    ahead: int,
    seconds: float,
    lost: Callable[[Any, str], Any],
    receive: Callable[[Any], Any] = lambda result: result,
) -> Iterator[Any]:
    """
    Yield `function(task)` for each task, in order, computed ahead by worker processes. A worker that crashes or times
    out is replaced and the map continues, which torch's `DataLoader` cannot do.

    Args:
        num_workers: Number of processes; with 0, this process calls `function`, without a timeout.
        ahead: Maximum number of tasks that are running or finished in advance.
        seconds: Timeout per task.
        lost: Called with a task whose worker crashed or timed out, and the reason; returns the result to yield.
        receive: Called in this process with each result, as soon as it arrives, in a thread; returns what to yield.

    Raises:
        RuntimeError: if `function` raises in a worker; the message has its traceback.
    """
    if not num_workers:
        yield from (receive(function(task)) for task in tasks)
        return
    workers = [_Worker(function) for _ in range(num_workers)]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(task: Any) -> Any:
        worker = idle.get()
        try:
            return receive(worker.run(task, seconds, lost))
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(num_workers)  # each waits for one process
    results = deque()
    try:
        for task in tasks:
            results.append(threads.submit(run, task))
            if len(results) >= ahead:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that calls a function with one task after the other."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function, self.stopped = function, False
        self._start()

    def _start(self) -> None:
        self.connection, theirs = torch.multiprocessing.Pipe()
        self.process = torch.multiprocessing.Process(target=_serve, args=(theirs, self.function), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, task: Any, seconds: float, lost: Callable[[Any, str], Any]) -> Any:
        try:
            self.connection.send(task)
            if not connection.wait([self.connection, self.process.sentinel], seconds):
                raise TimeoutError(f"it took more than {seconds:g} seconds, and was given up")
            result, failure = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.kill()
            self.process.join()
            reason = str(error) if isinstance(error, TimeoutError) else f"the worker ended ({self.process.exitcode})"
            if not self.stopped:
                self._start()
            return lost(task, reason)
        if failure is not None:
            raise RuntimeError(f"In a worker:\n{failure}")
        return result

    def stop(self) -> None:
        self.stopped = True
        self.process.kill()


def _serve(tasks: connection.Connection, function: Callable[[Any], Any]) -> None:
    _end_with_parent()
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


def _end_with_parent() -> None:
    """End this process when its parent is killed: else it would wait forever to send its result."""

    def end() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=end, daemon=True).start()


# --- retries ---------------------------------------------------------------------------------------------------------


def with_retries(function: Callable[..., Any], *args: Any) -> Any:
    """Call `function`; after a transient failure of storage or network, retry it with backoff."""
    for delay in RETRY_DELAYS:
        try:
            return function(*args)
        except Exception as error:
            if not _is_transient(error):
                raise
        time.sleep(delay)
    return function(*args)


def _is_transient(error: BaseException | None) -> bool:
    """Whether storage or network failed, in the error or in one that caused it, so that a retry may succeed."""
    if error is None:
        return False
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, av.FFmpegError):
        failed = error.errno in TRANSIENT_ERRORS and _fails_to_read(error.filename)
    else:
        failed = isinstance(error, (ConnectionError, TimeoutError))
        failed |= isinstance(error, OSError) and error.errno in TRANSIENT_ERRORS
    return (
        failed
        or (isinstance(status, int) and (status >= 500 or status in TRANSIENT_STATUSES))
        or _is_transient(error.__cause__ or error.__context__)
    )


def _fails_to_read(file: str | None) -> bool:
    """Whether a plain read of the file fails as well: ffmpeg also reports EIO for damaged headers."""
    try:
        with open(str(file).removeprefix("file:"), "rb") as content:
            while content.read(1 << 20):
                pass
    except OSError as error:
        return error.errno in TRANSIENT_ERRORS
    return False
