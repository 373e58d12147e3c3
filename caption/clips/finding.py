"""From the arguments of the command to clips: videos, folders, and lists of videos."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ...files import VIDEO_SUFFIXES
from ...video_images_pllava import IMAGE_SUFFIXES
from ...video_source_pllava import is_address
from .clip import HUB_SCHEME, Bounds, Clip, Failed
from .lists import LIST_SUFFIXES, read_dataset, read_list

NAMED_IN_ERROR = 3


@dataclass(frozen=True)
class FoundClips:
    """
    The clips at some places, each once. They can be read once.

    Args:
        parts: The clips at each place.
        total: How many there are at most; None if there is a list, which would have to be read.
    """

    parts: list[Iterable[Clip | Failed]]
    total: int | None

    def __iter__(self) -> Iterator[Clip | Failed]:
        return _each_once(chain.from_iterable(self.parts))


def find_clips(places: Sequence[str], prompts: Sequence[str], bounds: Bounds = (None, None)) -> FoundClips:
    """
    Find the clips at these places: videos, addresses of videos, folders of frames, folders that are searched for both,
    lists (JSON Lines, CSV, Parquet), and datasets on the Hub (`hf://datasets/USER/NAME`). A row of a list that is
    wrong becomes a [`Failed`].

    Args:
        prompts: For the videos, and for the rows of lists without a prompt of their own.
        bounds: Start and end in seconds, for the videos and for the rows without bounds of their own.

    Raises:
        ValueError: before the first clip, if a place does not exist or has no videos, or if the first row of a list is
            wrong.
    """
    missing = [place for place in places if not (is_address(place) or _is_dataset(place) or os.path.exists(place))]
    if missing:
        named = ", ".join(missing[:NAMED_IN_ERROR]) + (", ..." if len(missing) > NAMED_IN_ERROR else "")
        patterns = any(set(place) & set("*?[") for place in missing)
        advice = "; a pattern that matches nothing is passed on by the shell as it stands" if patterns else ""
        raise ValueError(f"{len(missing)} of {len(places)} places do not exist: {named}{advice}")
    parts: list[Iterable[Clip | Failed]] = []
    total: int | None = 0
    for place in places:
        if _is_dataset(place) or _is_list(place):
            read = read_dataset if _is_dataset(place) else read_list
            parts.append(read(place, tuple(prompts), bounds))
            total = None
            continue
        videos = _search(Path(place)) if os.path.isdir(place) else [place]
        if not videos:
            raise ValueError(f"no videos in {place}")
        parts.append(Clip(video, tuple(prompts), *bounds) for video in videos)
        total = None if total is None else total + len(videos)
    return FoundClips(parts, total)


def _is_dataset(place: str) -> bool:
    return place.startswith(HUB_SCHEME)


def _is_list(place: str) -> bool:
    return Path(place).suffix.lower() in LIST_SUFFIXES and not is_address(place)


def _search(folder: Path) -> list[str]:
    """Search a folder recursively; a folder of images is a video if there are no videos below it."""
    videos, has_images = [], False
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            videos += [] if path.is_symlink() else _search(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            videos.append(str(path))
        has_images |= path.suffix.lower() in IMAGE_SUFFIXES
    return videos or ([str(folder)] if has_images else [])


def _each_once(clips: Iterable[Clip | Failed]) -> Iterator[Clip | Failed]:
    seen = set()
    for clip in clips:
        # A number takes little memory, for millions of clips
        key = hash(clip.clip.video if isinstance(clip, Failed) else (*clip.key, clip.prompts))
        if key not in seen:
            seen.add(key)
            yield clip
