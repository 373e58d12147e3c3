"""What a worker finds out about a video before it is decoded: the hash of its content, and the parts that it has."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from math import floor
from pathlib import Path

from ...data.media import content_hash, find_medium
from ...extras import needs_extra
from ...files import append_lines, iterate_lines, part_file, part_files
from ...media.batch import is_remote
from ...video_decoding_pllava import load_frames
from ...video_source_pllava import VideoDecodeError, resolve
from .clip import Bounds, Clip, Failed

MIN_SCENE = 0.6  # seconds, the default of PySceneDetect's command; that of its library is 15 frames at any rate
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
    Splits a video into windows of equal length, in seconds. They begin every `stride` seconds, as long as half a
    window is left; less than that belongs to the last one.
    """

    length: float
    stride: float

    def __call__(self, clip: Clip) -> list[Bounds]:
        _, metadata = load_frames(clip.load(), lambda metadata: [0])
        if not (duration := metadata.duration):
            raise VideoDecodeError(f"Cannot split {clip.video}: its length is not known")
        first, end = clip.start or 0.0, min(clip.end or duration, duration)
        if first >= end:
            raise VideoDecodeError(f"Cannot split {clip.video}: it ends at {duration:g} s, before {first:g} s")
        count = max(0, floor((end - first - self.length / 2) / self.stride)) + 1
        starts = [first + number * self.stride for number in range(count)]
        ends = [min(start + self.length, end) for start in starts]
        if end - ends[-1] < self.length / 2:
            ends[-1] = end
        return list(zip(starts, ends, strict=True))


class Scenes:
    """
    Splits a video where PySceneDetect finds a cut. A video without cuts is one scene.

    Args:
        captions: The file of captions. What is found is remembered beside it, in `NAME.scenes.jsonl`, since whole
            films are decoded for it. Each process but the main one has its own file, `NAME.scenes.part-RANK.jsonl`.
        rank: The rank of this process.
    """

    def __init__(self, captions: Path, rank: int = 0):
        with needs_extra("scenes"):
            import scenedetect  # noqa: F401 (an error before any work)
        file = captions.with_name(f"{captions.stem}.scenes.jsonl")
        self._file = part_file(file, rank)
        rows = chain.from_iterable(iterate_lines(each, "sha256", "scenes") for each in (file, *part_files(file)))
        self._known = {(row["sha256"], row["start"], row["end"]): row["scenes"] for row in rows}

    def __call__(self, clip: Clip) -> list[Bounds]:
        known = self._known.get((clip.sha256, clip.start, clip.end))
        return [(start, end) for start, end in known] if known else find_scenes(clip)

    def remember(self, sha256: str, bounds: Bounds, scenes: list[Bounds]) -> None:
        """
        Write down the scenes of a part of a video, unless they are. Only the process of this rank calls it.

        Raises:
            OSError: if they cannot be written.
        """
        if (sha256, *bounds) not in self._known:
            start, end = bounds
            append_lines(self._file, [{"sha256": sha256, "start": start, "end": end, "scenes": scenes}])
            self._known[sha256, start, end] = scenes


def find_scenes(clip: Clip) -> list[Bounds]:
    """
    Find the scenes of a file.

    Raises:
        VideoDecodeError: if it cannot be decoded, or is a folder of images.
    """
    from scenedetect import AdaptiveDetector, SceneManager
    from scenedetect.backends.pyav import VideoStreamAv

    source = resolve(clip.load())
    if source.is_folder:
        raise source.error("scenes are found in videos, not in folders of images")
    with source.reading(), source.open() as file:
        video, scenes = VideoStreamAv(file, suppress_output=True), SceneManager()
        scenes.add_detector(AdaptiveDetector(min_scene_len=MIN_SCENE))
        if clip.start:
            video.seek(clip.start)
        if not scenes.detect_scenes(video, end_time=clip.end):
            raise source.error(f"it has no frames after {clip.start or 0:g} s")
        return [(start.seconds, end.seconds) for start, end in scenes.get_scene_list(start_in_scene=True)]
