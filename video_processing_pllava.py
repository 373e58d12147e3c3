"""PLLaVA's video processor: samples the frames of a video, given in any form, and prepares their pixels."""

import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .video_decoding_pllava import load_frames
from .video_images_pllava import IMAGE_SUFFIXES, read_image
from .video_sampling_pllava import sample_frames
from .video_source_pllava import check_aspect

# A list of such paths is one video. A list of WebP files is a list of videos, since these may be animated.
STILL_IMAGE_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != ".webp")

READERS = ("pyav", "pil")  # `video_backend` of the frames that `load_frames` took

# Options of a call that leave the last step to `normalize_frames`: uint8 frames have a quarter of the bytes
UNNORMALIZED = {"do_rescale": False, "do_normalize": False}

Resize = Callable[[torch.Tensor], torch.Tensor]  # of (frames, channels, height, width)


class PllavaVideosKwargs(VideosKwargs, total=False):
    """
    sampling (`"uniform"`, `"random"`, `"middle"` or `"start"`, *optional*, defaults to `"uniform"`):
        Which frame is taken of each of `num_frames` equal intervals. "uniform" takes the middle one, as the original's
        evaluation and demo; no interval ends on the last frame. The others are those of the original's training set,
        whose intervals cover the clip: a random frame (by torch's global generator), the middle one, or the first
        one; they repeat the last frame of a clip with fewer frames.
    """

    sampling: Literal["uniform", "random", "middle", "start"] | None


