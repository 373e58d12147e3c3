"""
A language model that compares answers with references and grades them.

What it cannot judge is not judged: a reply that is not what was asked for is no score, and is counted. Its replies are
kept by prompt and model, so that nothing is asked twice.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ...files import open_to_append, read_lines, to_lines
from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import digest
from ..models.openai_client import Messages, Reply
from ..store import Row, texts_of
from .judge_replies import NoVerdictError, parse_verdict, response_format

NOTHING = dict.fromkeys(("asked", "asked_again", "from_cache", "prompt_tokens", "completion_tokens"), 0)
LIMIT = 200  # tokens of a reply; a grade takes about ten


class Chat(Protocol):
    """What replies: a `ChatServer`, or a `LocalChat`."""

    model: str

    def replies(self, chats: Sequence[Messages], **options: Any) -> Iterator[tuple[int, Reply]]: ...


class Judge:
    """
    Args:
        chat: The model that judges.
        prompts: The wording, by aspect; "system" goes before each of them, "correction" answers a reply that is no
            grade.
        cache: A JSON Lines file of its replies.
        temperature: Of its sampling.
        price: US dollars for a million tokens of prompt, and of reply.
        retry_failed: Ask again where it failed in a run before.
    """

    def __init__(
        self,
        chat: Chat,
        prompts: dict[str, Any],
        cache: Path,
        temperature: float = 0.0,
        price: tuple[float, float] | None = None,
        retry_failed: bool = False,
    ):
        self.chat, self.prompts, self.temperature = chat, prompts, temperature
        self.price, self.retry_failed = price, retry_failed
        self.cache_file, self.cache = cache, {row["key"]: row["reply"] for row in read_lines(cache, "key", "reply")}
        self.counts = dict(NOTHING)

    def describe(self, benchmark: Benchmark) -> dict[str, Any]:
        """Who judged, and how: scores are comparable only where this is equal."""
        aspects = sorted({aspect for task in benchmark.tasks for aspect in benchmark.aspects(task)})
        told = [self.prompts[name] for name in ("system", "correction", *aspects)]
        return {"model": self.chat.model, "temperature": self.temperature, "prompts": digest(told)}

    def judge(self, benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
        """
        Fills in "score", "scores" by aspect, "correct" where that is asked, and "judge_errors" where a reply was no
        grade. An answer that is empty, or that is not there, gets 0 without being shown.

        Returns:
            What this took: requests for grades, those of them that asked again after a reply that was no grade, grades
            that were known, tokens, and cost in US dollars.

        Raises:
            ServerError: if the judge cannot be reached; what was judged until then stays.
        """
        identity = self.describe(benchmark)
        self.counts = dict(NOTHING)
        open_grades = []
        for row in rows:
            if row.get("judge") != identity:
                for name in ("score", "scores", "correct", "judge_errors"):
                    row.pop(name, None)
            row["judge"] = identity
            scores, errors = row.setdefault("scores", {}), row.setdefault("judge_errors", {})
            for aspect in benchmark.aspects(row["task"]):
                if not all(text.strip() for text in texts_of(row["prediction"])):
                    _note(row, aspect, {"pred": "no", "score": 0})
                elif aspect not in scores and (aspect not in errors or self.retry_failed):
                    open_grades.append((row, aspect))
        try:
            self._ask(open_grades)
        finally:
            for row in rows:
                if row["scores"]:
                    row["score"] = sum(row["scores"].values()) / len(row["scores"])
                if not row["judge_errors"]:
                    del row["judge_errors"]
        tokens = self.counts["prompt_tokens"], self.counts["completion_tokens"]
        cost = self.price and sum(count * price for count, price in zip(tokens, self.price, strict=True)) / 1e6
        return {**self.counts, "cost": cost}

    def _ask(self, grades: list[tuple[Row, str]]) -> None:
        with tqdm(total=len(grades), desc=f"Judging ({self.chat.model})", unit="grade", disable=not grades) as bar:
            for aspect in dict.fromkeys(aspect for _, aspect in grades):
                rows = [row for row, each in grades if each == aspect]
                chats = [self.messages(row, aspect) for row in rows]
                corrections = self._ask_aspect(rows, chats, aspect, bar)
                asked = self.counts["asked"]
                # Once more, but not the same: that would be paid for again, and answered alike
                chats = [[*chats[place], *correction] for place, correction in corrections.items()]
                rows = [rows[place] for place in corrections]
                bar.update(len(self._ask_aspect(rows, chats, aspect, bar)))
                self.counts["asked_again"] += self.counts["asked"] - asked

    def _ask_aspect(self, rows: list[Row], chats: list[Messages], aspect: str, bar: tqdm) -> dict[int, Messages]:
        """
        Notes the grades of one aspect, and why there are none. Gives what corrects the replies that are no grade, by
        their places.
        """
        keys = [self._key(self.messages(row, aspect)) for row in rows]  # a corrected chat is about the same grade
        missing = [place for place, key in enumerate(keys) if key not in self.cache]
        for place in set(range(len(rows))) - set(missing):
            _note(rows[place], aspect, parse_verdict(self.cache[keys[place]], aspect))
            self.counts["from_cache"] += 1
            bar.update()
        corrections = {}
        replies = self.chat.replies(
            [chats[place] for place in missing],
            temperature=self.temperature,
            max_tokens=LIMIT,
            response_format=response_format(aspect),
        )
        with open_to_append(self.cache_file) as lines:
            for number, reply in replies:
                place = missing[number]
                row, key = rows[place], keys[place]
                self.counts["asked"] += 1
                self.counts["prompt_tokens"] += reply.prompt_tokens
                self.counts["completion_tokens"] += reply.completion_tokens
                try:
                    _note(row, aspect, _read_reply(reply, aspect))
                except NoVerdictError as error:
                    row["judge_errors"][aspect] = str(error)
                    corrections[place] = self._correction(reply.text, error.reason)
                    continue
                except ValueError as error:
                    row["judge_errors"][aspect] = str(error)
                else:
                    lines.write(to_lines([{"key": key, "reply": reply.text}]))
                    lines.flush()
                    self.cache[key] = reply.text
                bar.update()
        return corrections

    def _correction(self, text: str, reason: str) -> Messages:
        told = self.prompts["correction"].replace("{reason}", reason)
        return [{"role": "assistant", "content": text}, {"role": "user", "content": told}]

    def messages(self, row: Row, aspect: str) -> Messages:
        """What the judge is told about one answer."""
        questions, answers = texts_of(row["question"]), texts_of(row["prediction"])
        material = {"question": questions[0], "reference": row["reference"], "answer": answers[0]}
        if len(questions) > 1:
            material |= {"question2": questions[1], "answer2": answers[1]}
        told = self.prompts[aspect]
        if isinstance(told, dict):  # wording with a place for each text; in one pass, so that no text opens another
            places = re.compile("|".join(rf"\{{{name}\}}" for name in material))
            user = places.sub(lambda place: material[place[0][1:-1]], told["user"])
            return [{"role": "system", "content": told["system"]}, {"role": "user", "content": user}]
        system = f"{self.prompts['system']}\n\n{told}"
        # As JSON, an answer cannot end the quotation that it is in
        user = json.dumps(material, ensure_ascii=False, indent=1)
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def _key(self, messages: Messages) -> str:
        return hashlib.sha256(json.dumps([self.chat.model, self.temperature, messages]).encode()).hexdigest()


def _note(row: Row, aspect: str, verdict: dict[str, Any]) -> None:
    row["scores"][aspect] = verdict["score"]
    row["judge_errors"].pop(aspect, None)
    if "pred" in verdict and aspect == "answer":
        row["correct"] = verdict["pred"] == "yes"


def _read_reply(reply: Reply, aspect: str) -> dict[str, Any]:
    if reply.text is None:
        raise ValueError(reply.error)
    if not reply.is_whole:
        raise NoVerdictError("it was cut off at the length limit", reply.text)
    return parse_verdict(reply.text, aspect)
