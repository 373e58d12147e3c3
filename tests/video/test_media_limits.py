"""Limits for small files that would take much memory or time, and for downloads."""

from __future__ import annotations

import gzip
import re
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from decode_files import MAX_SECONDS, decode_files
from video_files import animation, moving_frames, white_png, write_video

import pllava.video_source_pllava as sources
from pllava.video_decoding_pllava import VideoTruncatedWarning, load_frames
from pllava.video_images_pllava import read_image
from pllava.video_source_pllava import VideoDecodeError

MANY = 33_000_000


def grey(width: int, height: int, **options) -> Callable[[Path], bytes]:
    def build(path: Path) -> bytes:
        return write_video(path, [np.full((height, width, 3), 90, np.uint8)] * 2, **options).read_bytes()

    return build


def patched(box: bytes, offset: int, fields: bytes, **options) -> Callable[[Path], bytes]:
    """Build an mp4 in which `fields` are written `offset` bytes after the name of `box`."""

    def build(path: Path) -> bytes:
        content = bytearray(write_video(path, moving_frames(20), g=5, **options).read_bytes())
        start = content.index(box) + 4 + offset
        content[start : start + len(fields)] = fields
        return bytes(content)

    return build


FRAGMENTS = {"container_options": {"movflags": "frag_keyframe+empty_moov"}}
# file name: (content, expected error or None)
FILES = {
    "8k.gif": (animation(7680, 4320, 4), None),
    "8k.mp4": (grey(7680, 4320, preset="ultrafast"), None),
    "canvas.gif": (animation(16000, 16000, 1), "16000 x 16000, more than 50,000,000 pixels"),
    "long.gif": (animation(4000, 4000, 3000), "3,000 frames of 4000 x 4000 are too many to decode"),
    "large.png": (white_png(9000, 9000), "9000 x 9000, more than"),
    "largest.mp4": (white_png(16000, 16000), "more than 50,000,000 pixels"),  # and than PIL's own limit
    "thin.mp4": (grey(2, 4096), "2 x 4096, one side is more than 32 times the other"),
    "flat.mp4": (grey(16384, 2), "16384 x 2, one side"),
    "line.gif": (animation(65535, 1, 1), "65535 x 1, one side"),
    "line.png": (white_png(65535, 1), "65535 x 1, one side"),
    "samples.mp4": (patched(b"stsz", 4, struct.pack(">2I", 1, MANY)), "claims 33,000,000 samples"),
    "fragment.mp4": (patched(b"trun", 0, struct.pack(">2I", 1, MANY), **FRAGMENTS), "claims 33,000,0\\d\\d samples"),
    "shown.mp4": (patched(b"stts", 8, struct.pack(">I", MANY)), None),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_small_files_take_little_memory_and_time(tmp_path):
    """Even 16 frames of 8K, some of them repeated: each is resized as soon as it is decoded."""
    for name, (content, _) in FILES.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content(tmp_path / "made.mp4"))
        assert (tmp_path / name).stat().st_size < 1 << 18
    for path, outcome in decode_files([tmp_path / name for name in FILES]).items():
        _, expected = FILES[path.name]
        assert outcome.raised is None, path
        assert outcome.memory < 600 and outcome.seconds < MAX_SECONDS, (path, outcome)
        assert (outcome.error is None) == (expected is None), (path, outcome)
        if expected is not None:
            assert str(path) in outcome.error and re.search(expected, outcome.error), outcome


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def with_box_replaced(mp4: bytes, kind: bytes, replace: Callable[[bytes], bytes]) -> bytes:
    """Replace each box of this kind by `replace(its body)`."""
    result = b""
    while mp4:
        size, name = struct.unpack(">I4s", mp4[:8])
        body, mp4 = mp4[8:size], mp4[size:]
        if name == kind:
            result += replace(body)
        elif name in (b"moov", b"trak", b"mdia", b"minf"):
            result += box(name, with_box_replaced(body, kind, replace))
        else:
            result += box(name, body)
    return result


def with_sample_table(arrange: Callable[[bytes, bytes], bytes]) -> Callable[[bytes], bytes]:
    """Return a function that rebuilds "stbl" from `arrange(its other boxes, its sample table)`."""

    def replace(body: bytes) -> bytes:
        start = body.index(b"stsz") - 4
        end = start + int.from_bytes(body[start : start + 4], "big")
        return box(b"stbl", arrange(body[:start] + body[end:], body[start:end]))

    return replace


def in_sample_entry(others: bytes, table: bytes) -> bytes:
    size = int.from_bytes(others[:4], "big")  # of "stsd", the first box
    entry = box(others[20:24], others[24:size] + table)
    return box(b"stsd", others[8:16] + entry) + others[size:]


def compressed(moov: bytes) -> bytes:
    content = zlib.compress(box(b"moov", moov))
    fields = struct.pack(">I4s4sI4sI", 12, b"dcom", b"zlib", 12 + len(content), b"cmvd", 8 + len(moov))
    return box(b"moov", box(b"cmov", fields + content))


