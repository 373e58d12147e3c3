"""PLLaVA's video processor: any kind of video -> sampled frames -> normalised pixels."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .video_decoding_pllava import VideoDecodeError, load_frames, read_image
from .video_source_pllava import check_aspect

MAX_FRAMES = 512  # that `fps` may give: prepared at 336 x 336 they take 0.7 GB, whatever length a broken header claims
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")  # of still images: a list of these is one video


class PllavaVideosKwargs(VideosKwargs, total=False):
    """
    sampling (`"uniform"`, `"random"`, `"middle"` or `"start"`, *optional*, defaults to `"uniform"`):
        Which frame of each of `num_frames` equal intervals is taken. "uniform" is the original's evaluation and demo:
        the one in the middle, where no interval ends on the last frame. The others are its training set's, whose
        intervals cover the clip: one at random (drawn from torch's global generator), the one in the middle, or the
        first; they repeat the last frame of a clip of fewer frames.
    """

    sampling: Literal["uniform", "random", "middle", "start"] | None


class PllavaVideoProcessor(BaseVideoProcessor):
    """
    Decodes videos with PyAV, samples `num_frames` of their frames, and prepares these as CLIP does: the shorter side
    is resized (once, bicubic), the square in the middle is kept and normalised. A `size` given without a `crop_size`
    sets both.

    A video is a path, a URL, a folder of frames, bytes, a binary file object, a decoded array or tensor
    `(frames, height, width, 3)` or `(frames, 3, height, width)`, a list of images or of their paths, or a dict that
    names one of these as "path", "url", "bytes" or "video" and can limit it to the seconds from "start" to "end":
    `{"path": "film.mp4", "start": 61.5, "end": 70}`.

    Decoded videos of at most `num_frames` frames count as sampled already. `fps=...` takes that many frames of each
    second in place of `num_frames`, 512 at most; videos of different lengths then come back as a list of tensors.

    Frames are resized as they are decoded, so that memory depends on `size` and not on the film's. Files beyond the
    limits of `video_source_pllava.py` are refused.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 336}
    crop_size = {"height": 336, "width": 336}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 16
    sampling = "uniform"
    valid_kwargs = PllavaVideosKwargs
    model_input_names = ["pixel_values_videos"]

    def __init__(self, **kwargs: Unpack[PllavaVideosKwargs]) -> None:
        if kwargs.get("size") is not None and kwargs.get("crop_size") is None:
            size = get_size_dict(kwargs["size"])
            kwargs["crop_size"] = {side: size.get(side, size.get("shortest_edge")) for side in ("height", "width")}
        super().__init__(**kwargs)

    def preprocess(self, videos: Any, **kwargs) -> BatchFeature:
        """
        Args:
            videos: One video, or a list of them, each of any kind that the class names.

        Returns:
            [`BatchFeature`]: `pixel_values_videos`, float32 `(videos, frames, 3, height, width)` with
            `return_tensors="pt"`, or a list of `(frames, 3, height, width)` tensors where the videos differ in length;
            `video_metadata` with `return_metadata=True`.

        Raises:
            VideoDecodeError: if a video cannot be read, or not from `start` to `end` (see [`sample_frames`]).
            ValueError: if both `num_frames` and `fps` are given, or a decoded video has another shape.
        """
        kwargs["input_data_format"] = ChannelDimension.FIRST  # as `_load` gives them, whatever they came in
        if kwargs.get("fps") is not None:
            if kwargs.get("num_frames") is not None:
                raise ValueError("Pass either `num_frames` or `fps`, not both")
            kwargs["num_frames"] = None  # or the processor's own number would be filled in
        loaders = [partial(self._load, source, self._resizer(**kwargs)) for source in flatten_videos(videos)]
        return super().preprocess(loaders, **kwargs)

    def _resizer(self, **kwargs) -> Callable[[torch.Tensor], torch.Tensor]:
        """What resizes `(frames, channels, height, width)`, or does nothing, as `kwargs` or the processor say."""
        names = ("do_resize", "size", "default_to_square", "resample", "device")
        options = {name: kwargs.get(name, getattr(self, name, None)) for name in names}
        if not options["do_resize"]:
            return lambda frames: frames
        sides = {name: options[name] for name in ("size", "default_to_square")}
        size = self._standardize_kwargs(**sides)["size"]
        return lambda frames: self.resize(frames.to(options["device"]), size=size, resample=options["resample"])

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        sampling: str = "uniform",
        start: float | None = None,
        end: float | None = None,
        **kwargs,
    ) -> np.ndarray:
        """
        Indices of the frames to take, int64, ascending; frames of a short clip are repeated.

        Args:
            metadata (`VideoMetadata`): Its `total_num_frames` is needed; its `fps` for a sub-clip, or with `fps`.
            num_frames (`int`, *optional*): How many frames to take; the processor's own number by default.
            fps (`float`, *optional*): How many frames to take of each second, in place of `num_frames`.
            sampling (`str`): "uniform", "random", "middle" or "start", see [`PllavaVideosKwargs`].
            start, end (`float`, *optional*): The sub-clip's bounds in seconds; `end` is clamped to the video. In a
                folder of images that are numbered from 1, they count from number 0, as in the original.

        Raises:
            VideoDecodeError: if seconds are asked for of a video without a frame rate, `start` is the video's end or
                past it, `end` before `start`, one of them is infinite or no number, or `fps` gives too many frames.
        """
        if metadata.fps is None and (start, end, fps) != (None, None, None):
            raise VideoDecodeError(
                "Seconds were asked for (`start`, `end` or `fps`), but the video has no frame rate: pass it as "
                "`video_metadata=[{'total_num_frames': ..., 'fps': ...}]`"
            )
        num_frames = num_frames or self.num_frames
        first, last = _bounds(metadata, start, end)
        if fps is not None and (last - first + 1) / metadata.fps * fps > MAX_FRAMES:
            raise VideoDecodeError(
                f"`fps`={fps} takes more than {MAX_FRAMES:,} of {last - first + 1} frames at {metadata.fps:g} fps: "
                "lower it, or pass `num_frames`"
            )
        if fps is not None:
            step = metadata.fps / fps  # frames from one taken to the next; the first stands half a step in
            middles = np.arange(first + step / 2, last + 1, step)
            indices = np.around(middles).astype(np.int64) if len(middles) else np.array([first])
        elif sampling == "uniform":
            # To the frame as the original: Python's round() takes a half to the even number.
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

    def _decode_and_sample_videos(
        self,
        videos: list[Callable[..., tuple[torch.Tensor, VideoMetadata]]],
        video_metadata: list[VideoMetadata | dict] | None = None,
        do_sample_frames: bool | None = None,
        sample_indices_fn: Callable[..., np.ndarray] | None = None,
    ) -> tuple[list[torch.Tensor], list[VideoMetadata]]:
        given = [video_metadata] if isinstance(video_metadata, Mapping) else video_metadata or [None] * len(videos)
        if len(given) != len(videos):
            raise ValueError(f"Got {len(videos)} videos, but `video_metadata` for {len(given)}")
        loaded = [load(metadata, sample_indices_fn) for load, metadata in zip(videos, given, strict=True)]
        return [frames for frames, _ in loaded], [metadata for _, metadata in loaded]

    def _load(
        self,
        source: Any,
        resize: Callable[[torch.Tensor], torch.Tensor],
        metadata: VideoMetadata | dict | None,
        sample_indices_fn: Callable[..., np.ndarray] | None,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """One video of any kind -> its sampled frames, resized, `(frames, channels, height, width)` uint8 or float."""
        clip = {}
        while isinstance(source, dict):
            clip.update({key: source[key] for key in ("start", "end") if source.get(key) is not None})
            source = dict_source(source)

        def sample(metadata: VideoMetadata) -> np.ndarray:
            if sample_indices_fn is None and not clip:
                return np.arange(metadata.total_num_frames)
            if sample_indices_fn is None:
                raise ValueError(
                    "A sub-clip is cut by sampling its frames: `do_sample_frames=False` cannot be used with it"
                )
            return sample_indices_fn(metadata=metadata, **clip)

        def prepare(frame: np.ndarray) -> np.ndarray:
            image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
            return resize(image[None])[0].permute(1, 2, 0).cpu().numpy()

        if not _is_decoded(source):
            frames, metadata = load_frames(source, sample, prepare)
            return torch.from_numpy(frames).permute(0, 3, 1, 2), metadata

        frames = source if isinstance(source, (list, tuple)) else _channels_first(source)
        metadata = VideoMetadata(**{**(metadata or {}), "total_num_frames": len(frames)})
        wanted = getattr(sample_indices_fn, "keywords", {}).get("num_frames")
        sampled_already = not clip and wanted is not None and len(frames) <= wanted
        metadata.frames_indices = np.arange(len(frames)) if sampled_already else sample(metadata)
        if isinstance(frames, torch.Tensor):
            return resize(frames[torch.from_numpy(metadata.frames_indices)]), metadata
        return _resized_images(frames, metadata.frames_indices, resize), metadata

    def _preprocess(self, videos: list[torch.Tensor], return_tensors: str | None = None, **kwargs) -> BatchFeature:
        kwargs["do_resize"] = False  # `_load` has done it: frame by frame, where it has decoded them
        pixels = super()._preprocess(videos, return_tensors=None, **kwargs)["pixel_values_videos"]
        same_length = len({len(video) for video in pixels}) == 1
        return BatchFeature({"pixel_values_videos": pixels}, tensor_type=return_tensors if same_length else None)


def _bounds(metadata: VideoMetadata, start: float | None, end: float | None) -> tuple[int, int]:
    """The first and the last frame of a video or sub-clip."""
    number, final = getattr(metadata, "counted_from", 0), metadata.total_num_frames - 1
    if (start, end) == (None, None):
        return 0, final
    for name, seconds in (("start", start), ("end", end)):
        if seconds is not None and not abs(seconds) < math.inf:
            raise VideoDecodeError(f"The sub-clip's `{name}` is {seconds}: give a number of seconds")
    if start is not None and end is not None and end < start:
        raise VideoDecodeError(f"The sub-clip ends (`end`={end}) before it starts (`start`={start})")
    length = (metadata.total_num_frames + number) / metadata.fps
    if start is not None and start >= length:
        raise VideoDecodeError(
            f"The sub-clip starts (`start`={start}{'' if end is None else f', `end`={end}'}) at or past the video's "
            f"end: it has {length:.3f} s. Bounds are in seconds"
        )

    def frame_at(seconds: float) -> int:
        return round(min(max(seconds, 0), length) * metadata.fps) - number

    first = 0 if start is None else min(max(frame_at(start), 0), final)
    return first, final if end is None else min(max(frame_at(end), first), final)


def flatten_videos(videos: Any) -> list[Any]:
    """One video, or lists of videos nested in any way -> a flat list with an entry a video."""
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim == 5:
        return list(videos)
    if not isinstance(videos, (list, tuple)) or is_list_of_frames(videos):
        return [videos]
    return [video for item in videos for video in flatten_videos(item)]


def _is_frame(item: Any) -> bool:
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item).lower().endswith(IMAGE_SUFFIXES)
    return isinstance(item, Image.Image) or (isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 3)


