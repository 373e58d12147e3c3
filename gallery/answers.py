"""A run's answer to a sample as the gallery shows it: how it was read, its status, its grades, and what went wrong."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ..eval.benchmarks.samples import LETTERS
from ..eval.scoring.judge_replies import MAX_SCORE
from ..eval.scoring.multiple_choice import normalise_answer, option_named
from ..eval.store import Row, texts_of

MAX_CIDER = 10
OTHER_READING = 0.1  # disagreement of answers that are equally right but are read, or worded, in different ways

Answer = dict[str, Any]  # an `Answer` of the gallery's data


def describe_answer(row: Row, rule: str | None, clip: int | None = None) -> Answer:
    """
    Return a row of predictions.jsonl, without local paths, as the gallery's data have it.

    Args:
        rule: The rule that scored the answer, if it is known.
        clip: The clip with the frames of this run, if the sample's has others.
    """
    texts = texts_of(row["prediction"])
    return {
        "texts": texts if "error" not in row else [],
        "parsed": _reading(row, texts, rule),
        "status": _status(row),
        "score": _score(row),
        "notes": _notes(row),
        "verdicts": _verdicts(row, texts),
        "clip": clip,
    }


def disagreement(rows: Sequence[Row], answers: Sequence[Answer]) -> float:
    """
    Return how much the answers of several runs to a sample differ: 0 if all are equal; the difference in value between
    the best and the worst, from 0 to 1; and `OTHER_READING` if only their readings, or their texts, differ.
    """
    values = [value for row in rows if (value := _value(row)) is not None]
    spread = max(values) - min(values) if values else 0.0
    readings = {(each["status"], each["parsed"] or _normalised(each["texts"])) for each in answers}
    return round(spread, 4) or (OTHER_READING if len(readings) > 1 else 0.0)


def _value(row: Row) -> float | None:
    """How good an answer is, from 0 to 1; None without a score."""
    if "error" in row:
        return 0.0
    score = {"score": MAX_SCORE, "cider": MAX_CIDER}
    values = [min(row[name] / maximum, 1.0) for name, maximum in score.items() if name in row]
    values += [float(row["correct"])] if "correct" in row else []
    return fmean(values) if values else None


def _normalised(texts: Sequence[str]) -> str:
    return "\n".join(map(normalise_answer, texts))


def _reading(row: Row, texts: list[str], rule: str | None) -> str | None:
    """Say in words as what the rule read the answer; None if it reads nothing, as a judge, or its rule is unknown."""
    if "error" in row:
        return None
    if not any(text.strip() for text in texts):
        return "empty answer"
    if "legacy_correct" in row:  # of multiple choice only
        index = option_named(texts[0], row["options"])
        return "no single option named" if index is None else f"option ({LETTERS[index]})"
    return normalise_answer(texts[0]) if rule == "exact" else None


def _status(row: Row) -> str:
    if "error" in row:
        return "unreadable"
    if "correct" in row:
        return "right" if row["correct"] else "wrong"
    return "unscored" if _score(row) is None else "scored"


def _score(row: Row) -> float | None:
    """A judge's or a custom rule's score from 0 to 5, or CIDEr from 0 to 10."""
    return row.get("score", row.get("cider"))


def _notes(row: Row) -> list[str]:
    notes = [row[name] for name in ("error", "damaged") if name in row]
    return notes + (["The answer reached the length limit."] if row.get("truncated") else [])


def _verdicts(row: Row, texts: list[str]) -> list[dict[str, Any]]:
    """The grades of a judge, with its reason if it was asked for one, or why there is no grade."""
    scores, errors = row.get("scores", {}), row.get("judge_errors", {})
    reasons = {aspect: f"No grade: {error}" for aspect, error in errors.items()} | row.get("reasons", {})
    if not all(text.strip() for text in texts):
        reasons = dict.fromkeys(scores, "There is no answer: that is 0, and the judge was not asked.")
    return [
        {
            "aspect": aspect,
            "score": scores.get(aspect),
            "right": row.get("correct") if aspect == "answer" else None,
            "reason": reasons.get(aspect),
        }
        for aspect in dict.fromkeys([*scores, *errors])
    ]
