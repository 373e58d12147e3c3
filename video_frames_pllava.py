"""Collect the frames that a sampler asks for, while a video or a folder of images is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from transformers.video_utils import VideoMetadata

from .video_source_pllava import CallerError, Source, VideoDecodeError

Sampler = Callable[..., Sequence[int]]
Prepare = Callable[[np.ndarray], np.ndarray]
Frames = tuple[np.ndarray, VideoMetadata]


class FrameCollector:
    """
    Asks the sampler which frames to take, and collects what `prepare` makes of them (see [`load_frames`]). Frames may
    be added in any order and by several threads. `metadata` gets the indices taken and the size of the frames.
    """

    def __init__(self, source: Source, sampler: Sampler, prepare: Prepare, metadata: VideoMetadata):
        self.source, self.prepare, self.metadata = source, prepare, metadata
        metadata.frames_indices = self._sample(sampler)
        self.rows: dict[int, list[int]] = {}  # the rows of the result that each wanted frame fills
        for row, index in enumerate(metadata.frames_indices):
            self.rows.setdefault(index, []).append(row)
        self.collected: set[int] = set()
        self._frames = np.empty((0, metadata.height, metadata.width, 3), np.uint8)
        self._lock = threading.Lock()

    def _sample(self, sampler: Sampler) -> list[int]:
        total = self.metadata.total_num_frames
        try:
            indices = [int(index) for index in sampler(metadata=self.metadata)]
            for index in indices:
                if not 0 <= index < total:
                    raise ValueError(f"Frame {index} of {self.source.name} was requested, but it has {total} frames")
        except VideoDecodeError as error:  # the sampler does not know the name
            raise VideoDecodeError(f"Cannot take frames of {self.source.name}: {error}") from error
        except Exception as error:
            raise CallerError from error
        return indices

    def add(self, index: int, image: np.ndarray) -> None:
        """Prepare and keep frame `index`, `(height, width, 3)` uint8 RGB. All frames must have the same size."""
        with self._lock:
            if not self.collected:
                self.metadata.height, self.metadata.width = image.shape[:2]
            size = self.metadata.height, self.metadata.width
            self.collected.add(index)
        if image.shape[:2] != size:
            raise self.source.error(f"its frames change size, from {size} to {image.shape[:2]}")
        prepared = self.prepare(image)
        with self._lock:
            if not len(self._frames):
                self._frames = np.empty((len(self.metadata.frames_indices), *prepared.shape), prepared.dtype)
        for row in self.rows[index]:
            self._frames[row] = prepared

    def add_decoded(self, index: int, frame: VideoFrame, reformatter: VideoReformatter) -> None:
        """Convert a decoded frame to RGB and add it. Each thread reuses one `reformatter`: setting one up is slow."""
        self.source.check_size(frame.width, frame.height)
        self.add(index, as_displayed(reformatter.reformat(frame, format="rgb24").to_ndarray(), frame))

    def result(self) -> Frames:
        return self._frames, self.metadata


CollectorFactory = Callable[[VideoMetadata], FrameCollector]  # `FrameCollector` with all but its metadata


def as_displayed(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Return a view of `image` (H, W, 3), rotated and flipped by the frame's display matrix."""
    # `frame.side_data` would create a reference cycle that holds the picture until the garbage collector runs.
    matrix = SideDataContainer(frame).get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # (x, y) is shown at (ax + cy, bx + dy)
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
