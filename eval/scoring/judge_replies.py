"""What a judge replies: its form, how it is read, and what many of them come to."""

import json
import math
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

MAX_SCORE = 5


class NoVerdictError(ValueError):
    """A judge's reply is no verdict. `reason` says why, without the words of the reply."""

    def __init__(self, reason: str, text: str):
        super().__init__(f"no verdict, {reason}: {text[:200]!r}")
        self.reason = reason


def response_format(aspect: str) -> dict[str, Any]:
    """The JSON schema of a verdict, for servers that hold a model to it."""
    properties: dict[str, Any] = {"score": {"type": "integer", "minimum": 0, "maximum": MAX_SCORE}}
    if aspect == "answer":
        properties = {"pred": {"type": "string", "enum": ["yes", "no"]}, **properties}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def parse_verdict(text: str, aspect: str) -> dict[str, Any]:
    """
    A judge's reply as a dict: {"score": 0 to 5}, and "pred", "yes" or "no", for the aspect "answer".

    It must be that object and nothing else, in JSON or with single quotes, as the published prompts ask for it; a code
    fence around it is let pass.

    Raises:
        NoVerdictError: if it is anything else; the message quotes it.
    """
    content = re.sub(r"\A\s*```(?:json|python)?\s*\n(.*)\n\s*```\s*\Z", r"\1", text, flags=re.DOTALL).strip()
    try:
        verdict = json.loads(content if '"' in content else content.replace("'", '"'))
    except (json.JSONDecodeError, RecursionError) as error:
        raise NoVerdictError("it is not one JSON object", text) from error
    names = {"pred", "score"} if aspect == "answer" else {"score"}
    if not isinstance(verdict, dict) or verdict.keys() != names:
        raise NoVerdictError(f"it is not a JSON object with the keys {sorted(names)}", text)
    score = verdict["score"]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise NoVerdictError('its "score" is not a number', text)
    if not 0 <= score <= MAX_SCORE:
        raise NoVerdictError(f'its "score" is not from 0 to {MAX_SCORE}', text)
    if verdict.get("pred", "yes") not in ("yes", "no"):
        raise NoVerdictError('its "pred" is neither "yes" nor "no"', text)
    return verdict


def mean_verdicts(replies: Sequence[str], aspects: Sequence[str]) -> dict[str, Any]:
    """
    What a judge's replies come to. Those that are no verdict are in no mean, and are counted.

    Args:
        replies: As the judge wrote them.
        aspects: What each is about: "answer" where it says whether an answer is right; else as in VCGBench.

    Returns:
        "score", the mean of the aspects' means, from 0 to 5; "aspects", these means; "accuracy", a fraction, where
        there are verdicts on answers; "failed", the number of replies that are no verdict; "coverage", the share of
        those that are.
    """
    scores: dict[str, list[float]] = {}
    right, failed = [], 0
    for reply, aspect in zip(replies, aspects, strict=True):
        try:
            verdict = parse_verdict(reply, aspect)
        except ValueError:
            failed += 1
            continue
        scores.setdefault(aspect, []).append(verdict["score"])
        if aspect == "answer":
            right.append(verdict["pred"] == "yes")
    means = {aspect: fmean(values) for aspect, values in scores.items()}
    return {
        "score": fmean(means.values()) if means else None,
        **({"accuracy": fmean(right)} if right else {}),
        "aspects": means,
        "failed": failed,
        "coverage": 1 - failed / len(replies) if replies else 0.0,
    }
