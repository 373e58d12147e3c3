"""An OpenAI-compatible server for tests, which replies with what a function returns and can misbehave."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """A text or an error status, sent after `delay` seconds; `half` cuts the body short."""

    text: str | None = ""
    status: int = 200
    delay: float = 0.0
    half: bool = False
    finish_reason: str = "stop"
    headers: dict[str, str] = field(default_factory=dict)


def grade(request: dict[str, Any]) -> Reply:
    """Return a good grade, in the form that the request asks for."""
    wanted = request["response_format"]["json_schema"]["schema"]["required"]
    return Reply(json.dumps({name: {"pred": "yes", "score": 4, "reason": "It fits."}[name] for name in wanted}))


class ChatServerStub:
    def __init__(self, answer: Callable[[dict[str, Any]], Reply]):
        self.answer, self.requests, self.times, self.lock = answer, [], [], threading.Lock()
        self.under_way = self.most_under_way = 0

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        reply = self.answer(request)
        time.sleep(reply.delay)
        with self.lock:
            self.under_way -= 1
        message = {"role": "assistant", "content": reply.text}
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        content = json.dumps(
            body if reply.status == 200 else {"error": {"message": f"status {reply.status}"}}
        ).encode()
        handler.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        with suppress(BrokenPipeError):  # the client has timed out
            handler.end_headers()
            handler.wfile.write(content[: len(content) // 2] if reply.half else content)
        handler.close_connection = reply.half


@contextmanager
def chat_server(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[tuple[str, ChatServerStub]]:
    """Yield the address, and the server, which records the requests."""
    stub = ChatServerStub(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            stub.respond(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", stub
    finally:
        server.shutdown()
        server.server_close()
