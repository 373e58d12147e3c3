"""
What an answer is worth, as plain functions: which option it names, whether it is the reference; and the original's own
rules, under the name `legacy`, for comparison with published figures.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..benchmarks.samples import LETTERS

_MARK = re.compile(r"\(\s*([A-Za-z])\s*\)")  # "(A)"
_LEADING_MARK = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:,]+|$|\n)")  # "(A)", "A)", "A.", "A:", or "A" by itself
_LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])\s+(.+)", re.DOTALL)  # "B Opened the door."
_SEPARATOR = re.compile(r"(?:\s|[.,/&;|]|\band\b|\bor\b)*", re.IGNORECASE)


def normalise(text: str) -> str:
    """Lower case, single spaces, no full stop: in what two answers with the same words do not differ."""
    return " ".join(text.casefold().split()).strip(" .!")


def option_named(prediction: str, options: Sequence[str]) -> int | None:
    """
    The index of the one option that an answer names, or None where it names none, or several.

    An option is named by its letter at the beginning ("(A) ...", "A.", "a"), by its letter in brackets anywhere ("The
    answer is (A)"), or by its whole text. A letter that is a word ("A man opens") names nothing, and neither does a
    letter that there is no option for, nor one letter straight after another ("(A)(B)").
    """
    answer = prediction.strip()
    leading = _LEADING_MARK.match(answer)
    if leading:
        index = _index(leading[1], options)
        following = answer[_SEPARATOR.match(answer, leading.end()).end() :]
        second = _LEADING_MARK.match(following)
        if index is None or not second or normalise(following) == normalise(options[index]):  # an option may be "b"
            return index
        return index if _index(second[1], options) in (index, None) else None
    if marks := {mark.upper() for mark in _MARK.findall(answer)}:
        return _index(marks.pop(), options) if len(marks) == 1 else None
    spelled = _LETTER_AND_TEXT.fullmatch(answer)
    if spelled and (index := _index(spelled[1], options)) is not None:
        if normalise(spelled[2]) == normalise(options[index]):
            return index
    named = [index for index, option in enumerate(options) if normalise(option) == normalise(answer) != ""]
    return named[0] if len(named) == 1 else None


def _index(letter: str, options: Sequence[str]) -> int | None:
    index = LETTERS.index(letter.upper())
    return index if index < len(options) else None


def multiple_choice_correct(prediction: str, reference: str, options: Sequence[str]) -> bool:
    """Whether the answer names the option that is the `reference`, and no other; an empty answer is wrong."""
    index = option_named(prediction, options)
    return index is not None and options[index] == reference


def exactly_correct(prediction: str, reference: str) -> bool:
    """Whether the answer is the reference, whatever its case, spaces and full stop."""
    return normalise(prediction) == normalise(reference) != ""


def with_letter(option: str, options: Sequence[str]) -> str:
    """ "Ran." -> "(C) Ran.": an option as it is listed in the question.

    Raises:
        ValueError: if it is not among the options.
    """
    if option not in options:
        raise ValueError(f"The answer {option!r} is not among the options {list(options)}")
    return f"({LETTERS[list(options).index(option)]}) {option}"


# --- the original's rules --------------------------------------------------------------------------------------------


def legacy_correct(prediction: str, reference: str) -> bool:
    """
    The original's matcher for MVBench. It compares the first words, and takes one for right that is inside the other:
    so "A man opens" names option (A), and "The answer is (A)" names none.

    Args:
        prediction: The answer, from its "(" on.
        reference: The right option with its letter, "(A) Opened the door."
    """
    answer, right = prediction.lower().split(" ")[0], reference.lower().split(" ")[0]
    if not set(answer) & set("abcdefg"):
        return False
    return answer.replace(".", "") in right or right in answer


def legacy_mvbench(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, list[int]]]:
    """
    The original's table for MVBench: per cent by task and "Avg" over samples, and the numbers of right answers and of
    all by task. Clips that could not be read are there as a task of their own, "error_reading_video".

    Args:
        rows: `{"task_type", "pred", "gt"}`.
    """
    counts: dict[str, list[int]] = {}
    for row in rows:
        count = counts.setdefault(row["task_type"], [0, 0])
        count[0] += legacy_correct(row["pred"], row["gt"])
        count[1] += 1
    right, total = (sum(column) for column in zip(*counts.values(), strict=True))
    return {**{task: 100 * a / b for task, (a, b) in counts.items()}, "Avg": 100 * right / total}, counts


def legacy_judged(
    judged: Iterable[tuple[str, bool, float]],
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """
    The original's table of a judge's verdicts: accuracy and mean score by name, and both over all verdicts together;
    and the counts behind it. In VCGBench, its "Avg_Acc" counts the verdict that came last twice: not here, where none
    comes last.

    Args:
        judged: Name (a data set, or an aspect of VCGBench), whether right, and score of each verdict. In VCGBench
            right is what scores above 3. What the judge failed at is wrong and scores 0.
    """
    counts: dict[str, dict[str, float]] = {}
    for name, right, score in judged:
        count = counts.setdefault(name, {"correct": 0, "total": 0, "score": 0})
        count["correct"] += right
        count["total"] += 1
        count["score"] += score
    table: dict[str, Any] = {
        name: {"acc": 100 * count["correct"] / count["total"], "score": count["score"] / count["total"]}
        for name, count in counts.items()
    }
    right, total, score = (sum(count[key] for count in counts.values()) for key in ("correct", "total", "score"))
    return {**table, "Avg_Acc": 100 * right / total, "Avg_Score": score / total}, counts
