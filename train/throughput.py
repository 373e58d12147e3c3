"""The speed of training, and how long it waits for data, as they are logged."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import gather_object

from .loader.stream_loader import StreamLoader


class Throughput:
    """Measures training since the last call of `read`, without the evaluations in between."""

    def __init__(self, loader: StreamLoader):
        self.loader, self.tokens = loader, 0
        self._start, self._waited = time.perf_counter(), loader.waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self, world_size: int) -> dict[str, float]:
        """
        Return the figures of all processes, which have to call this together (see [`StreamingMixin`]).

        Raises:
            RuntimeError: if too many examples cannot be read (see [`SkippedExamples.check`]).
        """
        now = time.perf_counter()
        skipped = self.loader.skipped
        local = {"tokens": self.tokens, "waited": self.loader.waited - self._waited, **skipped.state_dict()}
        total = defaultdict(float)
        for figures in gather_object([local]):
            for name, value in figures.items():
                total[name] += value
        skipped.check(int(total["seen"]), int(total["unreadable"]))
        seconds = now - self._start
        self.tokens, self._start, self._waited = 0, now, self.loader.waited
        return {
            "data_wait": total["waited"] / seconds / world_size,
            "tokens_per_second": total["tokens"] / seconds,
            **{f"skipped/{name}": int(total[name]) for name in ("unreadable", "too_long", "lost_turns")},
        }