HANDLER = box(b"hdlr", bytes(8) + b"mdir" + bytes(13))
SAMPLE_TABLES = {  # where ffmpeg finds a sample table: the box to replace, and its replacement
    **{
        kind: (b"stbl", with_sample_table(lambda others, table, kind=kind: others + box(kind.encode(), table)))
        for kind in ("dinf", "edts", "ilst", "mvex", "schi", "sinf", "tref", "udta", "wave")
    },
    "meta": (b"stbl", with_sample_table(lambda others, table: others + box(b"meta", bytes(8) + HANDLER + table))),
    "sample entry": (b"stbl", with_sample_table(in_sample_entry)),
    "hoov": (b"moov", partial(box, b"hoov")),
    "free": (b"moov", partial(box, b"free")),
    "cmov": (b"moov", compressed),
    "no length": (b"moov", lambda moov: struct.pack(">I4sQ", 1, b"moov", 8) + moov),
}


@pytest.mark.parametrize("location", SAMPLE_TABLES)
def test_claimed_samples_are_counted_wherever_ffmpeg_looks_for_them(tmp_path, location):
    kind, replace = SAMPLE_TABLES[location]
    whole = write_video(tmp_path / "whole.mp4", moving_frames(20), g=5).read_bytes()
    assert len(load_frames(with_box_replaced(whole, kind, replace))[0]) == 20
    lying = patched(b"stsz", 4, struct.pack(">2I", 1, MANY))(tmp_path / "lying.mp4")
    with pytest.raises(VideoDecodeError, match="claims 33,000,[0-9]+ samples"):
        load_frames(with_box_replaced(lying, kind, replace))


def test_compressed_header_is_not_unpacked_beyond_its_limit(tmp_path):
    """A few hundred kilobytes would expand to as many megabytes."""
    with pytest.raises(VideoDecodeError, match="claims 25,000,00[0-9] samples"):
        load_frames(compressed(bytes(200_000_000)))


# --- downloads -------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            getattr(self, self.path.split("?")[0].strip("/"))()
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *args) -> None:
        pass

    def answer(self, *headers: tuple[str, str]) -> None:
        self.send_response(200)
        for header in headers:
            self.send_header(*header)
        self.end_headers()

    def clip(self) -> None:
        self.answer()
        self.wfile.write(self.server.clip)

    def compressed(self) -> None:
        self.answer(("Content-Encoding", "gzip"))
        self.wfile.write(gzip.compress(self.server.clip))

    def endless(self) -> None:
        self.answer()
        while True:
            self.wfile.write(bytes(1 << 16))

    def bomb(self) -> None:
        self.answer(("Content-Encoding", "gzip"))
        self.wfile.write(gzip.compress(bytes(1 << 26)))

    def twice(self) -> None:
        self.answer(("Content-Encoding", "gzip, gzip"))
        self.wfile.write(gzip.compress(gzip.compress(bytes(1 << 26))))

    def drip(self) -> None:
        self.answer()
        self.drip_headers()

    def drip_headers(self) -> None:
        while True:
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def secret(self) -> None:
        self.send_error(403, "Forbidden")


@pytest.fixture(scope="module")
def server(clips) -> Iterator[str]:
    """Host and port of a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.clip = clips[0].read_bytes()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_downloads_may_be_compressed(server, clips):
    for path in ("clip", "compressed"):
        assert np.array_equal(load_frames(f"http://{server}/{path}")[0], load_frames(clips[0])[0])


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("endless", "more than 1,000,000 bytes"),
        ("bomb", "more than 1,000,000 bytes"),
        ("twice", "compressed (gzip, gzip)"),
        ("drip", "longer than 0.5 s"),
        ("drip_headers", "longer than 0.5 s"),
        ("secret", "403 Forbidden"),
    ],
)
def test_downloads_have_limits_and_their_errors_hide_secrets(server, monkeypatch, path, problem):
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 1_000_000)
    if "drip" in path:
        monkeypatch.setattr(sources, "MAX_DOWNLOAD_SECONDS", 0.5)
    began = time.monotonic()
    for read in (load_frames, read_image):
        with pytest.raises(VideoDecodeError, match=f"^Cannot download http://{server}/{path}") as caught:
            read(f"http://user:hunter2@{server}/{path}?signature=hunter3")
        assert problem in str(caught.value)
        assert not re.search("user|hunter", f"{caught.value}")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://user:hun/ter2@host:port/", "https://", "http://a b/", "http://\0/"]
)
def test_malformed_urls_raise_a_decode_error(url):
    with pytest.raises(VideoDecodeError, match="^Cannot download http.*Check the address") as caught:
        load_frames(url)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["s3://user:hunter2@clips", "file://user:hunter2@clips", "http://user:hunter2@[::1"]
)
def test_errors_about_unsupported_urls_hide_secrets(address):
    with pytest.raises(VideoDecodeError, match=f"{address[:4]}.*/a.mp4") as caught:
        load_frames(f"{address}/a.mp4?signature=hunter3")
    assert not re.search("user|hunter", f"{caught.value}")


# --- truncated GIFs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 10, 100])
def test_gif_without_its_trailer_is_truncated(tmp_path, cut):
    whole = write_video(tmp_path / "clip.gif", moving_frames(10), codec="gif", pix_fmt="rgb8").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error", VideoTruncatedWarning)
        load_frames(whole)
        load_frames(whole + bytes(5))
    with pytest.warns(VideoTruncatedWarning, match="ends early: (9|10) of an unknown number"):
        load_frames(whole[:-cut])
