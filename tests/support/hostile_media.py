"""Files and servers that try to make a reader of media open other files, take much, or wait."""

import ctypes
import gzip
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

IN_OPEN = 0x20


class Server(ThreadingHTTPServer):
    """A server at `host`, which counts its requests. `answers` maps a path to a function of the handler."""

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1", port: int = 0, **answers: Callable):
        super().__init__((host, port), Handler)
        self.answers, self.requests = answers, []
        self.place = f"{host}:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *args) -> None:
        self.shutdown()
        super().__exit__(*args)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append((self.headers["Host"], self.path))
        try:
            self.server.answers[self.path.split("?")[0].strip("/").split("/")[0]](self)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *args) -> None:
        pass

    def begin(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


def redirect(target: str) -> Callable[[Handler], None]:
    return lambda handler: handler.begin(302, Location=target)


def content(data: bytes, **headers: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.begin(**headers)
        handler.wfile.write(data)

    return answer


def endless(status: int = 200, **headers: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.begin(status, **headers)
        while True:
            handler.wfile.write(bytes(1 << 16))

    return answer


def drip(handler: Handler) -> None:
    """Send a byte every 0.05 s."""
    handler.begin()
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def drip_headers(handler: Handler) -> None:
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def gzip_bomb(handler: Handler) -> None:
    handler.begin(Content_Encoding="gzip")
    handler.wfile.write(gzip.compress(bytes(1 << 26)))


# --- files -----------------------------------------------------------------------------------------------------------


def playlists(target: str) -> dict[str, bytes]:
    """Return files that refer to `target`, a path or an address, by their kind."""
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.0,\n{target}\n#EXT-X-ENDLIST\n"
    dash = f"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="urn:mpeg:dash:
    profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">
    <Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>
    </AdaptationSet></Period></MPD>"""
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    return {
        "hls": hls.encode(),
        "master hls": hls.replace("#EXTINF:2.0,", "#EXT-X-STREAM-INF:BANDWIDTH=9").encode(),
        "concat": f"ffconcat version 1.0\nfile '{target}'\n".encode(),
        "dash": dash.encode(),
        "sdp": f"{sdp}a=control:{target}\na=rtpmap:96 H264/90000\n".encode(),
        "smooth": f'<SmoothStreamingMedia Url="{target}"></SmoothStreamingMedia>'.encode(),
        "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'.encode(),
        "rtsp": f"RTSPtext\r\n{target}\r\n".encode(),
        "reference": f"[Reference]\r\nRef1={target}\r\n".encode(),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>'.encode(),
        "eps": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({target}) run\n".encode(),
    }


def with_external_track(mp4: bytes, path: str, relative: bool = False) -> bytes:
    """
    Return an mp4 whose header says that the samples of its track are in the file at `path` (an alias record), or in
    the file of this name beside the mp4.
    """
    volume, name = b"disk", os.path.basename(path).encode()[:63]
    target = path.encode() + bytes(len(path) % 2)
    record = bytes(10) + bytes([len(volume)]) + volume.ljust(27, b"\0") + bytes(12)
    record += (
        bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">2H", relative, relative) + bytes(16)
    )
    record += struct.pack(">2H", 2, len(target)) + target + struct.pack(">2H", 0xFFFF, 0)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    dref = struct.pack(">I4s2I", 16 + len(entry), b"dref", 0, 1) + entry
    start = mp4.index(b"dref") - 4
    size = int.from_bytes(mp4[start : start + 4], "big")
    changed = bytearray(mp4[:start] + dref + mp4[start + size :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):  # the header is behind the samples: they do not move
        place = changed.index(box) - 4
        changed[place : place + 4] = (int.from_bytes(changed[place : place + 4], "big") + len(dref) - size).to_bytes(
            4, "big"
        )
    return bytes(changed)


def with_linked_segments(mkv: bytes, path: str) -> bytes:
    """Return a Matroska file that names `path` as the next file and as an attachment, in the place of its padding."""

    def element(number: bytes, body: bytes) -> bytes:
        return number + (len(body) | 1 << 28).to_bytes(4, "big") + body

    name = path.encode()
    added = element(b"\x15\x49\xa9\x66", element(b"\x3e\x83\xbb", name) + element(b"\x3e\xb9\x23", bytes(16)))
    attached = element(b"\x46\x6e", name) + element(b"\x46\x60", b"video/mp4") + element(b"\x46\x5c", name)
    added += element(b"\x19\x41\xa4\x69", element(b"\x61\xa7", attached + element(b"\x46\xae", b"\1")))
    start = mkv.index(b"\x16\x54\xae\x6b")  # the tracks
    segment = mkv.index(b"\x18\x53\x80\x67") + 4
    size = int.from_bytes(mkv[segment + 1 : segment + 8], "big") + len(added)
    head = mkv[:segment] + b"\x01" + size.to_bytes(7, "big") + mkv[segment + 8 : start]
    return head + added + mkv[start:]


@contextmanager
def watching(path: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether any process has opened the file since."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(descriptor, os.fsencode(path), IN_OPEN) >= 0

    def was_opened() -> bool:
        try:
            return bool(os.read(descriptor, 1 << 16))
        except BlockingIOError:
            return False

    try:
        yield was_opened
    finally:
        os.close(descriptor)
