"""The score of one answer by the benchmark's rule."""

from collections.abc import Callable

from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Sample
from ..models.answerer import Answer
from .multiple_choice import exactly_correct, legacy_correct, multiple_choice_correct, with_letter

# What a sample is worth by itself: a bool, or a number from 0 to 5. "judge" and "caption" are scored together
RULES: dict[str, Callable[[Sample, str], bool | float]] = {
    "multiple_choice": lambda sample, answer: multiple_choice_correct(answer, sample.reference, sample.options),
    "exact": lambda sample, answer: exactly_correct(answer, sample.reference),
}


def find_rule(benchmark: Benchmark) -> Callable[[Sample, str], bool | float] | None:
    """What one answer is worth; None where answers are judged, or scored all together."""
    if benchmark.score in ("judge", "caption"):
        return None
    return RULES.get(benchmark.score) or benchmark.custom_rule


def score_answer(benchmark: Benchmark, sample: Sample, answer: Answer) -> dict[str, bool | float]:
    """What the rule gives; to a sample that could not be asked about, the least: False, or 0."""
    rule = find_rule(benchmark)
    if rule is None:
        return {}
    text = answer.texts[0] if answer.texts else ""
    value = rule(sample, text)
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f"{benchmark.score} gives a {type(value).__name__}, not a bool or a number: {value!r}")
    value = value if answer.error is None else type(value)()
    worth = {"correct": value} if isinstance(value, bool) else {"score": float(value)}
    if benchmark.score == "multiple_choice":
        worth["legacy_correct"] = legacy_correct(text, with_letter(sample.reference, sample.options))
    return worth
