"""Two runs of the same benchmark: their difference in each task, and whether chance explains it."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from ...files import read_lines
from ...result_files.folders import read_metrics
from ...result_files.formatting import format_value, main_measure, markdown_table, measure_title, run_name
from ..scoring.statistics import confidence_interval, paired_p_value
from ..scoring.summary import Value, row_values

SMALLEST_P = 0.001  # the test draws two thousand times, so smaller p values cannot be told apart


@dataclass(frozen=True)
class Difference:
    """
    The second run's difference from the first in one task, over the samples that both have.

    Args:
        samples: The number of samples; for a judge with several aspects, of grades.
        first, second: The means of the two runs.
        interval: The 95 % interval of the difference.
        p_value: The probability that chance alone makes a difference as large.
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
        measure: The measure that was compared.
        names: The names of the two runs.
        differences: One per task, then one over all samples ("all").
    """

    measure: str
    names: tuple[str, str]
    differences: list[Difference]


def compare(first: str | Path, second: str | Path) -> dict[str, Comparison]:
    """
    Compare two runs on each benchmark that both have.

    Args:
        first, second: Folders of results, of one benchmark or of several.

    Returns:
        The comparisons by the benchmarks' names.

    Raises:
        ValueError: if the runs have no benchmark in common, or their scores cannot be compared, because of other
            samples or another judge.
    """
    runs = [_results_by_benchmark(Path(folder)) for folder in (first, second)]
    common = [name for name in runs[0] if name in runs[1]]
    if not common:
        raise ValueError(f"{first} and {second} have no benchmark in common: {sorted(runs[0])} and {sorted(runs[1])}")
    return {name: _compare_benchmark(runs[0][name], runs[1][name]) for name in common}


def format_differences(comparison: Comparison) -> str:
    """Return a table in Markdown."""
    measure, names, differences = comparison
    heads = ["task", "samples", *names, f"difference in {measure_title(measure)} [95 % interval]", "p"]
    rows = []
    for each in differences:
        means = [format_value(measure, mean) for mean in (each.first, each.second)]
        difference = format_value(measure, each.second - each.first, each.interval)
        p_value = f"{each.p_value:.3f}" if each.p_value >= SMALLEST_P else f"< {SMALLEST_P}"
        rows.append([each.task, str(each.samples), *means, difference, p_value])
    return markdown_table(heads, rows)


def _results_by_benchmark(folder: Path) -> dict[str, Path]:
    """The folders of results in `folder`, or `folder` itself, by the benchmark's name."""
    folders = [folder] if read_metrics(folder) else sorted(file.parent for file in folder.glob("*/metrics.json"))
    return {read_metrics(each)["benchmark"]: each for each in folders}


def check_same_samples(first: Path, second: Path) -> None:
    """Raise a `ValueError` if two folders have runs of other benchmarks or on other samples."""
    runs = [read_metrics(folder)["run"] for folder in (first, second)]
    for key in ("benchmark", "samples"):
        if runs[0][key] != runs[1][key]:
            raise ValueError(f"{first} and {second} cannot be compared: their {key} differ")


def _compare_benchmark(*folders: Path) -> Comparison:
    first, second = folders
    check_same_samples(first, second)
    runs = [read_metrics(folder) for folder in folders]
    judges = [
        {key: run["judge"][key] for key in ("model", "temperature", "prompts")} if "judge" in run else None
        for run in runs
    ]
    if judges[0] != judges[1]:
        raise ValueError(f"{first} was judged by {judges[0]}, {second} by {judges[1]}: such scores cannot be compared")
    measure = main_measure(runs[0])
    if measure is None or measure not in runs[1]:
        raise ValueError(f"{first} and {second} have no measure in common; have both been judged?")
    names = [run_name(run["run"]) for run in runs]
    if names[0] == names[1]:
        names = [f"{name} ({folder})" for name, folder in zip(names, folders, strict=True)]
    values = [_values(folder, measure) for folder in folders]
    pairs = [(values[0][key], values[1][key]) for key in values[0] if key in values[1]]
    tasks = list(dict.fromkeys(value.task for value, _ in pairs))
    by_task = [_difference(task, [pair for pair in pairs if pair[0].task == task]) for task in tasks]
    differences = [*(by_task if len(tasks) > 1 else []), _difference("all", pairs)]
    return Comparison(measure, tuple(names), differences)


def _values(folder: Path, measure: str) -> dict[Any, Value]:
    """The values of a measure by sample and aspect."""
    return {
        (row["id"], value.aspect): value
        for row in read_lines(folder / "predictions.jsonl")
        for value in row_values([row])
        if value.measure == measure
    }


def _difference(task: str, pairs: list[tuple[Value, Value]]) -> Difference:
    firsts, seconds = ([value.value for value in values] for values in zip(*pairs, strict=True))
    changes = [second - first for first, second in zip(firsts, seconds, strict=True)]
    clips = [value.clip for value, _ in pairs]
    interval = confidence_interval(changes, clips, fractions=False)
    return Difference(task, len(pairs), fmean(firsts), fmean(seconds), interval, paired_p_value(changes, clips))
