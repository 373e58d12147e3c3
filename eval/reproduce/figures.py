"""A cell's figures: the paper's beside those of a run, and whether chance explains the difference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...result_files.folders import Metrics
from ...result_files.formatting import in_unit
from ..benchmarks.benchmark import Benchmark
from ..report.paper import paper_values
from .lock import Lock

WITHIN, OUTSIDE, CANNOT_TELL = "within the interval", "outside the interval", "cannot tell"
TOLERANCE = 1e-9  # of sums in floating point


@dataclass(frozen=True)
class Figure:
    """
    A figure of the paper and that of a run, in the units that people read.

    Args:
        name: A task, a judge's aspect, or "all".
        measure: The run's measure. The original's own matcher computed the paper's accuracy on MVBench.
        paper: The paper's value.
        digits: The decimal places of the paper's value.
        ours, interval: The run's value and its 95 % interval; None if it has none.
        verdict: Whether the paper's value lies in the interval, which is widened by half a unit of the paper's last
            digit at both ends.
        reason: Why that cannot be told, or by how much the value lies outside.
    """

    name: str
    measure: str
    paper: float
    digits: int
    ours: float | None
    interval: tuple[float, float] | None
    verdict: str
    reason: str | None


def compare_figures(lock: Lock, benchmark: Benchmark, metrics: Metrics) -> list[Figure]:
    """Compare all figures of a cell with the metrics of a run."""
    figures = []
    for measure, columns in paper_columns(benchmark).items():
        for name, column in columns.items():
            own = "accuracy_legacy" if f"{measure}_legacy" in metrics else measure
            part = _part(name, metrics)
            key = f"{own}_over_grades" if name == "all" and f"{own}_over_grades" in metrics else own
            value, ends = part.get(key), part.get(f"{key}_ci")
            ours = None if value is None else in_unit(own, value)
            interval = ends and (in_unit(own, ends[0]), in_unit(own, ends[1]))
            paper, digits = column[lock.paper_row], decimal_places(column)
            reason = next(_obstacles(lock, metrics, part, ours, interval), None)
            verdict, reason = (CANNOT_TELL, reason) if reason else _decide(paper, digits, interval)
            figures.append(Figure(name, own, paper, digits, ours, interval, verdict, reason))
    return figures


def paper_columns(benchmark: Benchmark) -> dict[str, dict[str, dict[str, float]]]:
    """Return the [`paper_values`] of each measure. Those of a benchmark's only task are there once, as "all"."""
    columns = {}
    for measure in ("accuracy", "score") if benchmark.score == "judge" else ("accuracy",):
        values = paper_values(benchmark, measure)
        columns[measure] = {name: values[name] for name in values if name == "all" or len(benchmark.tasks) > 1}
    return columns


def decimal_places(column: Mapping[str, float]) -> int:
    """Return the decimal places of the values of one column: JSON has 3.60 as 3.6."""
    return max(len(str(value).partition(".")[2]) for value in column.values())


def _part(name: str, metrics: Metrics) -> Metrics:
    """The metrics of a task or of a judge's aspect."""
    return metrics if name == "all" else metrics["per_task"].get(name) or metrics.get("aspects", {}).get(name, {})


def _obstacles(
    lock: Lock, metrics: Metrics, part: Metrics, ours: float | None, interval: tuple[float, float] | None
) -> Iterator[str]:
    """Yield why a figure cannot be compared."""
    if metrics["run"]["limit"] is not None:
        yield "--limit asks a part of the samples only"
    if metrics.get("judged") is False:
        yield "the answers were not judged (--judge)"
    if metrics["expected"] != lock.samples:
        yield f"the data have {metrics['expected']:,} samples instead of {lock.samples:,}"
    counted = part if "coverage" in part else metrics
    if counted["coverage"] < 1:
        yield f"{counted['evaluated']:,} of {counted['expected']:,} samples were evaluated"
    if ours is None:
        yield "the run has no such figure"
    if interval is None:
        yield "an interval needs two clips"


def _decide(paper: float, digits: int, interval: tuple[float, float]) -> tuple[str, str | None]:
    """Return the verdict on a value of the paper, and by how much it lies outside the interval."""
    rounding = 0.5 * 10**-digits
    low, high = interval[0] - rounding, interval[1] + rounding
    if low - TOLERANCE <= paper <= high + TOLERANCE:
        return WITHIN, None
    return OUTSIDE, f"{low - paper:.2f} below it" if paper < low else f"{paper - high:.2f} above it"
