"""Two runs of the same benchmark: by how much they differ in each task, and whether chance explains it."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..files import read_lines
from .results import read_metrics
from .statistics import confidence_interval, paired_p_value
from .summary import Value, format_value, main_measure, measure

ALIKE = ("benchmark", "samples")  # what two runs must have in common to be compared


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


def compare(first: str | Path, second: str | Path) -> dict[str, tuple[str, list[Difference]]]:
    """
    Args:
        first, second: Folders of results: of one benchmark, or of several, of which the common ones are compared.

    Returns:
        By benchmark the measure, and the differences by task, those of all samples ("all") last.

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


def _compare(first: Path, second: Path) -> tuple[str, list[Difference]]:
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
    return name, [*(by_task if len(tasks) > 1 else []), _difference("all", pairs)]


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
        confidence_interval(changes, clips),
        paired_p_value(changes, clips),
    )


def format_differences(name: str, differences: list[Difference]) -> str:
    """A table in Markdown."""
    lines = [f"| task | samples | first | second | difference in {name} [95 % interval] | p |", "|---|" + "---:|" * 5]
    for each in differences:
        change = format_value(name, each.second - each.first, each.interval)
        cells = [each.task, str(each.samples), format_value(name, each.first), format_value(name, each.second), change]
        lines.append(f"| {' | '.join(cells)} | {each.p_value:.3f} |")
    return "\n".join(lines)
