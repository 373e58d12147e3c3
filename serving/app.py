"""The server's paths: chat completions, the model's name, health and metrics. There are no others."""

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .chat import ChatHandler
from .errors import ApiError
from .logs import Call, current_call
from .metrics import Metrics
from .requests import ChatRequest

logger = logging.getLogger(__name__)

CHAT, MODELS, HEALTH, METRICS = "/v1/chat/completions", "/v1/models", "/health", "/metrics"
PATHS = f"{CHAT}, {MODELS}, {HEALTH} and {METRICS}"
CLIENT_SECONDS = 60  # in which a client must send its request, and take each piece of the answer
MAX_BODY_BYTES = 128 * 2**20
CLIENT_LEFT = 499  # only in logs and metrics


def build_app(
    handler: ChatHandler, metrics: Metrics, max_requests: int, api_key: str | None = None, only_local: bool = False
) -> ASGIApp:
    """
    Return the server as an ASGI application.

    Args:
        max_requests: Chat completions in progress, those that wait for the model included. Further ones are refused.
        api_key: The key that requests below /v1 must carry, if there is one.
        only_local: Refuse requests to a host by its name, other than localhost: a page in a browser on this machine
            whose name suddenly leads here (DNS rebinding) could else read the answers.
    """

    def check(request: Request) -> None:
        _check_key(request, api_key)
        if only_local:
            _check_host(request)

    async def models(request: Request) -> Response:
        check(request)
        model = {"id": handler.name, "object": "model", "created": 0, "owned_by": "pllava"}
        return JSONResponse({"object": "list", "data": [{**model, "max_model_len": handler.context}]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def show_metrics(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    chat = _ChatEndpoint(handler, metrics, max_requests, check)
    app = Starlette(
        routes=[
            Route(CHAT, chat, methods=["POST"]),
            Route(MODELS, models),
            Route(HEALTH, health),
            Route(METRICS, show_metrics),
        ],
        exception_handlers={ApiError: _reply_error, HTTPException: _reply_http_error, Exception: _reply_failure},
    )
    app.router.redirect_slashes = False
    return _Observed(app, metrics)


class _ChatEndpoint:
    def __init__(self, handler: ChatHandler, metrics: Metrics, max_requests: int, check: Callable[[Request], None]):
        self._handler, self._metrics, self._max_requests, self._check = handler, metrics, max_requests, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self._check(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Without this, a page in a browser could send requests without asking first
            raise ApiError(415, "Send the request as JSON, with the header Content-Type: application/json.")
        async with self._admitted():
            # No variable keeps the body: with a video in it, it is large, and the answer may take minutes
            chat, call = await asyncio.to_thread(ChatRequest.parse, await self._read_body(request)), current_call.get()
            try:
                response = await _unless_client_leaves(receive, self._handler.handle_request(chat, call))
                await response(scope, receive, send)
            finally:
                call.cancel()  # however the reply has ended

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self._metrics.under_way >= self._max_requests:
            message = f"The server is busy with {self._max_requests} requests: try again later."
            raise ApiError(503, message, "server_busy", headers={"Retry-After": "1"})
        self._metrics.under_way += 1
        try:
            yield
        finally:
            self._metrics.under_way -= 1

    async def _read_body(self, request: Request) -> bytearray:
        """Read the body piece by piece; a Content-Length may be missing or wrong."""
        if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
            raise _too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                async for piece in request.stream():
                    body += piece
                    if len(body) > MAX_BODY_BYTES:
                        raise _too_large()
        except TimeoutError:
            message = f"The request did not arrive within {CLIENT_SECONDS} seconds."
            raise ApiError(408, message, headers={"Connection": "close"}) from None
        except ClientDisconnect:
            raise _left() from None
        return body


async def _unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, Response]) -> Response:
    """Return what `work` returns; cancel it if the client closes the connection before."""

    async def wait_for_leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, leave = asyncio.create_task(work), asyncio.create_task(wait_for_leave())
    try:
        await asyncio.wait({task, leave}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _left()
        return task.result()
    finally:
        for each in (task, leave):
            each.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await each


def _left() -> ApiError:
    return ApiError(CLIENT_LEFT, "The client has left.")


def _too_large() -> ApiError:
    message = f"The body is larger than {MAX_BODY_BYTES:,} bytes: name a file by its URL or path instead."
    return ApiError(413, message, "body_too_large", headers={"Connection": "close"})


def _check_key(request: Request, api_key: str | None) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if api_key is not None and not hmac.compare_digest(given.encode(), api_key.encode()):
        message = "This server needs its API key: send it in the header Authorization: Bearer KEY."
        raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _check_host(request: Request) -> None:
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        if host != "localhost":
            ipaddress.ip_address(host)
    except ValueError:
        message = "This server has no API key, so it answers only to http://127.0.0.1 and http://localhost."
        raise ApiError(403, message, "wrong_host") from None


# --- errors, request ids and the log ---------------------------------------------------------------------------------


async def _reply_error(request: Request, error: ApiError) -> Response:
    return error.response()


async def _reply_http_error(request: Request, error: HTTPException) -> Response:
    messages = {404: f"There is no such path; this server has {PATHS}.", 405: "This path has other methods."}
    return ApiError(error.status_code, messages.get(error.status_code, error.detail), headers=error.headers).response()


async def _reply_failure(request: Request, error: Exception) -> Response:
    return ApiError(500, "The server failed on this request; its log says why.").response()


class _Observed:
    """Gives each request an id, and writes one line about it into the log, and its status into the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call.named(Request(scope).headers.get("x-request-id"))
        current_call.set(call)
        status, stalled = 500, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, stalled
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", call.id.encode())]
            try:
                async with asyncio.timeout(CLIENT_SECONDS):  # a client that takes nothing must not hold its place
                    await send(message)
            except TimeoutError:
                stalled = True
                raise

        try:
            await self._app(scope, receive, send_with_id)
        except TimeoutError:
            if not stalled:
                raise
            status = CLIENT_LEFT
        finally:
            path = scope["path"] if scope["path"] in {CHAT, MODELS, HEALTH, METRICS} else "other"
            self._metrics.requests.labels(path, status).inc()
            logger.info("%s", _describe(call, scope, status))


def _describe(call: Call, scope: Scope, status: int) -> str:
    text = f"{scope['method']} {ascii(scope['path'][:100])[1:-1]} {status} in {call.seconds:.2f} s"
    if call.prompt_tokens is not None:
        text += (
            f", prompt of {call.prompt_tokens} tokens, {call.cached_tokens} cached, answer of {call.generated_tokens}"
        )
    return text if call.first_token is None else f"{text}, first after {call.first_token:.2f} s"
