"""What training leaves out: counted, named in a log and in a file, and too much of it stops the run."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import read_lines

logger = logging.getLogger(__name__)
ENOUGH = 20  # examples after which a share says something


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
        max_unreadable (`float`): The largest share of unreadable examples that a run goes on with.
    """

    def __init__(self, file: Path | None = None, max_unreadable: float = 0.2):
        self.file, self.max_unreadable = file, max_unreadable
        self.seen = self.unreadable = self.too_long = self.lost_turns = 0
        self._named = {skipped.key for skipped in read_skipped(file)} if file else set()

    def count(self, result: dict[str, Any] | Skipped) -> dict[str, Any] | Skipped:
        """
        Counts what [`VideoChatCollator.try_encode`] gave, and gives it back.

        Raises:
            RuntimeError: if more than the share that is let through is unreadable.
        """
        self.seen += 1
        if not isinstance(result, Skipped):
            self.lost_turns += result["lost_turns"]
            return result
        if result.reason == "too long":
            self.too_long += 1
        else:
            self.unreadable += 1
        if result.key not in self._named:
            self._named.add(result.key)
            self._name(result)
        if self.seen >= ENOUGH and self.unreadable > self.max_unreadable * self.seen:
            raise RuntimeError(
                f"{self.unreadable} of {self.seen} examples could not be read, more than `max_unreadable`="
                f"{self.max_unreadable:g} lets through. The last one: {result.media}: {result.error}. "
                + (f"All are in {self.file}. " if self.file else "")
                + "Is the media folder the right one?"
            )
        if self.seen >= ENOUGH and self.too_long == self.seen:
            raise RuntimeError(f"All {self.seen} examples are too long: {result.error}. Raise `max_length`.")
        return result

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


COUNTS = ("seen", "unreadable", "too_long", "lost_turns")


def read_skipped(file: Path) -> list[Skipped]:
    """What a run has skipped, each example once. A line that the run was killed in is left out."""
    found = {(skipped := Skipped(**row)).key: skipped for row in read_lines(file)}
    return list(found.values())
