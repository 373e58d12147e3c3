"""One or several servers with the same model: which of them gets the next request."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition

import openai

MAX_FAILURES = 2  # in a row, before a server counts as down; a single one may be the fault of the request
SECONDS_ASIDE = 30.0  # until a server that is down is asked again


@dataclass(eq=False)
class Server:
    """
    Args:
        client: Its client.
        asked: Requests so far.
        in_flight: Requests without a reply yet.
        failures: Requests in a row that failed in spite of retries.
        failed_at: The time of the last failure, in seconds.
    """

    client: openai.OpenAI
    asked: int = 0
    in_flight: int = 0
    failures: int = 0
    failed_at: float = 0.0

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    @property
    def is_down(self) -> bool:
        return self.failures >= MAX_FAILURES

    @property
    def is_due(self) -> bool:
        """Whether it was set aside for long enough: then one request finds out if it answers again."""
        return self.is_down and not self.in_flight and time.monotonic() >= self.failed_at + SECONDS_ASIDE


class Fleet:
    """
    Gives each request to the server with the fewest in flight, so that a fast one gets more of them. A server that
    fails is set aside for a while. Thread-safe.

    Args:
        servers: At least one.
        concurrency: Requests in flight at each server.
    """

    def __init__(self, servers: list[Server], concurrency: int):
        self.servers, self.concurrency = servers, concurrency
        self._changed = Condition()

    @contextmanager
    def asking(self, server: Server) -> Iterator[None]:
        """Count a request to a server from [`acquire`], and whether it fails."""
        failed = True
        try:
            yield
            failed = False
        except openai.BadRequestError:  # which is an answer
            failed = False
            raise
        finally:
            with self._changed:
                server.in_flight -= 1
                server.failures = server.failures + 1 if failed else 0
                server.failed_at = time.monotonic()
                self._changed.notify_all()

    def acquire(self, tried: Collection[Server] = ()) -> Server | None:
        """
        Wait until a server may have one more request, and return it; pass it to [`asking`].

        Args:
            tried: The servers at which the request failed. If all others are down, the result is None.
        """
        with self._changed:
            while True:
                candidates = self._candidates(tried)
                if not candidates:
                    return None
                free = [server for server in candidates if server.in_flight < self.concurrency]
                if free:
                    chosen = min(free, key=lambda server: (server.in_flight, server.asked))
                    chosen.in_flight, chosen.asked = chosen.in_flight + 1, chosen.asked + 1
                    return chosen
                self._changed.wait()

    def _candidates(self, tried: Collection[Server]) -> list[Server]:
        others = [server for server in self.servers if server not in tried]
        due = [server for server in others if server.is_due]
        up = [server for server in others if not server.is_down]
        # If all are down, a new request is sent all the same: it finds out that the run has to end
        return due or up or ([] if tried else others)
