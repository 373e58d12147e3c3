"""What training leaves out: counted, named in a log and in a file, and too much of it stops the run."""

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
ENOUGH = 20  # examples after which a share says something
WINDOW = 1000  # examples that a share is taken of
DEVIATIONS = (
    4  # that a share is above its limit by chance less than once in 30,000 windows, and once at half of it never
)


@dataclass(frozen=True)
class Skipped:
    """An example that cannot be trained on: which one, why ("unreadable" or "too long"), and what is wrong with it."""

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
    Counts examples, and those of them that are skipped. Each is named once, however often it comes up.

    Args:
        file (`Path`, *optional*): Gets a line of JSON for each; what a run before has written there stays.
        max_unreadable (`float`, *optional*): The largest share of unreadable examples that a run goes on with, of the
            last thousand. A share that can be chance is let through: 250 of 1000 stop a run at the default of 0.2, and
            12 of the first 20. With `None` nothing stops it: so are evaluations counted.
    """

    def __init__(self, file: Path | None = None, max_unreadable: float | None = 0.2):
        self.file, self.max_unreadable = file, max_unreadable
        self.seen = self.unreadable = self.too_long = self.lost_turns = self.in_a_row = 0
        self._window = deque([(0, 0)])  # seen and unreadable of all processes, at each check
        self._last: Skipped | None = None
        self._read_named()

    def count(self, result: dict[str, Any] | Skipped) -> dict[str, Any] | Skipped:
        """
        Counts what [`VideoChatCollator.try_encode`] gave, and gives it back.

        Raises:
            RuntimeError: if so many in a row are unreadable that it is no chance, or all are too long.
        """
        self.seen += 1
        if not isinstance(result, Skipped):
            self.lost_turns += result["lost_turns"]
            self.in_a_row = 0
            return result
        if self._process != os.getpid():  # a worker's copy: those before it have named examples, too
            self._read_named()
        if result.key not in self._named:
            self._named.add(result.key)
            self._name(result)
        if result.reason == "too long":
            self.too_long += 1
            if self.max_unreadable is not None and self.seen >= ENOUGH and self.too_long == self.seen:
                raise RuntimeError(f"All {self.seen} examples are too long: {result.error}. Raise `max_length`.")
            return result
        self.unreadable += 1
        self.in_a_row += 1
        self._last = result
        if self.max_unreadable is not None and self.in_a_row >= self._most_in_a_row():
            raise RuntimeError(f"{self.in_a_row} examples in a row could not be read. {self._advice()}")
        return result

    def check(self, seen: int, unreadable: int) -> None:
        """
        Judges the share of unreadable examples among the last ones. Called with the same counts, all processes of a
        job come to the same end.

        Args:
            seen, unreadable: Counts of all processes, since the start.

        Raises:
            RuntimeError: if more than `max_unreadable` are unreadable, and it is no chance.
        """
        limit = self.max_unreadable
        if limit is None:
            return
        if not self._window:  # after a resumption
            self._window.append((seen, unreadable))
        while len(self._window) > 1 and seen - self._window[1][0] >= WINDOW:
            self._window.popleft()
        recent, bad = seen - self._window[0][0], unreadable - self._window[0][1]
        self._window.append((seen, unreadable))
        chance = DEVIATIONS * math.sqrt(recent * limit * max(0.0, 1 - limit))
        if recent >= ENOUGH and bad > limit * recent + chance:
            raise RuntimeError(
                f"{bad} of the last {recent} examples could not be read, more than `max_unreadable`={limit:g} lets "
                f"through. {self._advice()}"
            )

    def _read_named(self) -> None:
        self._process = os.getpid()
        self._named = {skipped.key for skipped in read_skipped(self.file)} if self.file else set()

    def _most_in_a_row(self) -> int:
        """How many unreadable examples in a row come about once in 10^12, where just as many as allowed are."""
        limit = min(max(self.max_unreadable, 0.001), 0.999)
        return max(ENOUGH, math.ceil(-12 / math.log10(limit)))

    def _advice(self) -> str:
        last = f"The last one: {' '.join(self._last.key)}: {self._last.error}. " if self._last else ""
        return f"{last}{f'All are in {self.file}. ' if self.file else ''}Is the media folder the right one?"

    def _name(self, skipped: Skipped) -> None:
        logger.warning("Skipped, %s: %s %s: %s", skipped.reason, skipped.source, skipped.id, skipped.error)
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as lines:  # one write: processes may share the file
                lines.write(json.dumps(asdict(skipped), ensure_ascii=False) + "\n")

    def summary(self) -> str:
        """What was left out, by all processes and since the start where there is a file; each example once."""
        named = read_skipped(self.file) if self.file else []
        if not named:
            return f"All examples could be read ({self.seen} by this process)."
        unreadable = sum(skipped.reason == "unreadable" for skipped in named)
        return (
            f"{len(named)} examples were left out, {unreadable} unreadable and {len(named) - unreadable} too long: "
            f"see {self.file}"
        )

    def state_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTS}

    def load_state_dict(self, state: dict[str, int]) -> None:
        for name in COUNTS:
            setattr(self, name, state[name])
        self._window.clear()


COUNTS = ("seen", "unreadable", "too_long", "lost_turns")


def read_skipped(file: Path) -> list[Skipped]:
    """What a run has skipped, each example once. A line that the run was killed in is left out."""
    found = {(skipped := Skipped(**row)).key: skipped for row in read_lines(file)}
    return list(found.values())
