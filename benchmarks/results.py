"""What was measured, as rows: medians, spreads, ratios and shares of the limit."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs import JOBS
from measuring import FLOOR, OURS, Round

from pllava.result_files.formatting import markdown_table

SLOWER = 1.05  # times a peer's time: a slow row
FAR = 0.5  # of the limit: a slow row
COLUMNS = ["case", "", "time", "least to most", "ours / this", "of the limit", "peak GB", "above GB", "as ours"]


@dataclass(frozen=True)
class Row:
    """
    A contender in a case.

    Args:
        seconds, fastest, slowest: The median and the spread over the rounds.
        ratio: The seconds of ours, relative to those of this contender.
        share: The share of the limit that it reaches; `None` where it does no work of that kind.
        peak, above: Medians of memory in bytes: all of it, and above what was there before the work.
        agrees: Whether its result equals ours; `None` if there is none.
    """

    case: str
    contender: str
    seconds: float
    fastest: float
    slowest: float
    ratio: float
    share: float | None
    peak: float
    above: float
    agrees: bool | None


def rows(name: str, found: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a job's measured values (see `measure_job`)."""
    for case, contenders in found["cases"].items():
        ours = contenders[OURS]
        for contender, rounds in contenders.items():
            times = [each["seconds"] for each in rounds]
            yield Row(
                case,
                contender,
                statistics.median(times),
                min(times),
                max(times),
                _median(ours, "seconds") / statistics.median(times),
                _share(name, rounds, contenders, found["hardware"]),
                _median(rounds, "peak"),
                _median(rounds, "above"),
                rounds[-1]["result"] == ours[-1]["result"] if "result" in rounds[-1] and contender != OURS else None,
            )


def _share(name: str, rounds: list[Round], contenders: dict[str, list[Round]], hardware: list[Round]) -> float | None:
    limit = JOBS[name].limit
    if limit == FLOOR:
        return _median(contenders[FLOOR], "seconds") / _median(rounds, "seconds")
    work = rounds[-1]["flops" if limit == "matmul" else "moved"]
    return work / _median(hardware, limit) / _median(rounds, "seconds") if work else None


def _median(rounds: list[Round], key: str) -> float:
    return statistics.median(each[key] for each in rounds)


def slow_rows(name: str, found: dict[str, Any]) -> Iterator[tuple[Row, str]]:
    """Yield each row in which ours is slower than a peer, or far from the limit, with what the job says of it."""
    for row in rows(name, found):
        slower = not row.contender.startswith((OURS, FLOOR)) and row.ratio > SLOWER
        far = row.contender == OURS and row.share is not None and row.share < FAR
        if slower or far:
            reasons = JOBS[name].slow
            keys = (f"{row.contender}, {row.case}", row.contender, row.case)
            yield row, next((reasons[key] for key in keys if key in reasons), "")


def format_table(name: str, found: dict[str, Any]) -> str:
    """Return a job's rows as a Markdown table."""
    lines, last = [], None
    for row in rows(name, found):
        ratio = "" if row.contender in (OURS, FLOOR) else f"{row.ratio:.2f}"
        share = "" if row.share is None else f"{row.share:.0%}"
        agrees = {None: "", True: "yes", False: "no"}[row.agrees]
        spread = f"{duration(row.fastest)} to {duration(row.slowest)}"
        memory = [f"{row.peak / 1e9:.2f}", f"{row.above / 1e9:.2f}"]
        case = row.case if row.case != last else ""
        lines.append([case, row.contender, duration(row.seconds), spread, ratio, share, *memory, agrees])
        last = row.case
    return markdown_table(COLUMNS, lines)


def duration(seconds: float) -> str:
    """Return seconds with three digits and a unit."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
