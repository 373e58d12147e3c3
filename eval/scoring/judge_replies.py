"""A judge's replies: the JSON that it is asked for, parsing it, and averaging many replies."""

import json
import math
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

MAX_SCORE = 5


class InvalidGradeError(ValueError):
    """A judge's reply is not a grade; `reason` says why, without quoting the reply."""

    def __init__(self, reason: str, reply: str):
        super().__init__(f"not a grade, {reason}: {reply[:200]!r}")
        self.reason, self.reply = reason, reply


def response_format(aspect: str, with_reason: bool = False) -> dict[str, Any]:
    """
    Return the JSON schema of a grade, for servers that can enforce it. A reason comes last: the grade does not depend
    on it.
    """
    properties: dict[str, Any] = {"score": {"type": "integer", "minimum": 0, "maximum": MAX_SCORE}}
    if aspect == "answer":
        properties = {"pred": {"type": "string", "enum": ["yes", "no"]}, **properties}
    if with_reason:
        properties["reason"] = {"type": "string"}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": schema}}


def parse_grade(text: str, aspect: str) -> dict[str, Any]:
    """
    Parse a judge's reply into {"score": 0 to 5}, with "pred" ("yes" or "no") for the aspect "answer", and "reason" (a
    text) if it gives one.

    The reply must be that object and nothing else. Single quotes, which the published prompts ask for, and a code
    fence around the object are accepted.

    Raises:
        InvalidGradeError: if the reply is anything else; the message quotes it.
    """
    content = re.sub(r"\A\s*```(?:json|python)?\s*\n(.*)\n\s*```\s*\Z", r"\1", text, flags=re.DOTALL).strip()
    try:
        grade = json.loads(content if '"' in content else content.replace("'", '"'))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidGradeError("it is not one JSON object", text) from error
    keys = {"pred", "score"} if aspect == "answer" else {"score"}
    if not isinstance(grade, dict) or grade.keys() - {"reason"} != keys:
        raise InvalidGradeError(f"it is not a JSON object with the keys {sorted(keys)}", text)
    score = grade["score"]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise InvalidGradeError('its "score" is not a number', text)
    if not 0 <= score <= MAX_SCORE:
        raise InvalidGradeError(f'its "score" is not from 0 to {MAX_SCORE}', text)
    if grade.get("pred", "yes") not in ("yes", "no"):
        raise InvalidGradeError('its "pred" is neither "yes" nor "no"', text)
    if not isinstance(grade.get("reason", ""), str):
        raise InvalidGradeError('its "reason" is not a text', text)
    return grade


def average_replies(replies: Sequence[str], aspects: Sequence[str]) -> dict[str, Any]:
    """
    Average a judge's replies. Those that are not grades are counted, and left out of the means.

    Args:
        replies: The judge's replies as text.
        aspects: What each reply grades: "answer" (right or wrong, and a score), or an aspect of VCGBench.

    Returns:
        "score", the mean of the aspects' means, from 0 to 5; "accuracy", a fraction, if there are grades of "answer";
        "aspects", the mean of each aspect; "failed", the number of replies that are not grades; and "coverage", the
        fraction of replies that are.
    """
    scores: dict[str, list[float]] = {}
    correct, failed = [], 0
    for reply, aspect in zip(replies, aspects, strict=True):
        try:
            grade = parse_grade(reply, aspect)
        except InvalidGradeError:
            failed += 1
            continue
        scores.setdefault(aspect, []).append(grade["score"])
        if aspect == "answer":
            correct.append(grade["pred"] == "yes")
    means = {aspect: fmean(values) for aspect, values in scores.items()}
    return {
        "score": fmean(means.values()) if means else None,
        **({"accuracy": fmean(correct)} if correct else {}),
        "aspects": means,
        "failed": failed,
        "coverage": 1 - failed / len(replies) if replies else 0.0,
    }
