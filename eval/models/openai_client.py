"""Requests to OpenAI-compatible servers: concurrent, with a rate limit and retries, and with token counts."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import openai

from .fleet import Fleet, Server

Item, Result = TypeVar("Item"), TypeVar("Result")
Messages = list[dict[str, Any]]

# Errors that retries cannot mend and that every request would get: a wrong key, model or address
FATAL_ERRORS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
# The openai client retries, with backoff, after timeouts, lost connections, and statuses 408, 409, 429, 5xx
MAX_RETRIES = 5
MAX_SERVERS = 3  # that one request is sent to, one after the other, if they fail in spite of retries
MAX_CONSECUTIVE_FAILURES = 24  # requests that fail everywhere, before the run ends
ITEMS_AHEAD = 4  # of `map`, taken from the iterator before a server is free for them


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
        base_url: Such as "http://localhost:8000/v1"; several are separated by commas, and share the requests as
            [`Fleet`] says; by default OpenAI's.
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
        urls = [url.strip() for url in base_url.split(",")] if base_url else [None]
        key = os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
        options = {"api_key": key, "max_retries": MAX_RETRIES, "timeout": timeout}
        try:
            servers = [Server(openai.OpenAI(base_url=url, **options)) for url in urls]
        except openai.OpenAIError as error:
            raise ServerError(f"Set OPENAI_API_KEY, or pass the address of another server ({error})") from error
        self._fleet = Fleet(servers, concurrency)
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
        tried: list[Server] = []
        while len(tried) < MAX_SERVERS and (server := self._fleet.acquire(tried)):
            tried.append(server)
            if response_format and self._takes_response_format:
                options["response_format"] = response_format
            try:
                with self._fleet.asking(server):
                    self._wait_for_rate()
                    create = server.client.chat.completions.create
                    completion = create(model=self.model, messages=messages, **options)
                break
            except FATAL_ERRORS as error:
                raise ServerError(f"{server.url} refuses {self.model!r}: {error}") from error
            except openai.BadRequestError as error:
                if "response_format" in options:
                    self._takes_response_format = False
                    options.pop("response_format")
                    return self.complete(messages, **options)
                return Reply(None, f"refused: {error}")
            except (openai.OpenAIError, ValueError) as error:  # ValueError: the body is not JSON
                failure = error
        else:
            return self._note_failure(failure)
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

    def _note_failure(self, error: Exception) -> Reply:
        self._consecutive_failures += 1
        if self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            raise ServerError(
                f"{self.base_url or 'OpenAI'} failed {self._consecutive_failures} times in a row, at last with "
                f"{error}. Finished work is kept: run it again when the server is up"
            ) from error
        return Reply(None, f"{type(error).__name__}: {error}")

    def replies(self, chats: Iterable[Messages], **options: Any) -> Iterator[tuple[int, Reply]]:
        """Yield the index and the reply of each chat, in the order in which the replies arrive."""
        return self.map(lambda messages: self.complete(messages, **options), chats)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """
        Call `function` in threads, as many as requests may be in flight; yield each item's index and result as they
        are done. Items are taken from the iterator as the servers become free, so they may be many and large.
        """
        num_threads = self._fleet.concurrency * len(self._fleet.servers)
        pool = ThreadPoolExecutor(num_threads)
        running: dict[Future[Result], int] = {}
        try:
            for index, item in enumerate(items):
                running[pool.submit(function, item)] = index
                yield from _take_finished(running, None if len(running) == num_threads + ITEMS_AHEAD else 0)
            while running:
                yield from _take_finished(running)
        except ServerError:  # the results of requests that were on their way are kept
            pool.shutdown(wait=True, cancel_futures=True)
            succeeded = (future for future in running if not (future.cancelled() or future.exception()))
            yield from ((running[future], future.result()) for future in succeeded)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _wait_for_rate(self) -> None:
        """Wait until the rate limit permits a request."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + self._interval
        time.sleep(start - now)


def _take_finished(running: dict[Future[Result], int], timeout: float | None = None) -> Iterator[tuple[int, Result]]:
    """Wait until something is finished, and yield it: results before an error, which ends the work."""
    finished, _ = wait(running, timeout, return_when=FIRST_COMPLETED)
    for future in sorted(finished, key=lambda future: future.exception() is not None):
        yield running.pop(future), future.result()
