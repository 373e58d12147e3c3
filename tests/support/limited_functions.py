"""Functions that a limited process runs in tests, and looks at the processes that remain."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pllava.media import MediaRefused
from pllava.media.sandbox import _fork_server


def add(first: int, second: int) -> tuple[dict[str, Any], bytes]:
    return {"sum": first + second, "process": os.getpid()}, bytes(range(first))


def read(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    return {}, file.read()


def large(count: int) -> tuple[dict[str, Any], memoryview]:
    return {}, memoryview(bytearray(count))


def refuse(reason: str) -> tuple[dict[str, Any], bytes]:
    raise MediaRefused(reason)


def fail() -> tuple[dict[str, Any], bytes]:
    raise KeyError("a mistake in the code")


def hang() -> tuple[dict[str, Any], bytes]:
    while True:
        time.sleep(1)


def hang_in_c() -> tuple[dict[str, Any], bytes]:
    """Hold the interpreter's lock, so that no Python code of the process runs."""
    ctypes.PyDLL(None).sleep(100)
    raise AssertionError


def compute_forever() -> tuple[dict[str, Any], bytes]:
    while True:
        pass


def take_memory() -> tuple[dict[str, Any], bytes]:
    taken = []
    while True:
        taken.append(bytearray(1 << 24))


def take_memory_in_c() -> tuple[dict[str, Any], bytes]:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while place := libc.malloc(ctypes.c_size_t(1 << 26)):
        ctypes.memset(place, 1, 1 << 26)
    raise MemoryError


def crash() -> tuple[dict[str, Any], bytes]:
    ctypes.string_at(0)
    raise AssertionError


def stop() -> tuple[dict[str, Any], bytes]:
    """Stop, as a debugger would stop it: it neither runs nor ends."""
    os.kill(os.getpid(), signal.SIGSTOP)
    raise AssertionError


def leave() -> tuple[dict[str, Any], bytes]:
    os._exit(0)


def answer_nonsense(line: bytes) -> tuple[dict[str, Any], bytes]:
    """Write to the caller what a process that was taken over might write."""
    for descriptor in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{descriptor}").startswith("/proc") and int(descriptor) > 2:
            try:
                os.write(int(descriptor), line)
            except OSError:
                pass
    os._exit(0)


def open_files() -> tuple[dict[str, Any], bytes]:
    files = []
    try:
        while True:
            files.append(open("/dev/null"))
    except OSError:
        return {"files": len(files)}, b""


def write_file(path: str) -> tuple[dict[str, Any], bytes]:
    Path(path).write_bytes(b"x" * 100)
    return {}, b""


def environment() -> tuple[dict[str, Any], bytes]:
    return {"environment": dict(os.environ), "main": sys.modules["__main__"].__dict__.get("__file__")}, b""


def children(process: int) -> list[int]:
    """Return the processes below `process`, zombies included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")")[-1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == process:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


def memory(process: int | str = "self") -> int:
    """Return a process's memory in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS"))


def waiting_processes(count: int = 1, seconds: float = 10) -> list[int]:
    """
    Wait until the fork server has `count` processes below it, the same for a moment, and return those that it has:
    one waits for the next call, and any other is left over.
    """
    server = _fork_server._process.pid
    deadline, before, found = time.monotonic() + seconds, [], children(server)
    while (len(found) != count or found != before) and time.monotonic() < deadline:
        time.sleep(0.03)
        before, found = found, children(server)
    return found


@dataclass
class Decoder:
    """Does what another function here does, whatever it is given."""

    function: Callable

    def __call__(self, *_: Any) -> tuple[dict[str, Any], bytes]:
        return self.function()


@dataclass
class Answering:
    """A decoder that answers what it is told to."""

    answer: dict[str, Any]

    def __call__(self, *_: Any) -> tuple[dict[str, Any], bytes]:
        return self.answer, bytes(12)
