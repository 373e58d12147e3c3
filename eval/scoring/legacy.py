"""The original PLLaVA's matcher, which makes mistakes, and its tables: for comparison with published results only."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..benchmarks.benchmark import Benchmark
from ..store import Row
from .multiple_choice import with_letter


def legacy_correct(prediction: str, reference: str) -> bool:
    """
    The original's matcher for MVBench: an answer is right if its first word contains that of the reference, or the
    other way round. So "A man opens" names option (A), and "The answer is (A)" names none.

    Args:
        prediction: The answer, from its "(" on.
        reference: The right option with its letter, "(A) Opened the door."
    """
    answer, right = prediction.lower().split(" ")[0], reference.lower().split(" ")[0]
    if not set(answer) & set("abcdefg"):
        return False
    return answer.replace(".", "") in right or right in answer


def legacy_table(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any] | None:
    """
    The table that the original's evaluation would write for these answers and grades.

    Returns:
        None if the original has no such table, if not all answers were judged, or if its matcher finds an option in no
        answer at all.
    """
    if benchmark.score == "multiple_choice":
        if not any(_names_an_option(row) for row in rows):
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
    grades = []
    for row in rows:
        for aspect in benchmark.aspects(row["task"]):
            score = row["scores"].get(aspect, 0)
            correct = row.get("correct", False) if aspect == "answer" else score > 3
            grades.append((row["task"] if aspect == "answer" else aspect, correct, score))
    return legacy_judged(grades)[0]


def _names_an_option(row: Row) -> bool:
    """Whether the original's matcher would accept the answer for any of the options, right or wrong."""
    return any(legacy_correct(row["prediction"], with_letter(option, row["options"])) for option in row["options"])


def legacy_mvbench(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, list[int]]]:
    """
    The original's table for MVBench.

    Args:
        rows: `{"task_type", "pred", "gt"}`. Samples whose clips cannot be read have a task type of their own,
            "error_reading_video".

    Returns:
        The accuracy in per cent by task, with "Avg" over all samples; and by task the numbers of right answers and of
        samples.
    """
    counts: dict[str, list[int]] = {}
    for row in rows:
        count = counts.setdefault(row["task_type"], [0, 0])
        count[0] += legacy_correct(row["pred"], row["gt"])
        count[1] += 1
    correct, total = (sum(column) for column in zip(*counts.values(), strict=True))
    return {**{task: 100 * a / b for task, (a, b) in counts.items()}, "Avg": 100 * correct / total}, counts


def legacy_judged(grades: Iterable[tuple[str, bool, float]]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """
    The original's table of a judge's grades. For VCGBench, the original counts the last grade twice in "Avg_Acc"; this
    function does not.

    Args:
        grades: Of each grade the name (a data set, or an aspect of VCGBench), whether the answer is correct (in
            VCGBench: a score above 3), and the score. Where the judge failed, the answer is wrong with score 0.

    Returns:
        By name "acc" (per cent) and the mean "score", with "Avg_Acc" and "Avg_Score" over all grades; and the counts
        behind it.
    """
    counts: dict[str, dict[str, float]] = {}
    for name, is_correct, points in grades:
        count = counts.setdefault(name, {"correct": 0, "total": 0, "score": 0})
        count["correct"] += is_correct
        count["total"] += 1
        count["score"] += points
    table: dict[str, Any] = {
        name: {"acc": 100 * count["correct"] / count["total"], "score": count["score"] / count["total"]}
        for name, count in counts.items()
    }
    correct, total, score = (sum(count[key] for count in counts.values()) for key in ("correct", "total", "score"))
    return {**table, "Avg_Acc": 100 * correct / total, "Avg_Score": score / total}, counts
