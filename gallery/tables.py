"""The figures of a benchmark's runs: by task with intervals, beside the paper's, and the paired tests of two runs."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from ..eval.report.compare import compare
from ..eval.report.paper import paper_values
from ..result_files.folders import Metrics
from ..result_files.formatting import in_unit, main_measure, sorted_tasks
from .runs import Run

Figures = dict[str, Any]  # a `TaskRow` or a `Comparison` of the gallery's data


def compare_runs(runs: Sequence[Run]) -> list[Figures]:
    """
    Compare each run with those after it. Runs without scores have no comparisons.

    Raises:
        ValueError: if their samples or their judges differ, or only some of them have scores.
    """
    if not any(main_measure(run.metrics) for run in runs):
        return []
    return [_compare(first, second, runs[first], runs[second]) for first, second in combinations(range(len(runs)), 2)]


def _compare(first: int, second: int, one: Run, other: Run) -> Figures:
    measure, _, differences = compare(one.folder, other.folder)[one.settings["benchmark"]]
    rows = [
        {
            "task": each.task,
            "samples": each.samples,
            "difference": in_unit(measure, each.second - each.first),
            "interval": _interval(measure, each.interval),
            "p": each.p_value,
        }
        for each in differences
    ]
    return {"first": first, "second": second, "rows": rows}


def task_rows(runs: Sequence[Run], measure: str | None) -> tuple[list[Figures], list[Figures], Figures]:
    """
    Return the rows of the tasks, from the first run's best to its worst, those of a judge's aspects, if there are
    several, and the row of all samples.
    """
    first, paper = runs[0], paper_values(runs[0].benchmark, measure) if runs[0].benchmark and measure else {}

    def row(name: str, of: list[Metrics], key: str | None = measure, samples: str = "expected") -> Figures:
        chance = of[0].get("chance") if key == "accuracy" else None
        return {
            "name": name,
            "samples": of[0].get(samples),
            "runs": [_value(metrics, key, measure) for metrics in of],
            "paper": [{"name": model, "value": value} for model, value in paper.get(name, {}).items()],
            "chance": None if chance is None else in_unit("accuracy", chance),
        }

    names = sorted_tasks(first.metrics, measure) if measure else list(first.metrics["per_task"])
    tasks = [row(name, [run.metrics["per_task"][name] for run in runs]) for name in names]
    aspects = [
        row(name, [run.metrics["aspects"][name] for run in runs], samples="graded")
        for name in first.metrics.get("aspects", ())
    ]
    overall = row("all", [run.metrics for run in runs])
    if f"{measure}_over_grades" in first.metrics:
        # The paper's average is of this kind: aspects weigh more if more samples are graded in them
        over_grades = row("all", [run.metrics for run in runs], f"{measure}_over_grades")
        aspects.append({**over_grades, "name": "mean over all grades"})
        overall["paper"] = []
    return tasks, aspects if len(aspects) > 1 else [], overall


def _value(metrics: Metrics, key: str | None, measure: str | None) -> dict[str, Any] | None:
    if key not in metrics:
        return None
    return {"value": in_unit(measure, metrics[key]), "interval": _interval(measure, metrics.get(f"{key}_ci"))}


def _interval(measure: str, ends: Sequence[float] | None) -> list[float] | None:
    return None if ends is None else [in_unit(measure, end) for end in ends]
