"""Where is this video or image? One answer for training, inspection, publishing, the cache and what is skipped."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from ..video_processing_pllava import dict_source
from ..video_source_pllava import is_address, public_name, resolve


@dataclass(frozen=True)
class Medium:
    """
    A video or an image.

    Args:
        name: How lists and errors call it: its path, its address without passwords and signatures, or what kind of
            thing it is.
        content: What is to be opened: a local path, the address of a file elsewhere, the bytes of a file, or what the
            processor takes besides (arrays, images).
        bounds: `start` and `end` in seconds, where a part of a video is meant.
    """

    name: str
    content: Any
    bounds: dict[str, float] = field(default_factory=dict)

    @property
    def file(self) -> Path | None:
        """The local file, or folder of frames; `None` if it is none."""
        return Path(self.content) if isinstance(self.content, str) and not is_address(self.content) else None


def find_medium(item: Any) -> Medium:
    """
    Finds a medium of a row: a path, `file://` too, an address, bytes, or a dict as the video processor takes it.

    Raises:
        ValueError: if a dict names nothing.
    """
    name, bounds = None, {}
    while isinstance(item, dict):
        name = item.get("path") or item.get("url") or name
        bounds |= {key: item[key] for key in ("start", "end") if item.get(key) is not None}
        item = item["image"] if item.get("image") is not None else dict_source(item)
    if isinstance(item, os.PathLike):
        item = os.fspath(item)
    if isinstance(item, bytes):
        return Medium(_name(name) if name else "<bytes>", item, bounds)
    if not isinstance(item, str):
        return Medium(f"<{type(item).__name__}>", item, bounds)
    return Medium(_name(item), _local_path(item) if item.startswith("file://") else item, bounds)


def _name(path: str) -> str:
    return public_name(path) if is_address(path) else path


def _local_path(address: str) -> str:
    try:
        return unquote(urlparse(address).path)
    except ValueError:  # it is said where the file is opened
        return address


def fetch(medium: Medium) -> str | bytes:
    """
    The path or the bytes of a file; one that is elsewhere is downloaded.

    Raises:
        VideoDecodeError: if it is not there, or empty.
        ValueError: if it is in no file.
    """
    if not isinstance(medium.content, str | bytes):
        raise ValueError(f"Features are kept for videos in files or bytes; got {medium.name}")
    return resolve(medium.content).content
