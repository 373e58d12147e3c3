"""The score of an answer by the benchmark's rule, and of all captions of a run together."""

from collections.abc import Callable, Sequence

from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Sample
from ..models.answer import Answer
from ..store import Row, to_row
from .legacy import legacy_correct
from .multiple_choice import multiple_choice_correct, normalise_answer, with_letter

# Rules that score one answer by itself. Captions and a judge's benchmarks are scored when all answers are there
RULES: dict[str, Callable[[Sample, str], bool | float]] = {
    "multiple_choice": lambda sample, answer: multiple_choice_correct(answer, sample.reference, sample.options),
    "exact": lambda sample, answer: exactly_correct(answer, sample.reference),
}


def scored_row(benchmark: Benchmark, sample: Sample, answer: Answer) -> Row:
    """Return the line of predictions.jsonl for an answer, with its score if the benchmark has a rule."""
    return {**to_row(sample, answer), **score_answer(benchmark, sample, answer)}


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


def score_captions(rows: Sequence[Row]) -> None:
    """Add "words" to each row, and "cider" and "rouge_l" where there is a reference."""
    for row in rows:
        row["words"] = len(row["prediction"].split())
    if with_reference := [row for row in rows if row["reference"]]:
        from .captions import caption_scores

        predictions, references = ([row[key] for row in with_reference] for key in ("prediction", "reference"))
        for name, scores in caption_scores(predictions, references).items():
            for row, score in zip(with_reference, scores, strict=True):
                row[name] = score
