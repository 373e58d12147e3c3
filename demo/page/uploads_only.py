"""Middleware: Gradio fetches addresses that clients send as files, or ask for as files. Here media come by upload."""

import json
from typing import Any

from gradio_client.utils import is_http_url_like, traverse
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REFUSAL = "Upload the file: this server fetches none."


class UploadsOnly:
    """Answers 403 to requests that would make Gradio fetch an address."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            if "/file=http" in request.url.path.lower() or "/proxy=" in request.url.path:
                return await PlainTextResponse(REFUSAL, 403)(scope, receive, send)
            if request.headers.get("content-type", "").startswith("application/json"):
                body = await request.body()
                if names_address(body):
                    return await PlainTextResponse(REFUSAL, 403)(scope, receive, send)
                receive = _replay(body, receive)
        await self.app(scope, receive, send)


def names_address(body: bytes) -> bool:
    """Whether a request's JSON has a file that is an address."""
    found: list[Any] = []
    try:
        traverse(json.loads(body), found.append, lambda value: isinstance(value, dict) and _is_address(value))
    except (ValueError, RecursionError):  # Gradio refuses it
        pass
    return bool(found)


def _is_address(file: dict[str, Any]) -> bool:
    return is_http_url_like(file.get("path"))


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return messages.pop() if messages else await receive()

    return replay
