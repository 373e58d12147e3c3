"""The score of one answer by the benchmark's rule."""

from collections.abc import Callable

from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Sample
from ..models.answerer import Answer
from .legacy import legacy_correct
from .multiple_choice import multiple_choice_correct, normalise_answer, with_letter

# Rules that score one answer by itself. A judge, and CIDEr and ROUGE-L ("caption"), score all answers at the end
RULES: dict[str, Callable[[Sample, str], bool | float]] = {
    "multiple_choice": lambda sample, answer: multiple_choice_correct(answer, sample.reference, sample.options),
    "exact": lambda sample, answer: exactly_correct(answer, sample.reference),
}


def score_answer(benchmark: Benchmark, sample: Sample, answer: Answer) -> dict[str, bool | float]:
    """Return "correct" or "score" by the benchmark's rule. Without an answer that is False, or 0."""
    if benchmark.score in ("judge", "caption"):
        return {}
    rule = RULES.get(benchmark.score) or benchmark.custom_rule
    text = answer.texts[0] if answer.texts else ""
    value = rule(sample, text)
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f"{benchmark.score} gives a {type(value).__name__}, not a bool or a number: {value!r}")
    if answer.error is not None:
        value = type(value)()
    score = {"correct": value} if isinstance(value, bool) else {"score": float(value)}
    if benchmark.score == "multiple_choice":
        score["legacy_correct"] = legacy_correct(text, with_letter(sample.reference, sample.options))
    return score


def exactly_correct(prediction: str, reference: str) -> bool:
    """Whether the answer is the reference, apart from case, white space and a full stop. An empty answer is wrong."""
    return normalise_answer(prediction) == normalise_answer(reference) != ""
