"""What the gate does with a file in a process of its own: read its header, and decode it, within the limits."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import av
import numpy as np
from PIL import Image
from transformers.video_utils import VideoMetadata

from ..video_decoding_pllava import VideoTruncatedWarning, open_stream
from ..video_images_pllava import open_image, read_image
from ..video_index_pllava import check_claimed_samples
from ..video_processing_pllava import PllavaVideoProcessor
from ..video_source_pllava import Source
from .limits import MediaLimits

ADVICE = "Give a whole file of a common format (mp4, webm, mkv, mov, avi, gif, png, jpeg) within the limits."
# `processor_kwargs` for the frames of `sample_frames` and of `MediaGate.load_video`, beside which images are resized
AS_SAMPLED = {"videos_kwargs": {"do_sample_frames": False, "do_resize": False}}
AS_DECODED = {"do_center_crop": False, "do_rescale": False, "do_normalize": False}


def sample_frames(
    video_processor: PllavaVideoProcessor,
    video: Any,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """
    Return the frames that a model sees, resized but not cropped, `(frames, height, width, 3)` uint8, and the video's
    metadata. `num_frames` is the processor's own by default, `start` and `end` are in seconds.
    """
    clip = {"video": video, "start": start, "end": end}
    processed = video_processor(clip, num_frames=num_frames, return_tensors="pt", return_metadata=True, **AS_DECODED)
    frames = processed["pixel_values_videos"][0].permute(0, 2, 3, 1).numpy()
    return frames, processed["video_metadata"][0]


@contextmanager
def collecting_damages() -> Iterator[list[str]]:
    """Yield a list that has, in the end, the warnings about damaged videos. No warning is shown meanwhile."""
    damages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VideoTruncatedWarning)
        yield damages
    damages += [str(each.message) for each in caught if issubclass(each.category, VideoTruncatedWarning)]


# --- in the limited process ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LimitedSource(Source):
    """A file that is decoded only within limits, which may be lower than those of its class."""

    limits: MediaLimits = MediaLimits()

    def check_size(self, width: int, height: int) -> None:
        if width * height > self.limits.max_pixels:
            raise self.error(f"its frames are {width} x {height}, more than {self.limits.max_pixels:,} pixels")
        super().check_size(width, height)

    def check_length(self, frames: int, seconds: float | None) -> None:
        """Raise `VideoDecodeError` if a video is too long. What is not known yet is 0 or None."""
        if frames > self.limits.max_frames:
            raise self.error(f"it has {frames:,} frames, more than {self.limits.max_frames:,}")
        if (seconds or 0) > self.limits.max_seconds:
            raise self.error(f"it lasts {seconds:g} s, more than {self.limits.max_seconds:g} s")


def describe(file: BinaryIO, name: str, limits: MediaLimits) -> tuple[dict[str, Any], bytes]:
    """Return what the header of a video or an image says, without decoding it."""
    return _read_header(_source(file, name, limits)), b""


def decode_video(
    file: BinaryIO,
    name: str,
    limits: MediaLimits,
    options: dict[str, Any],
    num_frames: int | None,
    start: float | None,
    end: float | None,
) -> tuple[dict[str, Any], memoryview]:
    """
    Return the frames that the video processor with these options takes; and their number, height and width, the
    video's metadata, and the warnings about a damaged file.
    """
    source = _source(file, name, limits)
    _read_header(source)
    processor = PllavaVideoProcessor(**options)
    processor.sample_frames = partial(_sample, source, processor.sample_frames)
    with collecting_damages() as damages:
        frames, metadata = sample_frames(processor, source, num_frames, start, end)
    described = {
        "total_num_frames": metadata.total_num_frames,
        "fps": metadata.fps,
        "width": metadata.width,
        "height": metadata.height,
        "duration": metadata.duration,
        "video_backend": metadata.video_backend,
        "frames_indices": [int(index) for index in metadata.frames_indices],
    }
    return {"size": frames.shape[:3], "metadata": described, "damages": damages}, np.ascontiguousarray(frames).data


def decode_image(file: BinaryIO, name: str, limits: MediaLimits) -> tuple[dict[str, Any], bytes]:
    """Return an image's pixels, RGB, and its size."""
    image = read_image(_source(file, name, limits))
    return {"size": image.size}, image.tobytes()


def preload() -> None:
    """Import what libraries import late, before processes are forked that would each do it."""
    Image.preinit()
    PllavaVideoProcessor()(np.zeros((1, 48, 48, 3), np.uint8), return_tensors="pt")


def _source(file: BinaryIO, name: str, limits: MediaLimits) -> LimitedSource:
    # Linux opens the very file that the descriptor refers to, whatever has its name by now
    content = f"/proc/self/fd/{file.fileno()}" if sys.platform == "linux" else file.read()
    return LimitedSource(name, content, ADVICE, limits)


def _sample(source: LimitedSource, sample: Any, metadata: VideoMetadata, **options: Any) -> np.ndarray:
    """Check the numbers that the packets give, which come before the frames are decoded, and sample the frames."""
    source.check_length(metadata.total_num_frames, metadata.duration)
    return sample(metadata, **options)


def _read_header(source: LimitedSource) -> dict[str, Any]:
    """Return the kind, format and size of a file, and check them and what else its header says."""
    with source.reading():
        check_claimed_samples(source)
        try:
            return _read_video_header(source)
        except av.FFmpegError as error:
            problem = error
        try:
            image = open_image(source)
        except Image.UnidentifiedImageError:
            raise source.error(f"it is neither a video nor an image ({problem.strerror})") from problem
        with image:
            frames = getattr(image, "n_frames", 1)
            source.check_length(frames, None)
            return {
                "kind": "image",
                "format": image.format.lower(),
                "width": image.width,
                "height": image.height,
                "frames": frames,
                "seconds": None,
                "tracks": 1,
            }


def _read_video_header(source: LimitedSource) -> dict[str, Any]:
    with open_stream(source) as stream:
        container = stream.container
        tracks = len(container.streams)
        if tracks > source.limits.max_tracks:
            raise source.error(f"it has {tracks} tracks, more than {source.limits.max_tracks}")
        seconds = container.duration / av.time_base if container.duration else None
        source.check_length(stream.frames, seconds)
        return {
            "kind": "video",
            "format": container.format.name,
            "width": stream.width,
            "height": stream.height,
            "frames": stream.frames or None,
            "seconds": seconds,
            "tracks": tracks,
        }
