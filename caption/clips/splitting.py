"""What a worker finds out about a video before it is decoded: the hash of its content, and the parts that it has."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile

from ...data.media import content_hash, find_medium
from ...extras import needs_extra
from ...media.batch import is_remote
from ...video_decoding_pllava import load_frames
from ...video_source_pllava import VideoDecodeError
from .clip import Bounds, Clip, Failed

Split = Callable[[Clip], list[Bounds]]


@dataclass(frozen=True)
class Identify:
    """
    Completes a clip with its hash, and splits it into parts if there is a `split`. An address has no hash.

    Args:
        split: Returns the bounds of a video's parts; None: a clip is captioned as a whole.
    """

    split: Split | None = None

    def __call__(self, clip: Clip | Failed) -> list[Clip] | Failed:
        if isinstance(clip, Failed):
            return clip
        try:
            if clip.sha256 is None:
                source = clip.load()
                content = source if isinstance(source, bytes) else None  # of a file that was downloaded, too
                clip = replace(clip, sha256=content_hash(find_medium(source)), content=content)
            if self.split is None:
                return [clip]
            if is_remote(clip.video):
                raise ValueError(f"{clip.video} is at an address, and only files are split: download it first")
            return [clip.part(bounds) for bounds in self.split(clip)]
        except (OSError, ValueError) as error:
            return Failed(clip, str(error))

    @staticmethod
    def lost(clip: Clip | Failed, reason: str) -> Failed:
        return clip if isinstance(clip, Failed) else Failed(clip, f"Cannot read {clip.video}: {reason}")


@dataclass(frozen=True)
class Windows:
    """
    Splits a video into windows of equal length. They begin every `stride` seconds, as long as half a window is left;
    the last one ends with the video.
    """

    length: float
    stride: float

    def __call__(self, clip: Clip) -> list[Bounds]:
        _, metadata = load_frames(clip.load(), lambda metadata: [0])
        if not (duration := metadata.duration):
            raise VideoDecodeError(f"Cannot split {clip.video}: its length is not known")
        starts, end = [clip.start or 0.0], min(clip.end or duration, duration)
        while starts[-1] + self.stride + self.length / 2 <= end:
            starts.append(starts[-1] + self.stride)
        ends = [min(start + self.length, end) for start in starts[:-1]] + [end]
        return list(zip(starts, ends, strict=True))


class Scenes:
    """Splits a video where PySceneDetect finds a cut. A video without cuts is one scene."""

    def __init__(self):
        with needs_extra("scenes"):
            import scenedetect  # noqa: F401 (an error before any work)

    def __call__(self, clip: Clip) -> list[Bounds]:
        from scenedetect import AdaptiveDetector, detect

        if clip.content is None and not Path(clip.video).is_file():
            raise VideoDecodeError(f"Cannot find scenes in {clip.video}: it is not a file")
        with NamedTemporaryFile(suffix=Path(clip.video).suffix) as copy:
            if clip.content is not None:
                copy.write(clip.content)
                copy.flush()
            path = clip.video if clip.content is None else copy.name
            try:
                scenes = detect(
                    path, AdaptiveDetector(), start_time=clip.start, end_time=clip.end, start_in_scene=True
                )
            except OSError as error:
                raise VideoDecodeError(f"Cannot find scenes in {clip.video}: {error}") from error
        return [(start.get_seconds(), end.get_seconds()) for start, end in scenes]
