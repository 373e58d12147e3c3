"""Requests to an OpenAI-compatible server: many at once, no more than it allows, tried again, and counted."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import cycle
from threading import Lock
from typing import Any, TypeVar

import openai

Item, Result = TypeVar("Item"), TypeVar("Result")
Messages = list[dict[str, Any]]

# What no repetition mends, and what would be so for each request alike: no key, no right, no such model or address
FATAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
# Of a request, by the client, with growing pauses: after time-outs, lost connections, and statuses 408, 409, 429, 5xx
MAX_RETRIES = 5
FAILURES_IN_A_ROW = 24  # of requests, for all their repetitions, after which a server is taken to be down


class ServerError(RuntimeError):
    """The server cannot be used at all."""


@dataclass(frozen=True)
class Reply:
    """`text` is None where the request failed, for all its repetitions; `error` says why."""

    text: str | None
    error: str | None = None
    is_whole: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatServer:
    """
    Args:
        model: As the server names it.
        base_url: Such as "http://localhost:8000/v1", or several with commas, which take turns; by default OpenAI's
            own. The key is in OPENAI_API_KEY.
        concurrency: Requests under way at a time, to each of them.
        requests_per_minute: No more than these are sent, to all of them together.
        timeout: Seconds for one request.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        timeout: float = 120.0,
    ):
        self.model, self.base_url = model, base_url
        urls = base_url.split(",") if base_url else [None]
        self.concurrency = concurrency * len(urls)
        key = os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
        options = {"api_key": key, "max_retries": MAX_RETRIES, "timeout": timeout}
        try:
            self._clients = cycle([openai.OpenAI(base_url=url, **options) for url in urls])
        except openai.OpenAIError as error:
            raise ServerError(f"Set OPENAI_API_KEY, or name the address of another server ({error})") from error
        self._pause = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next, self._lock = 0.0, Lock()
        self._knows_formats = True
        self._failures = 0  # in a row

    def complete(self, messages: Messages, response_format: dict[str, Any] | None = None, **options: Any) -> Reply:
        """
        One reply. A server that knows no `response_format` is asked without it.

        Raises:
            ServerError: if no request can succeed: the key, the model or the address is wrong, or the server is down.
        """
        client = self._wait()
        if response_format and self._knows_formats:
            options["response_format"] = response_format
        try:
            completion = client.chat.completions.create(model=self.model, messages=messages, **options)
        except FATAL as error:
            raise ServerError(f"{self.base_url or 'OpenAI'} refuses {self.model!r}: {error}") from error
        except openai.BadRequestError as error:
            if "response_format" in options:
                self._knows_formats = False
                options.pop("response_format")
                return self.complete(messages, **options)
            return Reply(None, f"refused: {error}")
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            self._failures += 1
            if self._failures >= FAILURES_IN_A_ROW:
                message = f"{self.base_url or 'OpenAI'} failed {self._failures} times in a row, at last with {error}"
                raise ServerError(f"{message}. What was done stays: run it again when the server is up") from error
            return Reply(None, f"{type(error).__name__}: {error}")
        self._failures = 0
        choice = completion.choices[0] if getattr(completion, "choices", None) else None
        if choice is None or choice.message is None or choice.message.content is None:
            return Reply(None, "the server sent no text")
        usage = completion.usage
        return Reply(
            choice.message.content,
            is_whole=choice.finish_reason != "length",
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )

    def replies(self, chats: Sequence[Messages], **options: Any) -> Iterator[tuple[int, Reply]]:
        """The number and the reply of each chat, as they come."""
        return self.map(lambda messages: self.complete(messages, **options), chats)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Calls `function` for `concurrency` items at a time; gives an item's number and its result as they come."""
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            numbers = {pool.submit(function, item): number for number, item in enumerate(items)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _wait(self) -> openai.OpenAI:
        """Until a request may be sent, since they stand at equal distances; gives the client whose turn it is."""
        with self._lock:
            client, now = next(self._clients), time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._pause
        time.sleep(turn - now)
        return client
