"""Two runs of the same benchmark: by how much they differ in each task, and whether chance explains it."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from ...files import read_lines
from ..scoring.statistics import confidence_interval, paired_p_value
from ..scoring.summary import Metrics, Value, measure
from ..store import read_metrics
from .formatting import format_value, main_measure, measure_title, run_name

ALIKE = ("benchmark", "samples")  # what two runs must have in common to be compared
SMALLEST = 0.001  # of the p values that are told apart: the test draws two thousand times


@dataclass(frozen=True)
class Difference:
    """
    Of the second run from the first, over the samples that both have.

    Args:
        interval: Of the difference, 95 %.
        p_value: How often chance alone makes a difference as large.
    """

    task: str
    samples: int
    first: float
    second: float
    interval: tuple[float, float] | None
    p_value: float


class Comparison(NamedTuple):
    """
    Args:
        measure: What was compared.
        names: What the two runs are called.
        differences: By task, those of all samples ("all") last.
    """

    measure: str
    names: tuple[str, str]
    differences: list[Difference]


def compare(first: str | Path, second: str | Path) -> dict[str, Comparison]:
    """
    Args:
        first, second: Folders of results: of one benchmark, or of several, of which the common ones are compared.

    Returns:
        The comparison of each benchmark, by its name.

    Raises:
        ValueError: if the two have no benchmark in common, or their scores cannot be compared: other samples, another
            judge.
    """
    runs = [_runs(Path(folder)) for folder in (first, second)]
    common = [name for name in runs[0] if name in runs[1]]
    if not common:
        raise ValueError(f"{first} and {second} have no benchmark in common: {sorted(runs[0])} and {sorted(runs[1])}")
    return {name: _compare(runs[0][name], runs[1][name]) for name in common}


def _runs(folder: Path) -> dict[str, Path]:
    """The folders of results in `folder`, or `folder` itself, by the benchmark's name."""
    folders = [folder] if read_metrics(folder) else sorted(file.parent for file in folder.glob("*/metrics.json"))
    return {read_metrics(each)["benchmark"]: each for each in folders}


def _compare(first: Path, second: Path) -> Comparison:
    one, other = read_metrics(first), read_metrics(second)
    for name in ALIKE:
        if one["run"][name] != other["run"][name]:
            raise ValueError(f"{first} and {second} cannot be compared: their {name} differ")
    judges = [
        {name: run["judge"][name] for name in ("model", "temperature", "prompts")} if "judge" in run else None
        for run in (one, other)
    ]
    if judges[0] != judges[1]:
        raise ValueError(f"{first} was judged by {judges[0]}, {second} by {judges[1]}: such scores cannot be compared")
    name = main_measure(one)
    if name is None or name not in other:
        raise ValueError(f"{first} and {second} have no measure in common; have both been judged?")
    values = [_values(folder, name) for folder in (first, second)]
    pairs = [(values[0][key], values[1][key]) for key in values[0] if key in values[1]]
    tasks = list(dict.fromkeys(mine.task for mine, _ in pairs))
    by_task = [_difference(task, [pair for pair in pairs if pair[0].task == task]) for task in tasks]
    differences = [*(by_task if len(tasks) > 1 else []), _difference("all", pairs)]
    return Comparison(name, _names(first, one, second, other), differences)


def _names(first: Path, one: Metrics, second: Path, other: Metrics) -> tuple[str, str]:
    """What the two are called; where that is the same, their folders tell them apart."""
    names = run_name(one["run"]), run_name(other["run"])
    return names if names[0] != names[1] else (f"{names[0]} ({first})", f"{names[1]} ({second})")


def _values(folder: Path, name: str) -> dict[Any, Value]:
    """The values of a measure by sample and aspect."""
    return {
        (row["id"], value.aspect): value
        for row in read_lines(folder / "predictions.jsonl")
        for value in measure([row])
        if value.measure == name
    }


def _difference(task: str, pairs: list[tuple[Value, Value]]) -> Difference:
    changes = [other.value - mine.value for mine, other in pairs]
    clips = [mine.clip for mine, _ in pairs]
    return Difference(
        task,
        len(pairs),
        fmean(mine.value for mine, _ in pairs),
        fmean(other.value for _, other in pairs),
        confidence_interval(changes, clips, fractions=False),
        paired_p_value(changes, clips),
    )


def format_differences(comparison: Comparison) -> str:
    """A table in Markdown."""
    name, names, differences = comparison
    heads = ["task", "samples", *names, f"difference in {measure_title(name)} [95 % interval]", "p"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * 5]
    for each in differences:
        change = format_value(name, each.second - each.first, each.interval)
        cells = [each.task, str(each.samples), format_value(name, each.first), format_value(name, each.second), change]
        p_value = f"{each.p_value:.3f}" if each.p_value >= SMALLEST else f"< {SMALLEST}"
        lines.append(f"| {' | '.join(cells)} | {p_value} |")
    return "\n".join(lines)
