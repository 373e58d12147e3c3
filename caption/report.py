"""What a run did: captions, failures by reason, flags, speed, and waits."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .clips import Row

HOUR = 3600
MAX_WAIT = 0.1  # of the time; beyond it, more workers would help
REASONS_SHOWN = 5
MIN_CLIPS = 50  # for a statement about speed


@dataclass
class Report:
    """
    The figures of one process, or of all.

    Args:
        captioned, failed: Clips with new captions, and clips without; a clip may get several captions.
        known: Clips whose captions were in the file.
        copies: Clips with the content of another one, which has the captions.
        captions: New captions.
        reasons: The clips that failed, by reason.
        flags: The new captions with a flag, by flag.
        seconds: Wall time, without the loading of the model.
        waited: Seconds in which the model waited for clips.
        workers: Processes that decode.
        processes: Processes that have a model.
    """

    captioned: int = 0
    failed: int = 0
    known: int = 0
    copies: int = 0
    captions: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    waited: float = 0.0
    workers: int = 0
    processes: int = 1
    began: float = field(default_factory=time.monotonic, repr=False)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Leave the time of a `with` block out of `seconds`."""
        began = time.monotonic()
        yield
        self.began += time.monotonic() - began

    def stop(self) -> None:
        self.seconds = time.monotonic() - self.began

    def add(self, rows: Iterable[Row]) -> None:
        """Count new rows."""
        captioned = set()
        for row in rows:
            if "error" in row:
                self.failed += 1
                self.reasons[_reason(row)] += 1
                continue
            captioned.add((row["video"], row["sha256"], row.get("start"), row.get("end")))
            self.captions += 1
            self.flags.update(row.get("flags", ()))
        self.captioned += len(captioned)

    @classmethod
    def total(cls, reports: list["Report"]) -> "Report":
        """Return the sum of the processes' figures; times are the longest process's, waits the mean."""
        first, *others = reports
        summed = {
            name: sum((getattr(report, name) for report in others), value)
            for name, value in vars(first).items()
            if name not in ("began", "seconds")
        }
        waited = summed.pop("waited") / len(reports)
        return cls(**summed, seconds=max(report.seconds for report in reports), waited=waited)

    @property
    def clips(self) -> int:
        """The clips of which is known what becomes of them."""
        return self.captioned + self.failed + self.known + self.copies

    @property
    def clips_per_hour(self) -> float:
        return HOUR * self.captioned / (self.seconds or time.monotonic() - self.began)

    @property
    def captions_per_hour(self) -> float:
        return HOUR * self.captions / (self.seconds or time.monotonic() - self.began)

    def summary(self) -> str:
        """Return the line of counts."""
        copies = f", {self.copies} copies of others" if self.copies else ""
        return f"{self.captioned} captioned, {self.known} done before{copies}, {self.failed} failed"

    def lines(self) -> list[str]:
        """Return what there is to say besides the counts."""
        lines = [f"failed: {count} x {reason}" for reason, count in self.reasons.most_common(REASONS_SHOWN)]
        if len(self.reasons) > REASONS_SHOWN:
            lines.append(f"failed: {len(self.reasons) - REASONS_SHOWN} other reasons, see the lines with an error")
        lines += [f"flagged: {count} {flag}" for flag, count in self.flags.most_common()]
        if self.captioned < MIN_CLIPS:
            return lines
        lines.append(
            f"{self.clips_per_hour:,.0f} clips an hour; a million clips at this rate: "
            f"{1e6 / self.clips_per_hour:,.0f} hours"
        )
        if self.workers and (share := self.waited / self.seconds) > MAX_WAIT:
            waited = f"the model waited {share:.0%} of the time for clips from {self.workers} workers"
            lines.append(f"{waited}; --workers sets their number")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for a file."""
        figures = {name: value for name, value in vars(self).items() if name != "began"}
        return {**figures, "clips_per_hour": round(self.clips_per_hour, 1)}


def _reason(row: Row) -> str:
    """Return why a clip failed, without what differs from clip to clip: its name, and numbers."""
    reason = row["error"]
    for name in (row.get("path"), row["video"]):
        reason = reason.replace(name, "...") if name else reason
    return re.sub(r"\d[\d,.]*", "N", " ".join(reason.split()))
