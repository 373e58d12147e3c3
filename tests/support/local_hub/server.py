"""The HTTP side: find the route of a request, let faults happen, send the reply and note both."""

import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

from .faults import Dropped, Seen
from .hub import LocalHub
from .replies import HubError, Reply, Request
from .rights import find_token
from .routes import ROUTES

CHUNK = 1 << 16


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: LocalHub


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each reply would wait for the client to acknowledge its headers

    def handle_request(self) -> None:
        self.asked = unquote(self.path.partition("?")[0])
        try:
            self._answer()
        except Dropped:
            self._note(0)
            self.close_connection = True
        except ConnectionError:  # the client went away
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _answer(self) -> None:
        fault = self.server.hub.faults.take(self.command, self.asked)
        path, _, query = self.path.partition("?")
        body = self._read_body(fault.cut_after if fault else None)
        if fault and fault.drop:
            raise Dropped
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and fault.reply:
            reply = fault.reply
        else:
            reply = self._route(Request(path, parse_qs(query), dict(self.headers), body))
        for _ in body:  # what the route did not want would be taken for the next request
            pass
        self._send(reply)

    def _route(self, request: Request) -> Reply:
        hub = self.server.hub
        method = "GET" if self.command == "HEAD" else self.command
        try:
            token = find_token(hub.tokens, hub.faults.refused_tokens, self.headers.get("Authorization"))
            for verb, pattern, route in ROUTES:
                match = pattern.fullmatch(request.path) if verb == method else None
                if match:
                    names = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                    return route(hub, request, token, **names)
            raise HubError(404, f"The local Hub has no {method} {request.path}", "RepoNotFound")
        except HubError as error:
            return error.reply()

    def _note(self, status: int) -> None:
        self.server.hub.requests.append(Seen(self.command, self.asked, status))

    # --- the body of a request ---

    def _read_body(self, cut_after: int | None) -> Iterator[bytes]:
        """Yield the body as it arrives; close the connection where a fault cuts it."""
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        for chunk in self._read_chunks() if chunked else self._read_length(int(self.headers.get("Content-Length", 0))):
            yield chunk[:cut_after]
            if cut_after is not None:
                cut_after -= min(len(chunk), cut_after)
                if cut_after == 0:
                    raise Dropped

    def _read_length(self, length: int) -> Iterator[bytes]:
        while length > 0:
            chunk = self.rfile.read1(min(length, CHUNK))
            if not chunk:
                raise ConnectionResetError("The client closed the connection")
            length -= len(chunk)
            yield chunk

    def _read_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            yield from self._read_length(size)
            self.rfile.readline()
        self.rfile.readline()

    # --- the reply ---

    def _send(self, reply: Reply) -> None:
        if isinstance(reply.body, Path):
            self._send_file(reply.body, reply.headers)
            return
        is_json = not isinstance(reply.body, bytes)
        body = json.dumps(reply.body, default=str).encode() if is_json else reply.body
        kind = "application/json" if is_json else "text/plain; charset=utf-8"
        self._send_headers(reply.status, {"Content-Type": kind, **reply.headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, path: Path, headers: dict[str, str]) -> None:
        size = path.stat().st_size
        first, end, status = 0, size, 200
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
            end = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{end - 1}/{size}"}
        if wanted and first >= end:
            self._send_headers(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        self._send_headers(status, {"Accept-Ranges": "bytes", **headers, "Content-Length": str(end - first)})
        if self.command != "HEAD":
            with path.open("rb") as file:
                file.seek(first)
                while first < end and (chunk := file.read(min(CHUNK, end - first))):
                    self.wfile.write(chunk)
                    first += len(chunk)

    def _send_headers(self, status: int, headers: dict[str, str]) -> None:
        self._note(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass
