"""Resolve a path, URL, bytes or file object to a `Source` that can be opened, within limits.

The limits keep small files from taking much memory or time. They are far above what cameras and films need.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from .video_download_pllava import DownloadError, download

MAX_PIXELS = 50_000_000  # per frame: 8192 x 4320 films and 48-megapixel photographs have fewer
MAX_ASPECT = 32  # longer side / shorter side: resized by its shorter side, a thin frame would become huge
# Decoded pixels per file: a fixed number, plus so many per byte of the file. Ordinary films have about 100 per byte.
MAX_DECODED_PIXELS, DECODED_PIXELS_PER_BYTE = 2_000_000_000, 20_000
MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS = 1 << 30, 300

VIDEO_ADVICE = "Give a whole video file (mp4, webm, mkv, avi, mov, ts, gif...) or a folder of images."


class VideoDecodeError(ValueError):
    """
    The input is not a video or image that can be decoded, or lacks the requested part. The message names the input,
    the reason and the remedy.
    """


class CallerError(Exception):
    """Wraps an exception of the caller's sampler, so that [`Source.reading`] does not blame the file for it."""


@dataclass(frozen=True)
class Source:
    """A video or image that can be opened repeatedly: a path or the bytes of a file, and a name for messages."""

    name: str
    content: str | bytes
    advice: str = VIDEO_ADVICE

    @property
    def is_folder(self) -> bool:
        return isinstance(self.content, str) and os.path.isdir(self.content)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return os.path.getsize(self.content) if isinstance(self.content, str) else len(self.content)

    def open(self) -> BinaryIO:
        return open(self.content, "rb") if isinstance(self.content, str) else io.BytesIO(self.content)

    def error(self, reason: str) -> VideoDecodeError:
        return VideoDecodeError(f"Cannot decode {self.name}: {reason}. {self.advice}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn any exception of the libraries that read this file into a `VideoDecodeError`."""
        try:
            yield
        except CallerError as error:
            raise error.__cause__  # noqa: B904
        except VideoDecodeError:
            raise
        except Exception as error:  # PIL's plugins raise nearly every kind of exception for broken files
            raise self.error(f"it is damaged or too large ({str(error) or type(error).__name__})") from error

    def check_size(self, width: int, height: int) -> None:
        """Raise `VideoDecodeError` if frames are too large or too thin."""
        if width * height > MAX_PIXELS:
            raise self.error(f"its frames are {width} x {height}, more than {MAX_PIXELS:,} pixels")
        check_aspect(self.name, width, height, self.advice)

    def check_work(self, frames: int, width: int, height: int) -> None:
        """Raise `VideoDecodeError` if decoding so many frames is too much work for a file of this size."""
        if frames > self.size:
            raise self.error(f"it claims {frames:,} frames, which is more than it has bytes")
        if frames * width * height > MAX_DECODED_PIXELS + DECODED_PIXELS_PER_BYTE * self.size:
            raise self.error(f"{frames:,} frames of {width} x {height} are too many to decode for {self.size:,} bytes")


VideoSource = str | os.PathLike | bytes | BinaryIO | Source


def check_aspect(name: str, width: int, height: int, advice: str = "Give frames of another shape.") -> None:
    """Raise `VideoDecodeError` if frames are too thin. A side that is not known yet is 0."""
    if max(width, height) > MAX_ASPECT * min(width, height) > 0:
        problem = f"one side is more than {MAX_ASPECT} times the other"
        raise VideoDecodeError(f"Cannot decode {name}: its frames are {width} x {height}, {problem}. {advice}")


def resolve(video: VideoSource, advice: str = VIDEO_ADVICE) -> Source:
    """Return the file, folder or bytes that `video` refers to (see [`load_frames`]). A URL is downloaded.

    Raises:
        VideoDecodeError: if the file does not exist, is empty, or cannot be downloaded within the limits.
    """
    if isinstance(video, Source):
        source = video
    elif isinstance(video, (bytes, bytearray, memoryview)):
        source = Source(f"<bytes, {len(video)} bytes>", bytes(video), advice)
    elif hasattr(video, "read"):
        source = Source(f"<file {getattr(video, 'name', type(video).__name__)}>", _read_all(video), advice)
    else:
        source = _resolve_address(os.fsdecode(video), advice)
    if isinstance(source.content, str) and not (os.path.isfile(source.content) or source.is_folder):
        raise source.error("there is no such file")
    if not source.size:
        raise source.error("it is empty")
    return source


def is_address(text: str) -> bool:
    """Return whether `text` is a URL (`https://...`, `data:...`) and not a path."""
    return "://" in text or text.startswith("data:")


def public_name(address: str) -> str:
    """
    Return a URL for messages, without secrets: without user name and password, and without the query, which may hold
    a signature. A data URL is shortened.
    """
    if address.lower().startswith("data:"):
        return f"{address[:40]}..."
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:  # malformed, so the password may end at any "@"
        return re.sub(r"(?s)\?.*", "?...", re.sub("(?s)://.*@", "://", address))
    host = parts.hostname or ""
    host = (f"[{host}]" if ":" in host else host) + ("" if port is None else f":{port}")
    return f"{parts.scheme}://{host}{parts.path}{'?...' if parts.query else ''}"


def _resolve_address(address: str, advice: str) -> Source:
    scheme = address.lower().partition(":")[0] if ":" in address else ""
    name = public_name(address) if "://" in address or scheme == "data" else address
    if scheme in ("http", "https"):
        content = io.BytesIO()
        try:
            download(address, content, MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS)
        except DownloadError as error:
            advice = "Check the address, or give a local file."
            raise VideoDecodeError(f"Cannot download {name}: {error}. {advice}") from error.__cause__
        return Source(name, content.getvalue(), advice)
    if scheme == "data":  # OpenAI-compatible servers receive videos as data URLs
        try:
            with urlopen(address) as content:
                return Source(name, content.read(), advice)
        except ValueError as error:
            raise VideoDecodeError(f"Cannot read {name}: {error}. Give data:video/mp4;base64,...") from error
    source = Source(name, address, advice)
    if scheme == "file":
        with source.reading():
            return Source(name, unquote(urlsplit(address).path), advice)
    if "://" in address:
        raise source.error(f"URLs that begin with {scheme}:// are not supported")
    return source


def _read_all(file: BinaryIO) -> bytes:
    """Read the whole of `file` and restore its position. A file that was just written is at its end."""
    if not file.seekable():
        return file.read()
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content
