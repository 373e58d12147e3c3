"""Where videos and images come from: a path, an address or bytes -> what can be opened, its limits and its one error.

The limits keep small files from taking much memory or time. They are far above what cameras and films need.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from huggingface_hub.utils import httpx
from PIL import Image, ImageOps

VideoSource = str | os.PathLike | bytes | BinaryIO

MAX_PIXELS = 50_000_000  # of a frame: films of 8192 x 4320 and photographs of 48 megapixels have fewer
MAX_ASPECT = 32  # of the longer side to the shorter: resized by its shorter side, a frame grows with it
# Pixels to decode of one file: so many, and more of a large one. Ordinary films have some hundred for each byte.
MAX_DECODED_PIXELS, DECODED_PIXELS_PER_BYTE = 2_000_000_000, 20_000
MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS = 1 << 30, 300
READ_SECONDS = 60  # that a server may be silent

VIDEO_ADVICE = "Give a whole video file (mp4, webm, mkv, avi, mov, ts, gif...) or a folder of images."
IMAGE_ADVICE = "Give a whole image file (bmp, gif, jpeg, png or webp)."
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # PIL knows more, of which EPS is a program that is run


class VideoDecodeError(ValueError):
    """
    The input is no video or image that can be decoded, or has not the part that was asked for. The message names the
    input, the reason and what to do.
    """


class CallerError(Exception):
    """Its cause was raised by a function of the caller's, and is no fault of the file: see [`Source.reading`]."""


