"""
Locate the videos and images of rows, and recognise them by their content. Training, inspection, captioning and
publishing share it, so they open the same files.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from ..video_images_pllava import IMAGE_SUFFIXES
from ..video_processing_pllava import dict_source
from ..video_source_pllava import is_address, public_name, resolve


@dataclass(frozen=True)
class Medium:
    """
    A video or an image.

    Args:
        name: The name in lists and errors: the path, the URL without its secrets, or the type of the content.
        content: A local path, a URL, the bytes of a file, or what else the processor accepts (arrays, images).
        bounds: `start` and `end` in seconds of a part of a video.
    """

    name: str
    content: Any
    bounds: dict[str, float] = field(default_factory=dict)

    @property
    def file(self) -> Path | None:
        """The local file or folder of frames, if the content is a path."""
        return Path(self.content) if isinstance(self.content, str) and not is_address(self.content) else None


def find_medium(item: Any) -> Medium:
    """
    Locate a medium: a path, a URL (`file://` too), bytes, or a dict as the video processor accepts it.

    Raises:
        ValueError: if a dict has no content.
    """
    name, bounds = None, {}
    while isinstance(item, dict):
        name = item.get("path") or item.get("url") or name
        bounds |= {key: item[key] for key in ("start", "end") if item.get(key) is not None}
        item = item["image"] if item.get("image") is not None else dict_source(item)
    if isinstance(item, os.PathLike):
        item = os.fspath(item)
    if isinstance(item, bytes):
        return Medium(_public_name(name) if name else "<bytes>", item, bounds)
    if not isinstance(item, str):
        return Medium(f"<{type(item).__name__}>", item, bounds)
    return Medium(_public_name(item), _local_path(item) if item.startswith("file://") else item, bounds)


def _public_name(path: str) -> str:
    return public_name(path) if is_address(path) else path


def _local_path(url: str) -> str:
    try:
        return unquote(urlparse(url).path)
    except ValueError:  # raised again, with a proper message, when the file is opened
        return url


def fetch(medium: Medium) -> str | bytes:
    """
    Return the path or the bytes of a file; a URL is downloaded.

    Raises:
        VideoDecodeError: if there is no such file, or it is empty.
        ValueError: if the content is neither a file nor bytes.
    """
    if not isinstance(medium.content, str | bytes):
        raise ValueError(f"Features are cached for videos in files or bytes; got {medium.name}")
    return resolve(medium.content).content


def content_hash(medium: Medium) -> str | None:
    """
    Return the SHA-256 of a file's bytes, in hexadecimal. Of a folder of frames, it is that of the lines `NAME SHA256`
    of its images, sorted by name. It is None for a URL, whose bytes are not here, and for decoded frames.

    Raises:
        OSError: if the file cannot be read.
    """
    if isinstance(medium.content, bytes):
        return hashlib.sha256(medium.content).hexdigest()
    if medium.file is None:
        return None
    if medium.file.is_dir():
        images = sorted(file for file in medium.file.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        lines = "".join(f"{image.name} {_file_hash(image)}\n" for image in images)
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    return _file_hash(medium.file)


def _file_hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