class PllavaVideoProcessor(BaseVideoProcessor):
    """
    Decodes videos with PyAV, samples `num_frames` frames, and prepares them as CLIP does: resizes the shorter side
    (once, bicubic), crops the square in the centre and normalises. A `size` without a `crop_size` sets both.

    A video is a path, a URL, a folder of frames, bytes, a binary file object, a decoded array or tensor
    `(frames, height, width, 3)` or `(frames, 3, height, width)`, a list of images or of their paths, or a dict that
    holds one of these as "path", "url", "bytes" or "video" and optionally the bounds of a sub-clip in seconds:
    `{"path": "film.mp4", "start": 61.5, "end": 70}`.

    Decoded videos of at most `num_frames` frames are not sampled, unless `video_metadata` with `frames_indices` says
    that they are all frames of a file: then they are sampled as the file is. With `fps=...` instead of `num_frames`,
    that many frames per second are taken, 512 at most; videos of different lengths are then returned as a list of
    tensors.

    Frames are resized as they are decoded, so that memory depends on `size` and not on the video's. Files that exceed
    the limits of `video_source_pllava.py` are refused.
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
            videos: A video in any form that the class lists, or a list of videos.

        Returns:
            [`BatchFeature`]: `pixel_values_videos`, float32 `(videos, frames, 3, height, width)` with
            `return_tensors="pt"`, or a list of `(frames, 3, height, width)` tensors if the videos differ in length;
            `video_metadata` with `return_metadata=True`.

        Raises:
            VideoDecodeError: if a video or sub-clip cannot be read (see [`sample_frames`]).
            ValueError: if both `num_frames` and `fps` are given, or a decoded video has another shape.
        """
        kwargs["input_data_format"] = ChannelDimension.FIRST  # `_load` returns this format for any input
        if kwargs.get("fps") is not None:
            if kwargs.get("num_frames") is not None:
                raise ValueError("Pass either `num_frames` or `fps`, not both")
            kwargs["num_frames"] = None  # keeps the processor's own number from being filled in
        load = partial(self._load, resize=self._resize_function(**kwargs), asked=kwargs.get("num_frames"))
        return super().preprocess([partial(load, video) for video in flatten_videos(videos)], **kwargs)

    def _resize_function(self, **kwargs) -> Resize:
        names = ("do_resize", "size", "default_to_square", "resample", "device")
        options = {name: kwargs.get(name, getattr(self, name, None)) for name in names}
        if not options["do_resize"]:
            return lambda frames: frames
        size = self._standardize_kwargs(size=options["size"], default_to_square=options["default_to_square"])["size"]
        return lambda frames: self.resize(frames.to(options["device"]), size=size, resample=options["resample"])

    def normalize_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """
        Rescale and normalise frames `(..., 3, height, width)` that were prepared with `UNNORMALIZED`, on their device.
        Returns what [`preprocess`] returns without that.
        """
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        options = {name: getattr(self, name) for name in names}
        options |= self._standardize_kwargs(image_mean=self.image_mean, image_std=self.image_std)
        return self.rescale_and_normalize(frames, **{name: options[name] for name in names})

    def sample_frames(self, metadata: VideoMetadata, num_frames: int | None = None, **kwargs) -> np.ndarray:
        """Return [`sample_frames`] of a video, by default for the processor's own `num_frames`."""
        return sample_frames(metadata, num_frames or self.num_frames, **kwargs)

    def _decode_and_sample_videos(
        self, videos: list[Callable], video_metadata: Any = None, sample_indices_fn: Callable | None = None, **kwargs
    ) -> tuple[list[torch.Tensor], list[VideoMetadata]]:
        """Call the loaders that `preprocess` passes as `videos`."""
        given = [video_metadata] if isinstance(video_metadata, Mapping) else video_metadata or [None] * len(videos)
        if len(given) != len(videos):
            raise ValueError(f"Got {len(videos)} videos, but `video_metadata` for {len(given)}")
        sampler = {"sample_indices_fn": sample_indices_fn}
        loaded = [load(metadata=metadata, **sampler) for load, metadata in zip(videos, given, strict=True)]
        return [frames for frames, _ in loaded], [metadata for _, metadata in loaded]

    def _load(
        self,
        source: Any,
        resize: Resize,
        asked: int | None,
        metadata: Mapping | None,
        sample_indices_fn: Callable | None,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """
        Return the sampled and resized frames of a video, `(frames, channels, height, width)` uint8 or float. `asked`
        is the `num_frames` of the call.
        """
        bounds = {}
        while isinstance(source, dict):
            bounds.update({key: source[key] for key in ("start", "end") if source.get(key) is not None})
            source = dict_source(source)
        if bounds and sample_indices_fn is None:
            raise ValueError("A sub-clip (`start`, `end`) cannot be taken with `do_sample_frames=False`")
        sampler = sample_indices_fn and partial(sample_indices_fn, **bounds)

        def prepare(frame: np.ndarray) -> np.ndarray:
            image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
            return resize(image[None])[0].permute(1, 2, 0).cpu().numpy()

        is_list = is_list_of_frames(source)
        if not is_list and not isinstance(source, (np.ndarray, torch.Tensor, Image.Image)):
            frames, metadata = load_frames(source, sampler, prepare)
            return torch.from_numpy(frames).permute(0, 3, 1, 2), metadata

        frames = source if is_list else _channels_first(source)
        taken = (metadata or {}).get("frames_indices")
        is_whole_file = taken is not None and list(taken) == list(range(len(frames)))
        if sampler is None and taken is not None and not is_whole_file:
            _check_taken_frames(metadata, len(frames), asked)
        metadata = VideoMetadata(**{**(metadata or {}), "total_num_frames": len(frames)})
        if sampler is None or not (bounds or is_whole_file or len(frames) > (sampler.keywords.get("num_frames") or 0)):
            metadata.frames_indices = np.arange(len(frames))
        else:
            metadata.frames_indices = sampler(metadata=metadata)
        if is_list:
            return _resize_images(frames, metadata.frames_indices.tolist(), resize), metadata
        return resize(frames[torch.from_numpy(metadata.frames_indices)]), metadata

    def _preprocess(self, videos: list[torch.Tensor], return_tensors: str | None = None, **kwargs) -> BatchFeature:
        kwargs["do_resize"] = False  # done by `_load`
        pixels = super()._preprocess(videos, return_tensors=None, **kwargs)["pixel_values_videos"]
        same_length = len({len(video) for video in pixels}) == 1
        return BatchFeature({"pixel_values_videos": pixels}, tensor_type=return_tensors if same_length else None)


def _check_taken_frames(metadata: Mapping, count: int, asked: int | None) -> None:
    """
    Check frames that a reader took of a file, such as an inference engine's own.

    Raises:
        ValueError: if the call asks for another number of frames, which cannot be honoured any more.
    """
    reader, total = metadata.get("video_backend"), metadata.get("total_num_frames")
    done = f"the reader {reader!r} took {count} of {total} frames of a video before PLLaVA could choose"
    if asked not in (None, count):
        raise ValueError(f"`num_frames`={asked} is not possible: {done}. Ask the reader (vLLM: `media_io_kwargs`)")
    if reader not in READERS:
        advice = 'let the reader take all (vLLM: `--media-io-kwargs \'{"video": {"num_frames": -1}}\'`)'
        warnings.warn(f"{done[0].upper()}{done[1:]}: install the package pllava, or {advice}.", stacklevel=2)


def flatten_videos(videos: Any) -> list[Any]:
    """Return a flat list of the videos in `videos`: one video, a batch, or lists nested in any way."""
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim == 5:
        return list(videos)
    if not isinstance(videos, (list, tuple)) or is_list_of_frames(videos):
        return [videos]
    return [video for item in videos for video in flatten_videos(item)]


def is_list_of_frames(video: Any) -> bool:
    """Return whether `video` is one video, given as a list of its frames, and not a list of videos."""

    def is_frame(item: Any) -> bool:
        if isinstance(item, (str, os.PathLike)):
            return os.fspath(item).lower().endswith(STILL_IMAGE_SUFFIXES)
        return isinstance(item, Image.Image) or (isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 3)

    return isinstance(video, (list, tuple)) and len(video) > 0 and all(map(is_frame, video))


def dict_source(source: dict) -> Any:
    """Return the video in a dict. Of the "bytes" and "path" that `datasets` writes, the bytes come first."""
    for key in ("video", "bytes", "url", "path"):
        if source.get(key) is not None:
            return source[key]
    raise ValueError(f'A video given as a dict needs "path", "url", "bytes" or "video"; got the keys {sorted(source)}')


def _channels_first(video: Any) -> torch.Tensor:
    """Return a decoded video, or an image in any form, as `(frames, channels, height, width)`."""
    if not isinstance(video, (np.ndarray, torch.Tensor)):
        video = np.array(video.convert("RGB") if isinstance(video, Image.Image) else read_image(video))
    video = torch.as_tensor(video)
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


def _resize_images(images: list | tuple, indices: list[int], resize: Resize) -> torch.Tensor:
    """Read and resize the images at `indices`, one at a time."""
    resized, shapes = {}, set()
    for index in dict.fromkeys(indices):
        frame = _channels_first(images[index])
        shapes.add(tuple(frame.shape[1:]))
        if len(shapes) > 1:
            raise ValueError(f"The frames of a video must be of one size; got the shapes {sorted(shapes)}")
        resized[index] = resize(frame)
    return torch.cat([resized[index] for index in indices])


__all__ = ["PllavaVideoProcessor", "PllavaVideosKwargs"]
