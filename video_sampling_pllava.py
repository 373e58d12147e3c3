"""Choose which frames of a video are taken."""

import math

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from .video_source_pllava import VideoDecodeError

MAX_FRAMES = 512  # by `fps`, whatever length a broken header claims: 0.7 GB of pixels at 336 x 336


def sample_frames(
    metadata: VideoMetadata,
    num_frames: int,
    fps: float | None = None,
    sampling: str = "uniform",
    start: float | None = None,
    end: float | None = None,
    **_,
) -> np.ndarray:
    """
    Return the indices of the frames to take, int64, ascending. Frames of a short clip are repeated.

    Args:
        metadata (`VideoMetadata`): Needs `total_num_frames`, and `fps` for a sub-clip or with `fps`.
        num_frames (`int`): How many frames to take.
        fps (`float`, *optional*): How many frames to take per second, instead of `num_frames`.
        sampling (`str`): "uniform", "random", "middle" or "start", see [`PllavaVideosKwargs`].
        start, end (`float`, *optional*): Bounds of the sub-clip in seconds; `end` is clamped to the video. In a folder
            of images that are numbered from 1, seconds count from number 0, as in the original.
        **_: Ignored: the processor's other options, which transformers passes, too.

    Raises:
        VideoDecodeError: if `start`, `end` or `fps` is given for a video without a frame rate, `start` is not before
            the video's end, `end` is before `start`, a bound is infinite or NaN, or `fps` is not positive or gives too
            many frames.
    """
    if metadata.fps is None and (start, end, fps) != (None, None, None):
        raise VideoDecodeError(
            "`start`, `end` and `fps` need a frame rate, and the video has none: pass it as "
            "`video_metadata=[{'total_num_frames': ..., 'fps': ...}]`"
        )
    first, last = _sub_clip(metadata, start, end)
    if fps is not None:
        if not 0 < fps < math.inf:
            raise VideoDecodeError(f"`fps` is {fps}: give a positive number")
        if (last - first + 1) / metadata.fps * fps > MAX_FRAMES:
            raise VideoDecodeError(
                f"`fps`={fps} takes more than {MAX_FRAMES:,} of {last - first + 1} frames at {metadata.fps:g} fps: "
                "lower it, or pass `num_frames`"
            )
        step = metadata.fps / fps
        middles = np.arange(first + step / 2, last + 1, step)
        indices = np.around(middles).astype(np.int64) if len(middles) else np.array([first])
    elif sampling == "uniform":
        # As in the original, Python's round() rounds half to even.
        interval = (last - first) / num_frames
        indices = np.array([int(first + interval / 2 + round(interval * i)) for i in range(num_frames)])
    else:
        intervals = min(num_frames, last - first + 1)
        edges = np.linspace(first, last + 1, intervals + 1).astype(np.int64)
        lengths = np.diff(edges)
        if sampling == "random":
            offsets = torch.rand(intervals, dtype=torch.float64).numpy() * lengths
        else:
            offsets = (lengths - 1) // 2 if sampling == "middle" else np.zeros(intervals)
        indices = np.pad(edges[:-1] + offsets.astype(np.int64), (0, num_frames - intervals), mode="edge")
    return np.clip(indices, first, last)


def _sub_clip(metadata: VideoMetadata, start: float | None, end: float | None) -> tuple[int, int]:
    """Return the first and the last frame of the sub-clip, or of the video if there are no bounds."""
    first_number, final = getattr(metadata, "numbered_from", 0), metadata.total_num_frames - 1
    if (start, end) == (None, None):
        return 0, final
    for name, seconds in (("start", start), ("end", end)):
        if seconds is not None and not -math.inf < seconds < math.inf:  # NaN, too
            raise VideoDecodeError(f"The sub-clip's `{name}` is {seconds}: give a number of seconds")
    if start is not None and end is not None and end < start:
        raise VideoDecodeError(f"The sub-clip ends (`end`={end}) before it starts (`start`={start})")
    duration = (metadata.total_num_frames + first_number) / metadata.fps
    if start is not None and start >= duration:
        raise VideoDecodeError(
            f"The sub-clip starts (`start`={start}{'' if end is None else f', `end`={end}'}) at or past the video's "
            f"end: the video is {duration:.3f} s long. Bounds are in seconds"
        )

    def frame_at(seconds: float) -> int:
        return round(min(max(seconds, 0), duration) * metadata.fps) - first_number

    first = 0 if start is None else min(max(frame_at(start), 0), final)
    return first, final if end is None else min(max(frame_at(end), first), final)