@dataclass(frozen=True)
class Source:
    """A video or image to open as often as needed: a path or the bytes of a file, and its name for messages."""

    name: str
    content: str | bytes
    advice: str = VIDEO_ADVICE

    @property
    def is_folder(self) -> bool:
        return isinstance(self.content, str) and os.path.isdir(self.content)

    @property
    def size(self) -> int:
        """In bytes."""
        return os.path.getsize(self.content) if isinstance(self.content, str) else len(self.content)

    def open(self) -> BinaryIO:
        return open(self.content, "rb") if isinstance(self.content, str) else io.BytesIO(self.content)

    def error(self, reason: str) -> VideoDecodeError:
        return VideoDecodeError(f"Cannot decode {self.name}: {reason}. {self.advice}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Whatever the libraries that read this file raise within becomes the one error."""
        try:
            yield
        except CallerError as error:
            raise error.__cause__  # noqa: B904
        except VideoDecodeError:
            raise
        except Exception as error:  # PIL's plugins raise nearly every kind for broken files
            raise self.error(f"it is damaged or too large ({str(error) or type(error).__name__})") from error

    def check_size(self, width: int, height: int) -> None:
        """Raises `VideoDecodeError` for frames that are too large or too thin."""
        if width * height > MAX_PIXELS:
            raise self.error(f"its frames are {width} x {height}, more than {MAX_PIXELS:,} pixels")
        check_aspect(self.name, width, height, self.advice)

    def check_work(self, frames: int, width: int, height: int) -> None:
        """Raises `VideoDecodeError` if it would take too long to decode so many frames for a file of its size."""
        if frames > self.size:
            raise self.error(f"it claims {frames:,} frames, which is more than it has bytes")
        if frames * width * height > MAX_DECODED_PIXELS + DECODED_PIXELS_PER_BYTE * self.size:
            raise self.error(f"{frames:,} frames of {width} x {height} are too many to decode for {self.size:,} bytes")


def check_aspect(name: str, width: int, height: int, advice: str = "Give frames of another shape.") -> None:
    """Raises `VideoDecodeError` for frames that are too thin; 0 stands for a side not known yet."""
    if max(width, height) > MAX_ASPECT * min(width, height) > 0:
        problem = f"one side is more than {MAX_ASPECT} times the other"
        raise VideoDecodeError(f"Cannot decode {name}: its frames are {width} x {height}, {problem}. {advice}")


def resolve(video: VideoSource, advice: str = VIDEO_ADVICE) -> Source:
    """
    Finds the file, folder or bytes that `video` names (see [`load_frames`]), downloading an address.

    Raises:
        VideoDecodeError: there is no such file, it is empty, or cannot be downloaded within the limits.
    """
    if isinstance(video, (bytes, bytearray, memoryview)):
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
    """Whether this is no path: `https://...`, `data:...`."""
    return "://" in text or text.startswith("data:")


def public_name(address: str) -> str:
    """
    `address` for messages: without a user's name and password, without a query, which may hold a signature, and of a
    data URL only its beginning.
    """
    if address.startswith("data:"):
        return f"{address[:40]}..."
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:  # no telling where a password ends
        return re.sub(r"(?s)\?.*", "?...", re.sub("(?s)://.*@", "://", address))
    host = f"{parts.hostname or ''}{'' if port is None else f':{port}'}"
    return f"{parts.scheme}://{host}{parts.path}{'?...' if parts.query else ''}"


def _resolve_address(address: str, advice: str) -> Source:
    scheme, colon, _ = address.lower().partition(":")
    scheme = scheme if colon else ""
    if scheme in ("http", "https"):
        return Source(public_name(address), _download(address), advice)
    if scheme == "data":  # as OpenAI-compatible servers get their videos
        return Source(f"{address[:40]}...", _read_data_url(address), advice)
    source = Source(public_name(address) if "://" in address else address, address, advice)
    if scheme == "file":
        with source.reading():
            return Source(source.name, unquote(urlsplit(address).path), advice)
    if "://" in address:
        raise source.error(f"{scheme}:// is not a kind of address that is read")
    return source


def _read_all(file: BinaryIO) -> bytes:
    """The whole of `file`, even if it was just written and stands at its end. Its position stays as it was."""
    if not file.seekable():
        return file.read()
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content


def _read_data_url(url: str) -> bytes:
    try:
        with urlopen(url) as content:
            return content.read()
    except ValueError as error:
        raise VideoDecodeError(f"Cannot read {url[:40]}...: {error}. Give data:video/mp4;base64,...") from error


# --- downloads -------------------------------------------------------------------------------------------------------


def _download(url: str) -> bytes:
    def error(reason: str) -> VideoDecodeError:
        advice = "Check the address, or give a local file."
        return VideoDecodeError(f"Cannot download {public_name(url)}: {reason}. {advice}")

    try:
        # Cancelled as a whole when its time is up, whatever the server does. In a thread of its own, since this one
        # may run an event loop already.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, asyncio.wait_for(_fetch(url), MAX_DOWNLOAD_SECONDS)).result()
    except httpx.HTTPStatusError as problem:  # its own message has the whole address in it
        raise error(f"{problem.response.status_code} {problem.response.reason_phrase}") from None
    except httpx.InvalidURL:  # as well
        raise error("it is not a valid address") from None
    except asyncio.TimeoutError:  # noqa: UP041 Python 3.10 has one of its own
        raise error(f"it takes longer than {MAX_DOWNLOAD_SECONDS} s") from None
    except Exception as problem:  # of the connection: httpx lets those of ssl and others through
        raise error(str(problem) or type(problem).__name__) from problem


async def _fetch(url: str) -> bytes:
    content = io.BytesIO()
    async with (
        httpx.AsyncClient(follow_redirects=True, timeout=READ_SECONDS) as client,
        client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
    ):
        response.raise_for_status()
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding not in ("identity", "gzip", "deflate"):  # others, and several, make a chunk grow without limit
            raise ValueError(f"it is sent compressed ({encoding})")
        async for chunk in response.aiter_bytes():  # decompressed
            content.write(chunk)
            if content.tell() > MAX_DOWNLOAD_BYTES:
                raise ValueError(f"it has more than {MAX_DOWNLOAD_BYTES:,} bytes")
    return content.getvalue()


# --- still images ----------------------------------------------------------------------------------------------------


def read_image(image: VideoSource) -> Image.Image:
    """A still image, RGB, turned as it is meant to be shown; `image` is a path, an address, bytes or a binary file.

    Raises:
        VideoDecodeError: there is no such file, it is no image, is broken, or passes a limit.
    """
    source = resolve(image, IMAGE_ADVICE)
    with source.reading(), open_image(source) as opened:
        return as_rgb(opened)


def open_image(source: Source) -> Image.Image:
    image = Image.open(source.content if isinstance(source.content, str) else source.open(), formats=IMAGE_FORMATS)
    source.check_size(*image.size)
    source.check_work(getattr(image, "n_frames", 1), *image.size)
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")
