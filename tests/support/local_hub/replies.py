"""What a route gets and gives: a request, a reply, and the error that becomes the Hub's reply to a bad request."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs


@dataclass
class Reply:
    """`body` is JSON (a dict or a list), bytes, or the path of a file, of which clients may ask for a range."""

    body: dict | list | bytes | Path = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """`code` is the Hub's X-Error-Code, from which its clients tell a missing repository from a missing file."""

    def __init__(self, status: int, message: str, code: str = "", **body: object):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body

    def reply(self) -> Reply:
        line = " ".join(self.message.split()).encode("latin-1", "replace").decode("latin-1")
        headers = {"X-Error-Message": line, "X-Error-Code": self.code}
        return Reply({"error": self.message, **self.body}, self.status, {k: v for k, v in headers.items() if v})


@dataclass
class Request:
    """`content` yields the body once, as it arrives; `read` returns all of it."""

    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    content: Iterator[bytes]

    @cached_property
    def body(self) -> bytes:
        return b"".join(self.content)

    @cached_property
    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def form(self) -> dict[str, list[str]]:
        """Return the fields of a form, which the client sends where a list can be long."""
        return parse_qs(self.body.decode())

    def asks(self, name: str) -> bool:
        """Return whether a parameter of the address is set: the client writes `true`, `True` or `1`."""
        return self.query.get(name, [""])[0].lower() in ("true", "1")
