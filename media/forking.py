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


def serve(requests: int) -> None:
    """Fork a process for each byte that arrives with descriptors, until the other end is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    decoding.preload()
    gc.freeze()  # garbage collection in a child would copy the pages of all objects that were imported
    with socket.socket(fileno=requests) as connection:
        while True:
            message, descriptors, *_ = socket.recv_fds(connection, 1, 2)
            if not message:
                return
            if not os.fork():
                try:
                    connection.close()
                    _answer_call(*descriptors)
                finally:
                    os._exit(0)
            for descriptor in descriptors:
                os.close(descriptor)


def _answer_call(descriptor: int, file: int | None = None) -> None:
    connection = socket.socket(fileno=descriptor)
    _end_with_caller(connection)
    with connection.makefile("rwb") as stream:
        stream.write(os.getpid().to_bytes(8, "big"))
        stream.flush()
        call = json.loads(stream.readline())
        sys.path[:] = call["sys_path"]
        function, args = pickle.loads(stream.read(call["length"]))
        if file is not None:
            args = (os.fdopen(file, "rb"), *args)
        _limit_process(**call["limits"])
        status, value, content = _call(function, args)
        content = memoryview(content).cast("B")
        stream.write(json.dumps({"status": status, "value": value, "length": content.nbytes}).encode() + b"\n")
        stream.write(content)


def _call(function: Any, args: tuple) -> tuple[str, Any, Any]:
    try:
        return "done", *function(*args)
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
    limits = {
        "CORE": 0,
        "FSIZE": 0,
        "NOFILE": MAX_OPEN_FILES,
        "CPU": int(decode_seconds * (os.cpu_count() or 1)) + 1,
        # Private memory that can be written: address space that is merely reserved, as by threads, does not count
        "DATA": _private_memory() + decode_memory,
    }
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def _private_memory() -> int:
    """Return what RLIMIT_DATA counts of this process, in bytes; 0 where there is no /proc."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
    except FileNotFoundError:
        return 0


def _end_with_caller(connection: socket.socket) -> None:
    """End this process when the caller closes its end, as it does when it is killed."""
    poll = select.poll()
    poll.register(connection, 0)  # reports only that the other end is closed

    def end() -> None:
        poll.poll()
        os._exit(1)

    Thread(target=end, daemon=True).start()
