"""Clips for the browser: as they are if it plays them, else as H.264 in mp4; parts of clips are cut out."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image
from transformers.video_utils import VideoMetadata

from ..files import new_file
from ..media.browsers import played_suffix
from ..video_decoding_pllava import load_frames
from ..video_sampling_pllava import sample_frames

VERSION = 1  # of the encoded clips: part of their names
HEIGHT = 360  # pixels of a clip that is encoded here, at most
FRAMES_AT_ONCE = 128  # in memory
DEFAULT_FPS = 10  # of a clip without a frame rate


@dataclass(frozen=True)
class Video:
    """
    What a browser plays of a clip.

    Args:
        file: Its name in the gallery's folder, by the clip's content.
        source: The clip on this computer.
        start, end: The part of it, in seconds; None if it is whole.
        playable: Whether a browser plays the clip as it is.
    """

    file: str
    source: str
    start: float | None
    end: float | None
    playable: bool

    @classmethod
    def of(
        cls, source: str, content: str, suffix: str, start: float | None = None, end: float | None = None
    ) -> "Video":
        """Name a video. `suffix` is that of [`playable_suffix`], and `content` the hash of the clip's content."""
        playable = bool(suffix) and start is None and end is None
        made_of = [content] if playable else [VERSION, HEIGHT, content, start, end]
        name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        return cls(f"clips/{name[:2]}/{name}{suffix if playable else '.mp4'}", source, start, end, playable)


def playable_suffix(path: str) -> str:
    """Return ".mp4" or ".webm" if browsers play the file as it is, with that suffix, and "" if they do not."""
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        suffix = played_suffix(file)
    return suffix if suffix in (".mp4", ".webm") else ""  # a <video> element shows no GIF


def write_video(folder: Path, video: Video) -> None:
    """
    Write a video into the gallery's folder, unless it is there: a copy of the clip if a browser plays it, and else a
    smaller one without sound.

    Raises:
        OSError, VideoDecodeError: if the clip cannot be read.
    """
    target = folder / video.file
    if target.is_file():
        return
    with new_file(target) as partial_file:
        if video.playable:
            shutil.copyfile(video.source, partial_file)
        else:
            _encode(video.source, video.start, video.end, partial_file)


def _encode(source: str, start: float | None, end: float | None, target: Path) -> None:
    frames, rate = _read(source, start, end)
    first = next(frames)
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        for frame in (first, *frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _read(source: str, start: float | None, end: float | None) -> tuple[Iterator[np.ndarray], Fraction]:
    """Return the frames of a clip, small, `(height, width, 3)` uint8 with even sides, and their number per second."""
    taken: list[int] = []

    def every_frame(metadata: VideoMetadata) -> np.ndarray:
        # As many intervals as there are frames: each has one frame
        taken[:] = np.unique(sample_frames(metadata, metadata.total_num_frames, None, "start", start, end)).tolist()
        return taken[:1]

    _, metadata = load_frames(source, every_frame, _shrink)

    def frames() -> Iterator[np.ndarray]:
        for begin in range(0, len(taken), FRAMES_AT_ONCE):
            chosen = taken[begin : begin + FRAMES_AT_ONCE]
            yield from load_frames(source, partial(_choose, chosen), _shrink)[0]

    return frames(), Fraction(metadata.fps or DEFAULT_FPS).limit_denominator(1001)


def _choose(indices: list[int], metadata: VideoMetadata) -> list[int]:
    return indices


def _shrink(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    scale = min(1.0, HEIGHT / height)
    size = [max(2, int(scale * side) // 2 * 2) for side in (width, height)]
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BILINEAR))
