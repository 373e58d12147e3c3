"""
Run a function in a fresh process with limits: a decoder that reads a stranger's file may hang, take all memory, or
crash.

A fork server that has imported what decoding needs forks each process in milliseconds. `multiprocessing` has one, too,
but that one runs the caller's main module again in each process, does not serve daemonic processes, and passes the
environment on, with its tokens and keys. What a process returns is read as JSON and bytes, never unpickled: a decoder
that was taken over cannot attack its caller through its answer.

This is no jail: the process belongs to the same user, and can read files and connect. Run the whole program as a user
without rights, or in a container, where decoders may be attacked by more than accidents.
"""

import atexit
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from threading import Lock
from typing import Any, BinaryIO

from .limits import MediaLimits, MediaRefused

START_SECONDS = 300  # for the fork server's imports, on a busy machine
MAX_HEADER = 1 << 24  # bytes of the JSON part of an answer
ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")  # what the fork server keeps of it
SETTINGS = {
    "OMP_NUM_THREADS": "1",  # a process with threads cannot fork safely
    "OPENBLAS_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # a fresh process gets all its memory anew: in large pages, fast
}
CRASHED = "its decoder crashed"


class ProcessEnded(MediaRefused):
    """The process exceeded a limit or crashed. The message is the reason alone, without the medium."""


def run_limited(
    function: Callable[..., tuple[dict[str, Any], Any]], *args: Any, limits: MediaLimits, file: BinaryIO | None = None
) -> tuple[dict[str, Any], bytearray]:
    """
    Return `function(*args)`, called in a fresh process with limits on time and memory, which cannot write files.

    Args:
        function: A function of a module. It returns a dict that JSON can hold, and an object with a buffer of bytes.
        args: Arguments that can be pickled.
        limits: `decode_seconds` and `decode_memory` apply.
        file: An open file, which the function gets as its first argument.

    Raises:
        MediaRefused: if the function raises it, or a `VideoDecodeError`; with the same message.
        ProcessEnded: if the process exceeds a limit or crashes.
        RuntimeError: if the function raises another exception; the message has its traceback.
    """
    connection, pid = _fork_server.fork(file)
    with connection, _killed_after(pid):
        deadline = time.monotonic() + limits.decode_seconds
        call = pickle.dumps((function, args))
        header = {"sys_path": sys.path, "limits": asdict(limits), "length": len(call)}
        try:
            connection.settimeout(limits.decode_seconds)
            connection.sendall(json.dumps(header).encode() + b"\n" + call)
            answer, content = _receive_answer(connection, deadline, limits.decode_memory)
        except TimeoutError:
            raise ProcessEnded(f"decoding takes longer than {limits.decode_seconds:g} s") from None
        except (EOFError, OSError):
            raise ProcessEnded(CRASHED) from None
    match answer:
        case {"status": "done", "value": dict(result)}:
            return result, content
        case {"status": "refused", "value": str(reason)}:
            raise MediaRefused(reason)
        case {"status": "out of memory"}:
            raise ProcessEnded(f"decoding takes more than {limits.decode_memory:,} bytes of memory")
        case {"status": "failed", "value": str(trace)}:
            raise RuntimeError(f"In a decoding process:\n{trace}")
    raise ProcessEnded(CRASHED)


def _receive_answer(connection: socket.socket, deadline: float, max_length: int) -> tuple[dict[str, Any], bytearray]:
    """Read a line of JSON, which holds the number of the bytes that follow, and these."""

    def receive_into(buffer: memoryview) -> int:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        if not (count := connection.recv_into(buffer)):
            raise EOFError
        return count

    header, chunk = bytearray(), memoryview(bytearray(1 << 16))
    while (end := header.find(b"\n")) < 0:
        if len(header) > MAX_HEADER:
            raise EOFError
        header += chunk[: receive_into(chunk)]
    answer = _parse(header[:end], max_length)
    content, position = bytearray(answer["length"]), len(header) - end - 1
    content[:position] = header[end + 1 :][: len(content)]
    while position < len(content):
        position += receive_into(memoryview(content)[position:])
    return answer, content


def _parse(line: bytes, max_length: int) -> dict[str, Any]:
    """Return the first part of an answer. A process that was taken over may write anything: `EOFError`."""
    with suppress(ValueError, RecursionError):
        match json.loads(line):
            case {"status": str(), "value": _, "length": int(length)} as answer if 0 <= length <= max_length:
                return answer
    raise EOFError


@contextmanager
def _killed_after(pid: int) -> Iterator[None]:
    """Kill a process in the end. Its `pidfd` names it even after its number was given to another process."""
    descriptor = None
    with suppress(ProcessLookupError, AttributeError):  # macOS has no pidfd: the process ends with its connection
        descriptor = os.pidfd_open(pid)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)


class _ForkServer:
    """The process that forks others. It is started when it is first needed, and again if it was killed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._requests: socket.socket | None = None  # of the running server; `_process` and `_owner` are its, too
        os.register_at_fork(after_in_child=self._renew_lock)
        atexit.register(self.stop)

    def _renew_lock(self) -> None:
        self._lock = Lock()  # another thread may have held it. The processes share the fork server.

    def start(self) -> None:
        """Start the fork server unless it runs. It answers once its imports are done."""
        with self._lock:
            if self._requests is not None:
                return
            ours, theirs = socket.socketpair()
            environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
            environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **SETTINGS}
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", f"{__package__}.forking", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the caller
                )
            self._requests, self._owner = ours, os.getpid()

    def stop(self) -> None:
        """End the fork server. One that a forked process only shares lives on."""
        with self._lock:
            if self._requests is not None:
                self._requests.close()
                self._requests = None
                if self._owner == os.getpid():
                    self._process.kill()
                    self._process.wait()

    def fork(self, file: BinaryIO | None) -> tuple[socket.socket, int]:
        """Return a connection to a new process, and the process's id."""
        for _ in range(2):
            self.start()
            with suppress(EOFError, OSError):
                return self._fork(file)
            self.stop()
        raise RuntimeError(f"The process that starts decoders ({__package__}.forking) ends: see what it printed")

    def _fork(self, file: BinaryIO | None) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                descriptors = [theirs.fileno()] + ([] if file is None else [file.fileno()])
                # One byte with its descriptors arrives whole, whichever threads and processes send at the same time
                socket.send_fds(self._requests, [b"\0"], descriptors)
            ours.settimeout(START_SECONDS)
            pid = b""
            while len(pid) < 8:
                if not (received := ours.recv(8 - len(pid))):
                    raise EOFError
                pid += received
            return ours, int.from_bytes(pid, "big")
        except BaseException:
            ours.close()
            raise


_fork_server = _ForkServer()
start_fork_server = _fork_server.start
