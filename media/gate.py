"""The gate for media from strangers: what may be read, and within which limits."""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image
from transformers.video_utils import VideoMetadata

from ..video_decoding_pllava import VideoTruncatedWarning
from ..video_processing_pllava import PllavaVideoProcessor
from ..video_source_pllava import public_name
from . import decoding
from .hosts import AllowedHosts, fetch
from .limits import MediaLimits, MediaRefused
from .places import check_bytes, open_data_uri, open_local_file, path_of_url, scheme_of, temporary_file
from .sandbox import CRASHED, ProcessEnded, run_limited, start_fork_server

MAX_NAME = 200  # characters


@dataclass(frozen=True)
class Media:
    """
    A file that passed the gate: it may be read, and its header keeps to the limits.

    Args:
        name: What to call it in messages: as it was asked for, without a URL's secrets.
        file: The open file.
        kind: Whether ffmpeg reads it as a video (a GIF, too), or PIL as an image (an animated WebP, too).
        format: By its content, as ffmpeg or PIL name it: "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "png".
        width, height: Size of a frame in pixels, before rotation.
        tracks: Number of tracks.
        frames, seconds: Length of a video by its header, None where the header does not say.
    """

    name: str
    file: BinaryIO
    kind: Literal["video", "image"]
    format: str
    width: int
    height: int
    tracks: int
    frames: int | None
    seconds: float | None


Reference = str | os.PathLike | bytes | Media


class MediaGate:
    """
    Reads videos and images that strangers name or send. All that is not allowed is refused, with a sentence for them.

    Args:
        allowed_media_domains: Hosts from which files are fetched: exact names ("cdn.example.org"), or "*" for any.
            All addresses of a host must be public, unless it is listed with its port ("127.0.0.1:8001"), for servers
            of your own network.
        allowed_local_media_path: Folders below which files of this machine may be read.
        limits: What a medium may cost.

    Raises:
        ValueError: if an entry of `allowed_media_domains` is not a host.
    """

    def __init__(
        self,
        allowed_media_domains: Iterable[str] = (),
        allowed_local_media_path: Iterable[str | os.PathLike] = (),
        limits: MediaLimits = MediaLimits(),  # noqa: B008 (it is frozen)
    ):
        self._hosts = AllowedHosts(allowed_media_domains)
        self._folders = tuple(map(Path, allowed_local_media_path))
        self.limits = limits
        start_fork_server()

    def read(self, reference: Reference) -> Media:
        """
        Return a file whose place, size, format and header are checked. `reference` is a `data:`, http(s) or `file:`
        URL, a path (an `os.PathLike` always is one), or the bytes of a file. Nothing of it is decoded.

        Raises:
            MediaRefused: if it may not be read, or exceeds a limit.
        """
        name, file = self._open(reference)
        try:
            with self._decoding(name):
                header, _ = run_limited(decoding.describe, name, self.limits, limits=self.limits, file=file)
                return Media(name, file, **header)
        except BaseException:
            file.close()
            raise

    def load_video(
        self,
        reference: Reference,
        video_processor: PllavaVideoProcessor,
        num_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> tuple[np.ndarray, VideoMetadata]:
        """
        Return the frames of a video that a model sees, `(frames, height, width, 3)` uint8: sampled and resized by the
        video processor, but not cropped. The processor takes them with `do_sample_frames=False, do_resize=False`. The
        metadata has the frames' indices and the frame rate.

        Args:
            reference: As for `read`, or what `read` returned.
            num_frames: Number of frames; by default the processor's own.
            start, end: Bounds of a part of the video, in seconds.

        Raises:
            MediaRefused: if it may not be read, exceeds a limit, or cannot be decoded.
        """
        if num_frames is not None and num_frames < 1:
            raise MediaRefused(f"Cannot take {num_frames} frames of a video: ask for at least one.")
        name, file = self._open(reference)
        clip = video_processor.to_dict(), num_frames, start, end
        with file, self._decoding(name):
            answer, content = run_limited(
                decoding.decode_video, name, self.limits, *clip, limits=self.limits, file=file
            )
            count, height, width = answer["size"]
            frames = np.frombuffer(content, np.uint8).reshape(count, height, width, 3)
            metadata, damages = VideoMetadata(**answer["metadata"]), answer["damages"]
        for damage in damages:
            warnings.warn(damage, VideoTruncatedWarning, stacklevel=2)
        return frames, metadata

    def load_image(self, reference: Reference) -> Image.Image:
        """
        Return an image, RGB, rotated as its EXIF data says. `reference` is as for `load_video`.

        Raises:
            MediaRefused: if it may not be read, exceeds a limit, or cannot be decoded.
        """
        name, file = self._open(reference)
        with file, self._decoding(name):
            answer, content = run_limited(decoding.decode_image, name, self.limits, limits=self.limits, file=file)
            width, height = answer["size"]
            if 3 * width * height != len(content):  # before PIL takes memory for an image of that size
                raise ValueError(f"{len(content)} bytes are no image of {width} x {height}")
            return Image.frombytes("RGB", (width, height), bytes(content))

    @contextmanager
    def _decoding(self, name: str) -> Iterator[None]:
        """Name the medium in errors of the process. If that was taken over, its answer may be wrong in any way."""
        try:
            yield
        except ProcessEnded as error:
            raise MediaRefused(f"Cannot decode {name}: {error}. Give a shorter or smaller file.") from None
        except MediaRefused:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise MediaRefused(f"Cannot decode {name}: {CRASHED}. Give another file.") from error

    def _open(self, reference: Reference) -> tuple[str, BinaryIO]:
        """Return the name for messages and the open file."""
        if isinstance(reference, Media):
            reference.file.seek(0)
            return reference.name, os.fdopen(os.dup(reference.file.fileno()), "rb")
        if isinstance(reference, (bytes, bytearray, memoryview)):
            name = f"<{len(reference):,} bytes>"
            check_bytes(name, len(reference), self.limits)
            return name, temporary_file(reference)
        if isinstance(reference, os.PathLike):
            return self._open_path(Path(reference), _printable(os.fspath(reference)))
        scheme = scheme_of(reference)
        if scheme is None:
            return self._open_path(Path(reference), _printable(reference))
        name = _printable(public_name(reference))
        if scheme == "data":
            return name, open_data_uri(reference, name, self.limits)
        if scheme in ("http", "https"):
            return name, fetch(reference, name, self._hosts, self.limits)
        if scheme == "file":
            return self._open_path(path_of_url(reference), name)
        raise MediaRefused(f"Cannot read {name}: addresses that begin with {scheme}: are not read. Upload the file.")

    def _open_path(self, path: Path, name: str) -> tuple[str, BinaryIO]:
        return name, open_local_file(path, name, self._folders, self.limits)


def _printable(name: str) -> str:
    """Return a name for messages and logs, in which it must be neither a line of its own nor long."""
    name = "".join(character if character.isprintable() else "?" for character in name[: MAX_NAME + 1])
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."
