"""A clip: a video or a part of it, and what is asked about it."""

import os
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, Self

from ...video_source_pllava import is_address
from ...workers import with_retries

HUB_SCHEME = "hf://datasets/"  # also the files of a dataset, at a commit: "hf://datasets/USER/NAME@COMMIT/FILE"
Row = dict[str, Any]  # a line of the output file
Bounds = tuple[float | None, float | None]  # in seconds


@dataclass(frozen=True)
class Clip:
    """
    A video, or a part of it, and the prompts about it.

    Args:
        video: Its name: the path as it was passed, the address, or the name of a list's row.
        prompts: The questions, each of which gets a caption.
        start, end: Bounds of a part, in seconds.
        content: The bytes of the file, if `video` is only a name.
        sha256: The hash of the content, see [`content_hash`]; None if it is not known yet, and of an address.
        bytes, mtime_ns: Size and time of modification of a file, by which it is recognised without reading it.
    """

    video: str
    prompts: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    content: bytes | None = None
    sha256: str | None = None
    bytes: int | None = None
    mtime_ns: int | None = None

    @property
    def path(self) -> str | None:
        """The absolute path of a local file or folder."""
        return None if self.content is not None or is_address(self.video) else os.path.abspath(self.video)

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells clips apart before they are read."""
        return self.path or self.video, self.start, self.end, hash(self.content)

    @property
    def is_hub_file(self) -> bool:
        """Whether it is a file of a dataset on the Hub, at a commit, and thus never another one."""
        return self.content is None and HUB_SCHEME in self.video

    def load(self) -> str | bytes:
        """
        Return what is decoded: a path, an address or the bytes of a file. A dataset's file is downloaded.

        Raises:
            OSError: if it cannot be downloaded.
        """
        if not self.is_hub_file:
            return self.video if self.content is None else self.content
        try:
            return with_retries(_download, self.video)
        except Exception as error:  # of fsspec's file systems
            raise OSError(f"Cannot read {self.video}: {error}") from error

    def part(self, bounds: Bounds) -> Self:
        """Return the part of this video between two times."""
        start, end = bounds
        return replace(self, start=start, end=end)

    def describe(self) -> Row:
        """Return the beginning of the clip's rows: where it is, what it holds, and which part of it is meant."""
        # An address is recorded as it was passed: a later run reads it again
        described = {
            "video": self.video,
            "path": self.path,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "mtime_ns": self.mtime_ns,
            "start": self.start,
            "end": self.end,
        }
        optional = ("path", "bytes", "mtime_ns", "start", "end")
        return {name: value for name, value in described.items() if value is not None or name not in optional}


def _download(address: str) -> bytes:
    import fsspec

    with fsspec.open(address, "rb") as file:
        return file.read()


@dataclass(frozen=True)
class Failed:
    """A clip that cannot be captioned, and why."""

    clip: Clip
    error: str

    @property
    def row(self) -> Row:
        return {**self.clip.describe(), "error": self.error}
