"""The frames that runs saw, as strips of small pictures: one for each clip and way of sampling, named by content."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm
from transformers.video_utils import VideoMetadata

from ..data.media import content_hash, find_medium
from ..eval.controls_and_sweeps import choose_frames
from ..files import new_file
from ..hub_cards.predictions import FOLDERS
from ..media.decoding import collecting_damages
from ..video_decoding_pllava import load_frames
from ..video_sampling_pllava import sample_frames
from ..video_source_pllava import VideoDecodeError, is_address
from ..workers import DECODE_TIMEOUT, ordered_map
from .videos import playable_suffix

HEIGHT = 96  # of a strip, in pixels
MAX_WIDTH = 16383  # of a WebP image
MAX_WORKERS = 8
VERSION = 1  # of the strips: part of their names


@dataclass(frozen=True)
class Clip:
    """
    A clip, or a part of it, and the frames that a run saw of it.

    Args:
        name: For others to read.
        path: On this computer, or an address.
        start, end: In seconds.
        sampling, num_frames: How its frames were sampled.
        control: The control that removed or reordered frames.
    """

    name: str
    path: str
    start: float | None
    end: float | None
    num_frames: int
    sampling: str
    control: str | None = None


@dataclass(frozen=True)
class Strip:
    """
    The frames of a clip, side by side in one image.

    Args:
        frames: "file", relative to the gallery's folder; "count", "width" and "height" (pixels of a frame); and
            "times" (seconds in the video). None if the clip cannot be read, or the run saw no video.
        seconds: The length of the clip, or of its part.
        start: The time of its first frame, or that of its part's, in seconds.
        content: The hash of the clip's content; None if it cannot be read.
        playable: The suffix with which a browser plays the clip as it is, or "".
        problem: Why it cannot be read, or not to its end.
    """

    frames: dict[str, Any] | None = None
    seconds: float | None = None
    start: float = 0.0
    content: str | None = None
    playable: str = ""
    problem: str | None = None


def make_strips(clips: Iterable[Clip], folder: Path) -> list[Strip]:
    """
    Make the strips of clips in `folder`/frames, in parallel. Those that are there are kept.

    Returns:
        The strips in the order of `clips`. A clip that cannot be read has a `problem`.
    """
    clips = list(clips)
    workers = count_workers(len(clips))
    strips = ordered_map(partial(make_strip, folder), clips, workers, 4 * workers, DECODE_TIMEOUT, _lost)
    return list(tqdm(strips, total=len(clips), desc="Frames", unit="clip", disable=not clips))


def count_workers(tasks: int) -> int:
    """Return the number of processes for so many clips: even one clip gets one, since a broken file can crash it."""
    return min(tasks, os.cpu_count() or 1, MAX_WORKERS)


def make_strip(folder: Path, clip: Clip) -> Strip:
    """Make the strip of one clip in `folder`/frames, unless it is there."""
    if clip.control == "no_video":
        return Strip()
    if is_address(clip.path):
        return Strip(problem="The clip is an address: the gallery shows the clips of this computer only.")
    try:
        content = content_hash(find_medium(clip.path))
        name = _strip_name(clip, content)
        file = folder / "frames" / name[:2] / f"{name}.webp"
        described = _read_description(file)
        if described is None:
            pixels, described = _decode(clip)
            _write(file, pixels, described)
        seconds, start, problem = (described.pop(name) for name in ("seconds", "start", "problem"))
        frames = {"file": file.relative_to(folder).as_posix(), **described}
        return Strip(frames, seconds, start, content, playable_suffix(clip.path), problem)
    except OSError as error:
        return Strip(problem=f"The clip cannot be read: {error.strerror or type(error).__name__}.")
    except VideoDecodeError as error:
        return Strip(problem=_public_message(clip, str(error)))


def _public_message(clip: Clip, message: str) -> str:
    """Return a message about a clip without the folders of this computer."""
    return FOLDERS.sub("", message.replace(clip.path, "the clip"))


def _lost(clip: Clip, reason: str) -> Strip:
    return Strip(problem=f"The clip cannot be read: {reason}.")


def _strip_name(clip: Clip, content: str) -> str:
    """A hash of all that the strip depends on. The shuffled order depends on the name of the file, too."""
    file = Path(clip.path).name if clip.control == "shuffled" else None
    made_of = [VERSION, HEIGHT, content, clip.start, clip.end, clip.num_frames, clip.sampling, clip.control, file]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _decode(clip: Clip) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the frames that the run saw, small, `(frames, height, width, 3)` uint8, and the strip's description."""

    def sampler(metadata: VideoMetadata) -> np.ndarray:
        return sample_frames(metadata, clip.num_frames, None, clip.sampling, clip.start, clip.end)

    def shrink(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        # However wide the frames are: what is left of their height must fit into the image together
        scale = min(HEIGHT / height, MAX_WIDTH / clip.num_frames / width)
        size = max(1, int(scale * width)), max(1, int(scale * height))
        return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC))

    with collecting_damages() as damages:
        frames, metadata = load_frames(clip.path, sampler, shrink)
    order = choose_frames(clip.control, len(frames), (clip.path, clip.start, clip.end))
    indices = [metadata.frames_indices[index] for index in order]
    (first,) = sample_frames(metadata, 1, None, "start", clip.start, clip.end)
    duration = metadata.duration
    end = duration if clip.end is None or duration is None else min(clip.end, duration)
    return frames[order], {
        "count": len(order),
        "width": frames.shape[2],
        "height": frames.shape[1],
        "times": [round(int(index) / metadata.fps, 3) if metadata.fps else None for index in indices],
        "seconds": None if end is None else round(max(0.0, end - (clip.start or 0.0)), 3),
        "start": round(int(first) / metadata.fps, 3) if metadata.fps else 0.0,
        "problem": _public_message(clip, damages[0]).capitalize() if damages else None,
    }


def _write(file: Path, frames: np.ndarray, description: dict[str, Any]) -> None:
    """Write a strip that describes itself, so that a later export need not decode the clip."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps(description)
    with new_file(file) as partial_file:
        Image.fromarray(np.concatenate(frames, axis=1)).save(partial_file, "webp", quality=80, exif=exif)


def _read_description(file: Path) -> dict[str, Any] | None:
    """Return the description in a strip, or None if there is no strip, or a damaged one."""
    try:
        with Image.open(file, formats=["WEBP"]) as image:
            return json.loads(image.getexif()[ExifTags.Base.ImageDescription])
    except (OSError, KeyError, ValueError):
        return None
