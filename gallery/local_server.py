"""A gallery on this computer: its files by name and nothing else, with the parts of videos that a browser asks for."""

import re
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from huggingface_hub import cached_assets_path

from ..video_source_pllava import VideoDecodeError
from .data import Played, read_results
from .exporting import DATA, INDEX, SITE, page_files
from .frames import Clip, Strip
from .videos import Video, write_video

HOST = "127.0.0.1"
PIECE = 1 << 20  # bytes that are sent at a time
IDLE_SECONDS = 60  # after which a connection is closed
KINDS = {  # those of the system differ from one computer to the next
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}


class GalleryServer(ThreadingHTTPServer):
    """
    Serves a gallery on the loopback interface. Strips, and clips that a browser cannot play as they are, are made in
    the cache of the Hub's library; a clip when it is first asked for.

    Args:
        results: Folders (see [`find_runs`]).
        port: 0 takes a free one.
        chat: The address of a chat that the page links to.
        site: The built page.

    Raises:
        OSError: if the port is taken.
        ValueError: if the page is not built, there are no results, or those of a benchmark cannot be compared.
    """

    daemon_threads = True

    def __init__(self, results: Sequence[Path], port: int = 0, chat: str | None = None, site: Path = SITE):
        page = page_files(site)
        try:
            super().__init__((HOST, port), _Handler)  # now, rather than after the strips have been made
        except OSError as error:
            raise OSError(f"Port {port} cannot be used ({error.strerror}): choose another one") from error
        self.cache = cached_assets_path("pllava", "gallery")
        self.videos: dict[str, Video] = {}
        self._encoding = Lock()
        try:
            gallery = read_results(results, self.cache)
            played = list(map(self._play, gallery.clips, gallery.strips))
            self.script = gallery.describe(played, chat).encode()
        except BaseException:
            self.server_close()
            raise
        self.problems = gallery.problems(played)
        self.files = page | {
            strip.frames["file"]: self.cache / strip.frames["file"] for strip in gallery.strips if strip.frames
        }

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def _play(self, clip: Clip, strip: Strip) -> Played:
        """List the video of a clip. Browsers find the part of one that they play as it is; of others it is cut out."""
        if strip.content is None:
            return Played()
        part = (clip.start, clip.end)
        video = Video.of(clip.path, strip.content, strip.playable, *((None, None) if strip.playable else part))
        self.videos[video.file] = video
        if not strip.playable or part == (None, None):
            return Played(video.file, strip.start)
        end = "" if clip.end is None else f",{clip.end:g}"
        return Played(f"{video.file}#t={clip.start or 0:g}{end}")

    def find(self, name: str) -> Path | bytes | None:
        """
        Return the file, or the content, of a name in the gallery; None if there is none. Names are looked up and never
        joined to a folder, so none leads out of the gallery.

        Raises:
            OSError, VideoDecodeError: if a clip cannot be read any more.
        """
        if name == DATA:
            return self.script
        if video := self.videos.get(name):
            if video.playable:
                return Path(video.source)
            with self._encoding:  # one at a time, and none twice
                write_video(self.cache, video)
            return self.cache / name
        return self.files.get(name or INDEX)


class _Handler(BaseHTTPRequestHandler):
    server: GalleryServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        with suppress(ConnectionError, TimeoutError):  # the browser seeks elsewhere, or is closed
            self._reply()

    do_HEAD = do_GET

    def _reply(self) -> None:
        # Another name for this computer would let a page from elsewhere read the clips (DNS rebinding)
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            return self._refuse(HTTPStatus.FORBIDDEN, f"This gallery is at {self.server.address}")
        name = unquote(urlsplit(self.path).path).removeprefix("/")
        try:
            found = self.server.find(name)
            if found is None:
                return self._refuse(HTTPStatus.NOT_FOUND, "There is no such file in the gallery")
            kind = KINDS.get(Path(name or INDEX).suffix, "application/octet-stream")
            if isinstance(found, bytes):
                self._start(HTTPStatus.OK, kind, len(found))
                self._write(found)
            else:
                with found.open("rb") as file:
                    self._send(file, found.stat().st_size, kind)
        except (ConnectionError, TimeoutError):
            raise
        except (OSError, VideoDecodeError):
            self._refuse(HTTPStatus.NOT_FOUND, "The clip cannot be read any more")

    def _send(self, file: BinaryIO, size: int, kind: str) -> None:
        """Send a file, or the range of it that is asked for; of several ranges none, as the standard allows."""
        first, last, status, headers = 0, size - 1, HTTPStatus.OK, {"Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and any(asked.groups()):
            if asked[1]:
                first, last = int(asked[1]), min(int(asked[2] or last), last)
            else:
                first = max(0, size - int(asked[2]))
            if first > last:
                headers = {"Content-Range": f"bytes */{size}"}
                return self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "There are no such bytes", headers)
            status, headers["Content-Range"] = HTTPStatus.PARTIAL_CONTENT, f"bytes {first}-{last}/{size}"
        self._start(status, kind, last - first + 1, headers)
        file.seek(first)
        left = last - first + 1
        while left and (piece := file.read(min(PIECE, left))):
            self._write(piece)
            left -= len(piece)
        self.close_connection |= left > 0  # the file has become shorter

    def _refuse(self, status: HTTPStatus, reason: str, headers: dict[str, str] | None = None) -> None:
        content = f"{reason}.\n".encode()
        self._start(status, "text/plain; charset=utf-8", len(content), headers)
        self._write(content)

    def _start(self, status: HTTPStatus, kind: str, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        common = {"Content-Type": kind, "Content-Length": str(length), "Cache-Control": "no-cache"}
        common |= {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
        for header in {**common, **(headers or {})}.items():
            self.send_header(*header)
        self.end_headers()

    def _write(self, content: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Requests are not logged: the terminal shows the address only."""