def is_list_of_frames(video: Any) -> bool:
    """Whether this is one video, given as a list of its frames, and not a list of videos."""
    return isinstance(video, (list, tuple)) and len(video) > 0 and all(_is_frame(frame) for frame in video)


def _is_decoded(video: Any) -> bool:
    return isinstance(video, (np.ndarray, torch.Tensor, Image.Image)) or is_list_of_frames(video)


def _channels_first(video: Any) -> torch.Tensor:
    """A decoded video, or one frame of it, -> `(frames, channels, height, width)`."""
    video = torch.as_tensor(_read_frame(video))
    if video.ndim == 3:
        video = video[None]
    channel_axes = [axis for axis in (1, 3) if video.ndim == 4 and video.shape[axis] in (1, 3)]
    if not channel_axes or len(video) == 0:
        raise ValueError(
            "A decoded video has the shape (frames, height, width, 3) or (frames, 3, height, width), and at least one "
            f"frame; got {tuple(video.shape)}"
        )
    video = video if channel_axes[0] == 1 else video.permute(0, 3, 1, 2)
    check_aspect("the decoded video", video.shape[3], video.shape[2])
    return video


def _resized_images(
    images: Sequence[Any], indices: np.ndarray, resize: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Those of `images`, of any form, that `indices` name; each is read, and resized at once."""
    resized, shapes = {}, set()
    for index in dict.fromkeys(indices.tolist()):
        frame = _channels_first(images[index])
        shapes.add(tuple(frame.shape[1:]))
        if len(shapes) > 1:
            raise ValueError(f"The frames of a video must be of one size; got the shapes {sorted(shapes)}")
        resized[index] = resize(frame)
    return torch.cat([resized[index] for index in indices.tolist()])


def _read_frame(frame: Any) -> np.ndarray | torch.Tensor:
    """An image, or the path or URL of one -> `(height, width, 3)`; what is an array already stays as it is."""
    if isinstance(frame, (np.ndarray, torch.Tensor)):
        return frame
    return np.array(frame.convert("RGB") if isinstance(frame, Image.Image) else read_image(frame))


def dict_source(source: dict) -> Any:
    """What a dict names: `datasets` writes `{"bytes": ..., "path": ...}`, of which the bytes come first."""
    for key in ("video", "bytes", "url", "path"):
        if source.get(key) is not None:
            return source[key]
    raise ValueError(f'A video given as a dict needs "path", "url", "bytes" or "video"; got the keys {sorted(source)}')


__all__ = ["PllavaVideoProcessor", "PllavaVideosKwargs"]
