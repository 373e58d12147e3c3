"""
A language model that grades answers by comparing them with references.

A reply that is not a grade is retried once (`_retry_invalid_replies`). If that fails too, the answer gets no score and
is counted. Grades are cached by prompt and model, so that a second run requests only what is missing.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...files import open_to_append, read_lines, to_lines
from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import digest
from ..models.local_chat_model import LocalChat
from ..models.openai_client import ChatServer, Messages
from ..store import Row, texts_of
from .judge_replies import InvalidGradeError, parse_grade, response_format

MAX_REPLY_TOKENS = 200  # a grade takes about ten, its reason about thirty
COUNTS = ("asked", "asked_again", "from_cache", "prompt_tokens", "completion_tokens")


class Judge:
    """
    Args:
        chat: The model that judges.
        prompts: The prompt of each aspect; "system" is put before each of them, and "correction" is the answer to a
            reply that is not a grade.
        cache: The JSON Lines file that caches the judge's replies.
        temperature: The sampling temperature.
        price: US dollars per million prompt tokens and per million completion tokens.
        retry_failed: Grade the answers again that could not be graded in an earlier run.
    """

    def __init__(
        self,
        chat: ChatServer | LocalChat,
        prompts: dict[str, Any],
        cache: Path,
        temperature: float = 0.0,
        price: tuple[float, float] | None = None,
        retry_failed: bool = False,
    ):
        self.chat, self.prompts, self.temperature = chat, prompts, temperature
        self.price, self.retry_failed = price, retry_failed
        self.cache_file, self.cache = cache, {row["key"]: row["reply"] for row in read_lines(cache, "key", "reply")}
        self.counts = dict.fromkeys(COUNTS, 0)

    def describe(self, benchmark: Benchmark) -> dict[str, Any]:
        """Return what identifies the judge. Scores are comparable only where this is equal."""
        aspects = sorted({aspect for task in benchmark.tasks for aspect in benchmark.aspects(task)})
        prompts = [self.prompts[name] for name in ("system", "correction", *aspects)]
        return {"model": self.chat.model, "temperature": self.temperature, "prompts": digest(prompts)}

    def judge(self, benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
        """
        Grade answers in place: add "scores" by aspect, "score" (their mean), "correct" for the aspect "answer",
        "reasons" by aspect if the prompts ask for them, and "judge_errors" for grades that failed. Empty and missing
        answers get 0 without a request.

        Returns:
            The numbers of requests ("asked"), of those that were retries ("asked_again"), of grades from the cache and
            of tokens, and the cost in US dollars.

        Raises:
            ServerError: if the judge cannot be reached; the grades until then are kept.
        """
        identity = self.describe(benchmark)
        self.counts = dict.fromkeys(COUNTS, 0)
        missing: dict[str, list[Row]] = {}
        for row in rows:
            if row.get("judge") != identity:
                for name in ("score", "scores", "correct", "reasons", "judge_errors"):
                    row.pop(name, None)
            row["judge"] = identity
            scores, errors = row.setdefault("scores", {}), row.setdefault("judge_errors", {})
            for aspect in benchmark.aspects(row["task"]):
                if not all(text.strip() for text in texts_of(row["prediction"])):
                    _add_grade(row, aspect, {"pred": "no", "score": 0})
                elif aspect not in scores and (aspect not in errors or self.retry_failed):
                    missing.setdefault(aspect, []).append(row)
        try:
            self._grade(missing)
        finally:
            for row in rows:
                if row["scores"]:
                    row["score"] = sum(row["scores"].values()) / len(row["scores"])
                if not row["judge_errors"]:
                    del row["judge_errors"]
        tokens = self.counts["prompt_tokens"], self.counts["completion_tokens"]
        cost = self.price and sum(count * price for count, price in zip(tokens, self.price, strict=True)) / 1e6
        return {**self.counts, "cost": cost}

    def _grade(self, missing: dict[str, list[Row]]) -> None:
        total = sum(map(len, missing.values()))
        with tqdm(total=total, desc=f"Judging ({self.chat.model})", unit="grade", disable=not total) as bar:
            for aspect, rows in missing.items():
                invalid = self._request_grades(aspect, [(row, self.messages(row, aspect)) for row in rows], bar)
                self._retry_invalid_replies(aspect, invalid, bar)

    def _retry_invalid_replies(
        self, aspect: str, invalid: list[tuple[Row, Messages, InvalidGradeError]], bar: tqdm
    ) -> None:
        """
        Ask once more for each grade whose reply was not one, in the same chat with what was wrong. The same request
        again would be charged again and, with greedy decoding, get the same reply.
        """
        chats = []
        for row, messages, error in invalid:
            correction = self.prompts["correction"].replace("{reason}", error.reason)
            turns = [{"role": "assistant", "content": error.reply}, {"role": "user", "content": correction}]
            chats.append((row, [*messages, *turns]))
        asked = self.counts["asked"]
        bar.update(len(self._request_grades(aspect, chats, bar)))
        self.counts["asked_again"] += self.counts["asked"] - asked

    def _request_grades(
        self, aspect: str, chats: list[tuple[Row, Messages]], bar: tqdm
    ) -> list[tuple[Row, Messages, InvalidGradeError]]:
        """Grade rows, from the cache where possible. Returns the chats that were answered with an invalid reply."""
        uncached, invalid = [], []
        for row, messages in chats:
            key = self._cache_key(row, aspect)
            if key in self.cache:
                _add_grade(row, aspect, parse_grade(self.cache[key], aspect))
                self.counts["from_cache"] += 1
                bar.update()
            else:
                uncached.append((row, messages, key))
        replies = self.chat.replies(
            [messages for _, messages, _ in uncached],
            temperature=self.temperature,
            max_tokens=MAX_REPLY_TOKENS,
            response_format=response_format(aspect, self._asks_for_reason(aspect)),
        )
        with open_to_append(self.cache_file) as cache:
            for index, reply in replies:
                row, messages, key = uncached[index]
                self.counts["asked"] += 1
                self.counts["prompt_tokens"] += reply.prompt_tokens
                self.counts["completion_tokens"] += reply.completion_tokens
                if reply.text is None:
                    row["judge_errors"][aspect] = reply.error
                    bar.update()
                    continue
                try:
                    if not reply.is_whole:
                        raise InvalidGradeError("it was cut off at the length limit", reply.text)
                    grade = parse_grade(reply.text, aspect)
                except InvalidGradeError as error:
                    row["judge_errors"][aspect] = str(error)
                    invalid.append((row, messages, error))
                    continue
                _add_grade(row, aspect, grade)
                cache.write(to_lines([{"key": key, "reply": reply.text}]))
                cache.flush()
                self.cache[key] = reply.text
                bar.update()
        return invalid

    def _asks_for_reason(self, aspect: str) -> bool:
        """Whether the prompt of an aspect asks for a "reason" in the reply, as the published ones do not."""
        prompt = self.prompts[aspect]
        text = " ".join(prompt.values()) if isinstance(prompt, dict) else prompt
        return re.search("[\"']reason[\"']", text) is not None

    def _cache_key(self, row: Row, aspect: str) -> str:
        """A digest of the first request for a grade; a retry has the same key."""
        request = [self.chat.model, self.temperature, self.messages(row, aspect)]
        return hashlib.sha256(json.dumps(request).encode()).hexdigest()

    def messages(self, row: Row, aspect: str) -> Messages:
        """Return the chat that asks the judge to grade one aspect of an answer."""
        questions, answers = texts_of(row["question"]), texts_of(row["prediction"])
        texts = {"question": questions[0], "reference": row["reference"], "answer": answers[0]}
        if len(questions) > 1:
            texts |= {"question2": questions[1], "answer2": answers[1]}
        prompt = self.prompts[aspect]
        if isinstance(prompt, dict):
            # All placeholders in one pass: a text that has a placeholder's name in it is not filled in turn
            placeholders = re.compile("|".join(rf"\{{{name}\}}" for name in texts))
            system, user = prompt["system"], placeholders.sub(lambda match: texts[match[0][1:-1]], prompt["user"])
        else:
            # In JSON, an answer cannot close the quotation that it is in and go on as an instruction
            system, user = f"{self.prompts['system']}\n\n{prompt}", json.dumps(texts, ensure_ascii=False, indent=1)
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _add_grade(row: Row, aspect: str, grade: dict[str, Any]) -> None:
    row["scores"][aspect] = grade["score"]
    row["judge_errors"].pop(aspect, None)
    if "reason" in grade:
        row.setdefault("reasons", {})[aspect] = grade["reason"]
    if "pred" in grade and aspect == "answer":
        row["correct"] = grade["pred"] == "yes"
