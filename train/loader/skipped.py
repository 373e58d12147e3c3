"""Examples that training skips: they are counted, logged, listed in a file, and stop the run if they are too many."""

import json
import logging
import math
import os
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files import read_lines

logger = logging.getLogger(__name__)
COUNTS = ("seen", "unreadable", "too_long", "lost_turns")  # keys in checkpoints
MIN_EXAMPLES = 20  # before a share is judged
WINDOW = 1000  # examples in the share that is judged
# Standard deviations above the limit: exceeded by chance in less than one of 30,000 windows
DEVIATIONS = 4


@dataclass(frozen=True)
class Skipped:
    """An example that cannot be trained on; `reason` is "unreadable" or "too long", and `error` says what is wrong."""

    source: str
    id: str
    media: list[str]
    reason: str
    error: str

    @property
    def key(self) -> tuple[str, ...]:
        return self.source, self.id, *self.media


class SkippedExamples:
    """
    Counts examples, and those of them that are skipped. Each of these is logged once, however often it comes up.

    Args:
        file (`Path`, *optional*): Gets a line of JSON for each skipped example; lines of an earlier run are kept.
        max_unreadable (`float`, *optional*): The largest share of unreadable examples among the last thousand. A share
            that can be chance is accepted: at the default of 0.2, the run is stopped by 251 of 1000, or 12 of the
            first 20. With `None`, as for evaluations, nothing stops it.
    """

    def __init__(self, file: Path | None = None, max_unreadable: float | None = 0.2):
        self.file, self.max_unreadable = file, max_unreadable
        self.seen = self.unreadable = self.too_long = self.lost_turns = self.in_a_row = 0
        self._window = deque([(0, 0)])  # seen and unreadable, over all processes, at each check
        self._last: Skipped | None = None
        self._read_logged()

    def count(self, result: dict[str, Any] | Skipped) -> dict[str, Any] | Skipped:
        """
        Count a result of [`VideoChatCollator.try_encode`], and return it.

        Raises:
            RuntimeError: if too many examples in a row are unreadable to be chance, or all are too long.
        """
        self.seen += 1
        if not isinstance(result, Skipped):
            self.lost_turns += result["lost_turns"]
            self.in_a_row = 0
            return result
        if self._process != os.getpid():  # a copy in a worker: others may have logged examples since it was made
            self._read_logged()
        if result.key not in self._logged:
            self._logged.add(result.key)
            self._log(result)
        if result.reason == "too long":
            self.too_long += 1
            if self.max_unreadable is not None and self.seen >= MIN_EXAMPLES and self.too_long == self.seen:
                raise RuntimeError(f"All {self.seen} examples are too long: {result.error}. Raise `max_length`.")
            return result
        self.unreadable += 1
        self.in_a_row += 1
        self._last = result
        if self.max_unreadable is not None and self.in_a_row >= self._max_in_a_row():
            raise RuntimeError(f"{self.in_a_row} examples in a row could not be read. {self._advice()}")
        return result

    def check(self, seen: int, unreadable: int) -> None:
        """
        Check the share of unreadable examples among the last ones. With the same counts, all processes of a job decide
        the same.

        Args:
            seen, unreadable: Counts over all processes, since the start.

        Raises:
            RuntimeError: if the share is above `max_unreadable`, and not by chance.
        """
        limit = self.max_unreadable
        if limit is None:
            return
        if not self._window:  # the run was resumed
            self._window.append((seen, unreadable))
        while len(self._window) > 1 and seen - self._window[1][0] >= WINDOW:
            self._window.popleft()
        recent, bad = seen - self._window[0][0], unreadable - self._window[0][1]
        self._window.append((seen, unreadable))
        margin = DEVIATIONS * math.sqrt(recent * limit * max(0.0, 1 - limit))
        if recent >= MIN_EXAMPLES and bad > limit * recent + margin:
            raise RuntimeError(
                f"{bad} of the last {recent} examples could not be read, more than `max_unreadable`={limit:g} allows. "
                f"{self._advice()}"
            )

    def summary(self) -> str:
        """Return a line about the skipped examples; with a file, those of all processes and since the start."""
        listed = read_skipped(self.file) if self.file else []
        if not listed:
            return f"All examples could be read ({self.seen} by this process)."
        unreadable = sum(skipped.reason == "unreadable" for skipped in listed)
        return (
            f"{len(listed)} examples were skipped, {unreadable} unreadable and {len(listed) - unreadable} too long: "
            f"see {self.file}"
        )

    def state_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTS}

    def load_state_dict(self, state: dict[str, int]) -> None:
        for name in COUNTS:
            setattr(self, name, state[name])
        self._window.clear()

    def _read_logged(self) -> None:
        self._process = os.getpid()
        self._logged = {skipped.key for skipped in read_skipped(self.file)} if self.file else set()

    def _log(self, skipped: Skipped) -> None:
        logger.warning("Skipped, %s: %s %s: %s", skipped.reason, skipped.source, skipped.id, skipped.error)
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as lines:  # one write, since processes may share the file
                lines.write(json.dumps(asdict(skipped), ensure_ascii=False) + "\n")

    def _max_in_a_row(self) -> int:
        """Return the number of failures in a row that has a chance of 10^-12 where the share is at its limit."""
        limit = min(max(self.max_unreadable, 0.001), 0.999)
        return max(MIN_EXAMPLES, math.ceil(-12 / math.log10(limit)))

    def _advice(self) -> str:
        last = f"The last one: {' '.join(self._last.key)}: {self._last.error}. " if self._last else ""
        return f"{last}{f'All are in {self.file}. ' if self.file else ''}Is the media folder the right one?"


def read_skipped(file: Path) -> list[Skipped]:
    """Return the skipped examples in a file, each once. An incomplete last line, of a killed run, is ignored."""
    skipped = {(row := Skipped(**line)).key: row for line in read_lines(file)}
    return list(skipped.values())
