"""From a run's lines to its metrics, each with its interval and its coverage."""

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from statistics import fmean
from typing import Any

import torch

from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Sample
from ..store import Row, texts_of
from .multiple_choice import legacy_correct, legacy_judged, legacy_mvbench, with_letter
from .score import RULES
from .statistics import confidence_interval

# What lines hold, and what the mean of it is called; of several, the first is a run's main figure
MEASURES = {
    "correct": "accuracy",
    "legacy_correct": "accuracy_legacy",
    "score": "score",
    "cider": "cider",
    "rouge_l": "rouge_l",
    "words": "words",
}
# What measures are shown in: metrics.json has fractions, people read per cent
UNITS = {"accuracy": "%", "accuracy_legacy": "%", "score": "0 to 5", "cider": "0 to 10", "rouge_l": "%"}
LIBRARIES = ("pllava", "transformers", "torch", "peft", "accelerate", "av")

Metrics = dict[str, Any]  # what metrics.json has, or its part about a task


@dataclass(frozen=True)
class Value:
    """What one sample adds to a measure. `aspect` is a judge's, or "" where there is none."""

    measure: str
    value: float
    task: str
    clip: tuple[Any, ...]
    aspect: str = ""


def summarise(benchmark: Benchmark, samples: Sequence[Sample], rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """
    The metrics of a run, fractions from 0 to 1 but for scores, which are 0 to 5.

    What the model or the data failed at counts: an answer that is empty, or that a broken clip does not allow, is
    wrong and scores 0. What the judge failed at does not. Both are counted, and `coverage` is the share of all samples
    that were evaluated. `chance` is what guessing among the options comes to, where there are options. What the
    original's matcher gives is left out where it finds an option in no answer at all, as it then measures nothing.

    Args:
        samples: All that should be there.
        rows: Those that are.
    """
    values, legacy = list(measure(rows)), legacy_table(benchmark, rows)
    if legacy is None:
        values = [value for value in values if value.measure != "accuracy_legacy"]
    per_task = {
        task: {
            **_counts([sample for sample in samples if sample.task == task], _of(task, rows), benchmark),
            **_means([value for value in values if value.task == task], seed),
        }
        for task in dict.fromkeys(sample.task for sample in samples)
    }
    aspects = dict.fromkeys(value.aspect for value in values if value.aspect)
    return {
        **_means(values, seed),
        **_counts(samples, rows, benchmark),
        "per_task": per_task,
        **({"aspects": {name: _aspect(values, rows, name, seed) for name in aspects}} if aspects else {}),
        **({"legacy": legacy} if legacy else {}),
    }


def legacy_table(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any] | None:
    """
    The table that the original would make of these answers and verdicts, by its rules: its figures can be compared
    with published ones, and should not be trusted further. None where it has no such table, or its matcher finds an
    option in no answer.
    """
    if benchmark.score == "multiple_choice":
        if not any(_legacy_option_named(row) for row in rows):
            return None
        return legacy_mvbench(
            {
                "task_type": "error_reading_video" if "error" in row else row["task"],
                "pred": row["prediction"],
                "gt": with_letter(row["reference"], row["options"]),
            }
            for row in rows
        )[0]
    if benchmark.score != "judge" or not all("judge" in row for row in rows):
        return None
    verdicts = []
    for row in rows:
        for aspect in benchmark.aspects(row["task"]):
            score = row["scores"].get(aspect, 0)
            right = row.get("correct", False) if aspect == "answer" else score > 3
            verdicts.append((row["task"] if aspect == "answer" else aspect, right, score))
    return legacy_judged(verdicts)[0]


def _legacy_option_named(row: Row) -> bool:
    """Whether the original's matcher would take the answer for one of the options, the right one or another."""
    return any(legacy_correct(row["prediction"], with_letter(option, row["options"])) for option in row["options"])


def measure(rows: Iterable[Row]) -> Iterator[Value]:
    """All that can be averaged."""
    for row in rows:
        common = {"task": row["task"], "clip": (row["video"], row.get("start"), row.get("end"))}
        for aspect, score in row.get("scores", {}).items():
            yield Value("score", float(score), aspect=aspect, **common)
        for key, name in MEASURES.items():
            if key in row and not (key == "score" and "scores" in row):
                yield Value(name, float(row[key]), **common)


def _of(task: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["task"] == task]


def _means(values: Sequence[Value], seed: int) -> dict[str, Any]:
    """The mean of each measure, and its interval. A score of several aspects is the mean of their means."""
    means: dict[str, Any] = {}
    for name in dict.fromkeys(value.measure for value in values):
        of_name = [value for value in values if value.measure == name]
        by_aspect: dict[str, list[float]] = {}
        for value in of_name:
            by_aspect.setdefault(value.aspect, []).append(value.value)
        numbers, clips, aspects = zip(*((v.value, v.clip, v.aspect) for v in of_name), strict=True)
        means[name] = fmean(fmean(of_aspect) for of_aspect in by_aspect.values())
        fractions = UNITS.get(name) == "%"
        means[f"{name}_ci"] = confidence_interval(numbers, clips, aspects, seed=seed, fractions=fractions)
        if len(by_aspect) > 1:  # as the original averages: aspects that are asked of more samples weigh more
            means[f"{name}_over_grades"] = fmean(numbers)
    return means


def _aspect(values: Sequence[Value], rows: Sequence[Row], aspect: str, seed: int) -> dict[str, Any]:
    of_aspect = [value for value in values if value.aspect == aspect]
    failed = sum(aspect in row.get("judge_errors", {}) for row in rows)
    return {**_means(of_aspect, seed), "graded": len(of_aspect), "judge_failed": failed}


def _counts(samples: Sequence[Sample], rows: Sequence[Row], benchmark: Benchmark) -> dict[str, Any]:
    evaluated = [row for row in rows if "error" not in row and "judge_errors" not in row]
    empty = benchmark.answer_prefix.strip()
    counts = {
        "coverage": len(evaluated) / len(samples),
        "evaluated": len(evaluated),
        "expected": len(samples),
        "unreadable": sum("error" in row for row in rows),
        "damaged": sum("damaged" in row for row in rows),
        "truncated": sum("truncated" in row for row in rows),
        "empty": sum(
            any(text.strip() in ("", empty) for text in texts_of(row["prediction"]))
            for row in rows
            if "error" not in row
        ),
    }
    options = [len(sample.options) or benchmark.choices.get(sample.task, 0) for sample in samples]
    if benchmark.score in RULES and all(options):
        counts["chance"] = fmean(1 / each for each in options)
    if benchmark.score == "judge":
        counts["judged"] = all("judge" in row for row in rows)
        counts["judge_failed"] = sum(len(row.get("judge_errors", {})) for row in rows)
    return counts


def environment(seed: int) -> dict[str, Any]:
    """What figures are to be seen with: versions, hardware, seed."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = "not installed"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"versions": versions, "hardware": gpu or f"{platform.machine()}, {os.cpu_count()} cores", "seed": seed}


# --- for people ------------------------------------------------------------------------------------------------------
