"""Decoding a clip in a worker process, to the frames that the model sees."""

from dataclasses import dataclass

import numpy as np

from ...media import MediaGate, MediaRefused
from ...media.batch import is_remote
from ...media.decoding import collecting_damages, sample_frames
from ...processing_pllava import PllavaProcessor
from ...video_source_pllava import VideoDecodeError
from ..clips import Clip, Failed


@dataclass(frozen=True)
class Decoded:
    """
    A clip with its frames.

    Args:
        frames: `(frames, height, width, 3)` uint8, resized but not cropped.
        indices: Each frame's index in the video.
        damaged: What is wrong with a video that is read only in part.
    """

    clip: Clip
    frames: np.ndarray
    indices: list[int]
    damaged: str | None = None


@dataclass(frozen=True)
class Decode:
    """
    Decodes clips. One that cannot be read becomes a [`Failed`], and one that failed before stays it.

    Args:
        num_frames: The number of frames.
        gate: Fetches clips at addresses; None if there are none.
    """

    processor: PllavaProcessor
    num_frames: int
    gate: MediaGate | None = None

    def __call__(self, clip: Clip | Failed) -> Decoded | Failed:
        if isinstance(clip, Failed):
            return clip
        bounds = self.num_frames, clip.start, clip.end
        try:
            with collecting_damages() as damages:
                if clip.content is None and is_remote(clip.video):
                    frames, metadata = self.gate.load_video(clip.video, self.processor.video_processor, *bounds)
                else:
                    frames, metadata = sample_frames(self.processor.video_processor, clip.load(), *bounds)
        except (OSError, MediaRefused, VideoDecodeError) as error:
            return Failed(clip, str(error))
        indices = [int(index) for index in metadata.frames_indices]
        return Decoded(clip, frames, indices, damages[0] if damages else None)

    @staticmethod
    def lost(clip: Clip | Failed, reason: str) -> Failed:
        return clip if isinstance(clip, Failed) else Failed(clip, f"Cannot decode {clip.video}: {reason}")
