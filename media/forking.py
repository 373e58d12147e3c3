"""The fork server's side of `sandbox.py`: it imports what decoding needs, and forks a process for each call."""

import gc
import json
import os
import pickle
import resource
import select
import signal
import socket
import sys
import traceback
from threading import Thread
from typing import Any

from ..video_source_pllava import VideoDecodeError
from . import decoding
from .limits import MediaRefused

MAX_OPEN_FILES = 64
TAKEN, CLOSED = b"t", b"c"


def serve(requests: int) -> None:
    """
    Keep one process waiting for the next call, forked ahead since forking takes longer than a small call, until the
    caller closes its end.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    decoding.preload()
    gc.freeze()  # garbage collection in a child would copy the pages of all objects that were imported
    with socket.socket(fileno=requests) as calls:
        while True:
            taken, report = os.pipe()
            if not os.fork():
                try:
                    os.close(taken)
                    _serve_one(calls, report)
                finally:
                    os._exit(0)
            os.close(report)
            if os.read(taken, 1) == CLOSED:
                return
            os.close(taken)


def _serve_one(calls: socket.socket, report: int) -> None:
    """Wait for a byte that arrives with descriptors, report it, and answer the call."""
    message, descriptors, *_ = socket.recv_fds(calls, 1, 2)
    os.write(report, TAKEN if message else CLOSED)
    os.close(report)
    calls.close()
    if message:
        _answer_call(*descriptors)


def _answer_call(descriptor: int, file: int | None = None) -> None:
    connection = socket.socket(fileno=descriptor)
    _end_with_caller(connection)
    with connection.makefile("rwb") as stream:
        stream.write(os.getpid().to_bytes(8, "big"))
        stream.flush()
        call = json.loads(stream.readline())
        sys.path[:] = call["sys_path"]
        pickled = stream.read(call["length"])
        _limit_process(**call["limits"])
        status, value, content = _call(pickled, file)
        content = memoryview(content).cast("B")
        stream.write(json.dumps({"status": status, "value": value, "length": content.nbytes}).encode() + b"\n")
        stream.write(content)


def _call(pickled: bytes, file: int | None) -> tuple[str, Any, Any]:
    try:
        function, args = pickle.loads(pickled)  # from the caller, whose code this is
        files = [] if file is None else [os.fdopen(file, "rb")]
        return "done", *function(*files, *args)
    except (MediaRefused, VideoDecodeError) as error:
        return "refused", str(error), b""
    except MemoryError:
        return "out of memory", None, b""
    except Exception:
        return "failed", traceback.format_exc(), b""


def _limit_process(decode_seconds: float, decode_memory: int, **_: Any) -> None:
    # The caller kills this process at the same time; the timer, whose signal nothing handles, is for a caller that
    # was killed itself
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, decode_seconds + 1)
    cpu_seconds = int(decode_seconds * (os.cpu_count() or 1)) + 1
    limits = {"CORE": 0, "FSIZE": 0, "NOFILE": MAX_OPEN_FILES, "CPU": cpu_seconds}
    if sys.platform == "linux":
        # Private memory that can be written: address space that threads merely reserve does not count
        limits["DATA"] = _private_memory() + decode_memory
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def _private_memory() -> int:
    """Return how much this process has of what RLIMIT_DATA counts, in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData:"))


def _end_with_caller(connection: socket.socket) -> None:
    """End this process when the caller closes its end, as it does when it is killed."""
    poll = select.poll()
    poll.register(connection, 0)  # reports only that the other end is closed

    def end() -> None:
        poll.poll()
        os._exit(1)

    Thread(target=end, daemon=True).start()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
