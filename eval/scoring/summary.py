"""The metrics of a run from the rows of its predictions.jsonl, with confidence intervals and coverage."""

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ...environment import hardware, library_versions
from ...result_files.folders import MEASURES, UNITS, Metrics
from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Sample
from ..store import Row, texts_of
from .legacy import legacy_table
from .score import RULES
from .statistics import confidence_interval

LIBRARIES = ("pllava", "transformers", "torch", "peft", "accelerate", "av")


@dataclass(frozen=True)
class Value:
    """One sample's value of a measure. `aspect` is a judge's, or "" where there is none."""

    measure: str
    value: float
    task: str
    clip: tuple[Any, ...]
    aspect: str = ""


def summarise(benchmark: Benchmark, samples: Sequence[Sample], rows: Sequence[Row], seed: int = 0) -> Metrics:
    """
    Return the metrics of a run: scores from 0 to 5, CIDEr from 0 to 10, all others as fractions.

    Failures of the model or the data count: an empty answer and an unreadable clip are wrong and score 0. Failures of
    the judge do not. Both are counted, and `coverage` is the fraction of all samples without either. `chance` is the
    accuracy of guessing among the options, where there are options. The accuracy by the original's matcher is left out
    if the matcher finds an option in no answer at all.

    Args:
        samples: All samples of the run.
        rows: The rows of those that were answered.
    """
    values, legacy = list(row_values(rows)), legacy_table(benchmark, rows)
    if legacy is None:
        values = [value for value in values if value.measure != "accuracy_legacy"]
    per_task = {}
    for task in dict.fromkeys(sample.task for sample in samples):
        task_samples = [sample for sample in samples if sample.task == task]
        task_rows = [row for row in rows if row["task"] == task]
        task_values = [value for value in values if value.task == task]
        per_task[task] = {**_counts(benchmark, task_samples, task_rows), **_means(task_values, seed)}
    aspects = {}
    for aspect in dict.fromkeys(value.aspect for value in values if value.aspect):
        grades = [value for value in values if value.aspect == aspect]
        failed = sum(aspect in row.get("judge_errors", {}) for row in rows)
        aspects[aspect] = {**_means(grades, seed), "graded": len(grades), "judge_failed": failed}
    return {
        **_means(values, seed),
        **_counts(benchmark, samples, rows),
        "per_task": per_task,
        **({"aspects": aspects} if aspects else {}),
        **({"legacy": legacy} if legacy else {}),
    }


def row_values(rows: Iterable[Row]) -> Iterator[Value]:
    """Yield all values of rows that can be averaged."""
    for row in rows:
        common = {"task": row["task"], "clip": (row["video"], row.get("start"), row.get("end"))}
        for aspect, score in row.get("scores", {}).items():
            yield Value("score", float(score), aspect=aspect, **common)
        for key, measure in MEASURES.items():
            if key in row and not (key == "score" and "scores" in row):
                yield Value(measure, float(row[key]), **common)


def _means(values: Sequence[Value], seed: int) -> Metrics:
    """Return the mean and the interval of each measure. A score with several aspects is the mean of their means."""
    means: Metrics = {}
    for measure in dict.fromkeys(value.measure for value in values):
        numbers, clips, aspects = zip(
            *((each.value, each.clip, each.aspect) for each in values if each.measure == measure), strict=True
        )
        by_aspect: dict[str, list[float]] = {}
        for aspect, number in zip(aspects, numbers, strict=True):
            by_aspect.setdefault(aspect, []).append(number)
        means[measure] = fmean(map(fmean, by_aspect.values()))
        fractions = UNITS.get(measure) == "%"
        means[f"{measure}_ci"] = confidence_interval(numbers, clips, aspects, seed=seed, fractions=fractions)
        if len(by_aspect) > 1:  # the original's mean, in which an aspect weighs more if it has more samples
            means[f"{measure}_over_grades"] = fmean(numbers)
            means[f"{measure}_over_grades_ci"] = confidence_interval(numbers, clips, seed=seed, fractions=fractions)
    return means


def _counts(benchmark: Benchmark, samples: Sequence[Sample], rows: Sequence[Row]) -> Metrics:
    evaluated = sum("error" not in row and "judge_errors" not in row for row in rows)
    empty = ("", benchmark.answer_prefix.strip())
    answered = [texts_of(row["prediction"]) for row in rows if "error" not in row]
    counts = {
        "coverage": evaluated / len(samples),
        "evaluated": evaluated,
        "expected": len(samples),
        "unreadable": sum("error" in row for row in rows),
        "damaged": sum("damaged" in row for row in rows),
        "truncated": sum("truncated" in row for row in rows),
        "empty": sum(any(text.strip() in empty for text in texts) for texts in answered),
    }
    choices = [len(sample.options) or benchmark.choices.get(sample.task, 0) for sample in samples]
    if benchmark.score in RULES and all(choices):
        counts["chance"] = fmean(1 / number for number in choices)
    if benchmark.score == "judge":
        counts["judged"] = all("judge" in row for row in rows)
        counts["judge_failed"] = sum(len(row.get("judge_errors", {})) for row in rows)
    return counts


def environment(seed: int) -> dict[str, Any]:
    """Return the versions of the libraries, the hardware and the seed, as metrics.json has them."""
    versions = {"python": platform.python_version(), **library_versions(LIBRARIES)}
    return {"versions": versions, "hardware": hardware(), "seed": seed}
