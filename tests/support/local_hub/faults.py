"""Misbehaviour on command, and a record of what was asked and how many bytes were received."""

import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from .replies import Reply


class Seen(NamedTuple):
    """A request that was answered; `status` is 0 where the connection was closed instead."""

    method: str
    path: str
    status: int


class Dropped(ConnectionError):
    """The connection is to be closed without a reply."""


@dataclass
class Fault:
    """What happens to the next `times` requests that match: a reply, a cut after some bytes, a delay, or a drop."""

    method: str
    path: str
    times: int
    reply: Reply | None = None
    cut_after: int | None = None
    delay: float | None = None
    drop: bool = False

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("*", method) and re.search(self.path, path) is not None


@dataclass
class Faults:
    """
    Tell the Hub to misbehave, before or while it is used. A `path` is a regular expression that is searched in the
    decoded path of the address, without its parameters; a `method` is `*` for all.
    """

    waiting: list[Fault] = field(default_factory=list)
    refused_tokens: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answer(
        self, status: int, path: str = "", method: str = "*", times: int = 1, retry_after: int | None = None
    ) -> None:
        """Reply with an error, 429, 500 or 503 say; `retry_after` (in seconds) is sent as the Hub sends it."""
        headers = {}
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        if status == 429:
            headers["ratelimit"] = f'"api";r=0;t={retry_after or 0}'
            headers["ratelimit-policy"] = '"fixed window";"api";q=1000;w=300'
        reply = Reply({"error": f"The local Hub was told to reply {status}"}, status, headers)
        self._add(Fault(method, path, times, reply=reply))

    def cut(self, after: int, path: str = "", method: str = "PUT", times: int = 1) -> None:
        """Close the connection when `after` bytes of the body have come in."""
        self._add(Fault(method, path, times, cut_after=after))

    def drop(self, path: str = "", method: str = "*", times: int = 1) -> None:
        """Close the connection without a reply."""
        self._add(Fault(method, path, times, drop=True))

    def delay(self, seconds: float, path: str = "", method: str = "*", times: int = 1) -> None:
        self._add(Fault(method, path, times, delay=seconds))

    def refuse_token(self, token: str) -> None:
        """Treat a token as revoked."""
        self.refused_tokens.add(token)

    def clear(self) -> None:
        with self.lock:
            self.waiting.clear()
            self.refused_tokens.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """Return the first fault that waits for such a request, and count it."""
        with self.lock:
            fault = next((fault for fault in self.waiting if fault.matches(method, path)), None)
            if fault is not None:
                fault.times -= 1
            return fault

    def _add(self, fault: Fault) -> None:
        with self.lock:
            self.waiting.append(fault)


class UploadedBytes(Counter):
    """The bytes received for each large file, by its sha256, those of cut uploads included."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def add(self, oid: str, count: int) -> None:
        with self.lock:
            self[oid] += count
