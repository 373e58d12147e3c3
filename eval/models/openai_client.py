"""Requests to an OpenAI-compatible server: concurrent, with a rate limit and retries, and with token counts."""

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

# Errors that retries cannot mend and that every request would get: a wrong key, model or address
FATAL_ERRORS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
# The openai client retries, with backoff, after timeouts, lost connections, and statuses 408, 409, 429, 5xx
MAX_RETRIES = 5
MAX_CONSECUTIVE_FAILURES = 24  # requests that fail in spite of retries, before the server counts as down


class ServerError(RuntimeError):
    """The server cannot be used at all."""


@dataclass(frozen=True)
class Reply:
    """
    Args:
        text: None if the request failed in spite of retries.
        error: Why it failed.
        is_whole: Whether the text ended before the length limit.
    """

    text: str | None
    error: str | None = None
    is_whole: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatServer:
    """
    A client for one or several servers with the same model. The API key is read from OPENAI_API_KEY.

    Args:
        model: The model's name at the server.
        base_url: Such as "http://localhost:8000/v1"; several, separated by commas, take turns; by default OpenAI's.
        concurrency: Concurrent requests to each server.
        requests_per_minute: The rate limit, for all servers together.
        timeout: Seconds for one request.

    Raises:
        ServerError: if OpenAI's own server is used and there is no key.
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
            raise ServerError(f"Set OPENAI_API_KEY, or pass the address of another server ({error})") from error
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_start, self._lock = 0.0, Lock()
        self._takes_response_format = True
        self._consecutive_failures = 0

    def complete(self, messages: Messages, response_format: dict[str, Any] | None = None, **options: Any) -> Reply:
        """
        Return the reply to one chat. If the server rejects `response_format`, the request is sent without it.

        Raises:
            ServerError: if no request can succeed: the key, the model or the address is wrong, or the server is down.
        """
        client = self._next_client()
        if response_format and self._takes_response_format:
            options["response_format"] = response_format
        try:
            completion = client.chat.completions.create(model=self.model, messages=messages, **options)
        except FATAL_ERRORS as error:
            raise ServerError(f"{self.base_url or 'OpenAI'} refuses {self.model!r}: {error}") from error
        except openai.BadRequestError as error:
            if "response_format" in options:
                self._takes_response_format = False
                options.pop("response_format")
                return self.complete(messages, **options)
            return Reply(None, f"refused: {error}")
        except (openai.OpenAIError, ValueError) as error:  # ValueError: the body is not JSON
            self._consecutive_failures += 1
            if self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
                raise ServerError(
                    f"{self.base_url or 'OpenAI'} failed {self._consecutive_failures} times in a row, at last with "
                    f"{error}. Finished work is kept: run it again when the server is up"
                ) from error
            return Reply(None, f"{type(error).__name__}: {error}")
        self._consecutive_failures = 0
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
        """Yield the index and the reply of each chat, in the order in which the replies arrive."""
        return self.map(lambda messages: self.complete(messages, **options), chats)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Call `function` in `concurrency` threads; yield each item's index and result as they are done."""
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            indices = {pool.submit(function, item): index for index, item in enumerate(items)}
            for future in as_completed(indices):
                yield indices[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _next_client(self) -> openai.OpenAI:
        """Wait until the rate limit permits a request, and return the client whose turn it is."""
        with self._lock:
            client, now = next(self._clients), time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + self._interval
        time.sleep(start - now)
        return client
