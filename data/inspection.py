"""
Inspect training data: find the rows and clips that training would skip, and measure the others.

The index of each clip is read, and its first and last frame are decoded. The index alone would not be enough: a file
that was preallocated and downloaded in part has a complete index, and zeros in place of its last frames. Damage in the
middle of a file is only found by decoding all of it, which is left to training.
"""

import os
import warnings
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import TemplateError
from tqdm import tqdm
from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata

from ..video_decoding_pllava import VideoTruncatedWarning, load_frames
from ..video_images_pllava import read_image
from ..workers import DECODE_TIMEOUT, ordered_map
from .media import Medium, find_medium
from .sources import Source, load_source

DISTRIBUTIONS = ("frames", "seconds", "tokens", "turns")
PREFETCH_FACTOR = 4  # rows and clips that are sent to each worker in advance

MediaKey = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class ClipStatistics:
    """
    What was found in a video or an image of a row.

    Args:
        kind: "video" or "image".
        name: The path.
        frames, seconds: The length of a video, or of the part between `start` and `end`.
        problem: Why training would skip it; `None` if it would not.
        missing: Whether there is no such file.
    """

    kind: str
    name: str
    frames: int = 0
    seconds: float = 0.0
    problem: str | None = None
    missing: bool = False


@dataclass(frozen=True)
class Problem:
    """Why training would skip a row. `media` is the name of the clip or image that cannot be read, if it is one."""

    id: str
    media: str | None
    reason: str


@dataclass
class Report:
    """What was found in one source."""

    source: Source
    clips: dict[MediaKey, ClipStatistics] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)  # of each well-formed row
    turns: list[int] = field(default_factory=list)
    malformed: int = 0
    skipped: int = 0  # malformed rows, and rows with a clip that cannot be read
    problems: list[Problem] = field(default_factory=list)

    def add(self, row: dict[str, Any], tokens: int, clips: Iterable[ClipStatistics]) -> None:
        problems = find_problems(row, clips)
        self.problems += problems
        self.skipped += bool(problems)
        if row["error"]:
            self.malformed += 1
            return
        self.tokens.append(tokens)
        messages = row["messages"] + (row["chosen"] or [])
        self.turns.append(sum(message["role"] == "assistant" for message in messages))

    def values(self, measure: str) -> list[float]:
        """Return a measure of each row, or of each readable video, which counts once even if several rows share it."""
        if measure in ("tokens", "turns"):
            return getattr(self, measure)
        return [getattr(clip, measure) for clip in self.clips.values() if clip.kind == "video" and not clip.problem]

    def summary(self) -> dict[str, Any]:
        clips = self.clips.values()
        return {
            "source": self.source.title,
            "path": self.source.path,
            "samples": len(self.tokens) + self.malformed,
            "skipped": self.skipped,
            "malformed": self.malformed,
            "clips": sum(clip.kind == "video" for clip in clips),
            "images": sum(clip.kind == "image" for clip in clips),
            "missing": sum(clip.missing for clip in clips),
            "unreadable": sum(clip.problem is not None and not clip.missing for clip in clips),
            **{measure: _summarize(self.values(measure)) for measure in DISTRIBUTIONS},
        }


def _summarize(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    percentiles = np.percentile(values, (0, 50, 95, 100))
    return dict(zip(("min", "median", "p95", "max"), percentiles.round(3).tolist(), strict=True))


def inspect_source(source: Source, processor: ProcessorMixin, workers: int) -> Report:
    """
    Inspect all rows of a source, with a progress bar.

    Raises:
        ValueError: if the source cannot be read (see [`load_source`]).
    """
    rows, report = load_source(source), Report(source)
    total = len(rows) if isinstance(rows, Dataset) else None
    with tqdm(inspect_rows(rows, processor, workers, report.clips), source.title, total, unit="sample") as bar:
        for row, tokens, clips in bar:
            report.add(row, tokens, clips.values())
            bar.set_postfix(skipped=report.skipped, refresh=False)
    return report


def find_problems(row: dict[str, Any], clips: Iterable[ClipStatistics]) -> list[Problem]:
    """List the problems of a row, and of its clips, that [`inspect_rows`] found."""
    malformed = [Problem(row["id"], None, row["error"])] if row["error"] else []
    return malformed + [Problem(row["id"], clip.name, clip.problem) for clip in clips if clip.problem]


def format_problem(title: str, problem: Problem) -> str:
    """Format a problem as a line with the source, the row and the clip."""
    is_named = problem.media is None or problem.media in problem.reason
    return f"{title} {problem.id}: " + (problem.reason if is_named else f"{problem.media}: {problem.reason}")


# --- rows ------------------------------------------------------------------------------------------------------------


def inspect_rows(
    rows: Iterable[dict[str, Any]],
    processor: ProcessorMixin,
    workers: int,
    clips: dict[MediaKey, ClipStatistics],
) -> Iterator[tuple[dict[str, Any], int, dict[MediaKey, ClipStatistics]]]:
    """
    Yield each row, in order, with its length in tokens and its clips. A row that training cannot use has an `error`.
    A clip that several rows share is opened once. With workers, a clip that crashes the decoder, or takes more than
    three minutes, has a `problem`, as in training.

    Args:
        workers: The number of processes that open clips; with 0 this process opens them.
        clips: Is filled with the clips of all rows.
    """
    waiting: deque[tuple[dict[str, Any], list[MediaKey], list[MediaKey]]] = deque()

    def tasks() -> Iterator[tuple[str, dict[str, Any]]]:
        seen: set[MediaKey] = set()
        for number, row in enumerate(rows):
            media = _media(row, number)
            new = [key for key in media if key not in seen]
            seen.update(new)
            waiting.append((row, list(media), new))
            yield "row", {name: row[name] for name in ("messages", "chosen", "rejected", "error")}
            yield from ((key[0], media[key]) for key in new)

    inspect = partial(_inspect, processor=processor)
    results = ordered_map(inspect, tasks(), workers, PREFETCH_FACTOR * workers, DECODE_TIMEOUT, _lost)
    for tokens, error in results:  # of a row; the results of its new clips follow
        row, keys, new = waiting.popleft()
        for key in new:
            clips[key] = next(results)
        yield {**row, "error": error}, tokens, {key: clips[key] for key in keys}


def _media(row: dict[str, Any], number: int) -> dict[MediaKey, dict[str, Any]]:
    """Return a row's videos and images. Keys are equal for equal paths and bounds; embedded bytes are not compared."""
    items = [("video", item) for item in row["videos"]] + [("image", item) for item in row["images"]]
    media = {}
    for index, (kind, item) in enumerate(items):
        is_file = item["bytes"] is None
        media[(kind, item["path"], item.get("start"), item.get("end")) if is_file else (kind, number, index)] = item
    return media


def _inspect(task: tuple[str, dict[str, Any]], processor: ProcessorMixin) -> tuple[int, str | None] | ClipStatistics:
    """Count the tokens of a row, or open a clip."""
    kind, item = task
    if kind != "row":
        return _inspect_clip(kind, item, processor)
    if item["error"] is not None:
        return 0, item["error"]
    try:
        return count_tokens(item, processor), None
    except (TemplateError, ValueError) as error:
        return 0, f"the chat template does not accept it: {error}"


def _lost(task: tuple[str, dict[str, Any]], reason: str) -> tuple[int, str | None] | ClipStatistics:
    """Return the result of a task whose worker crashed or timed out."""
    kind, item = task
    return (0, reason) if kind == "row" else ClipStatistics(kind, find_medium(item).name, problem=reason)


def _inspect_clip(kind: str, item: dict[str, Any], processor: ProcessorMixin) -> ClipStatistics:
    """Open a video or an image as training would."""
    medium = find_medium(item)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", VideoTruncatedWarning)
            if kind == "video":
                return ClipStatistics(kind, medium.name, *_measure_video(medium, processor))
        read_image(medium.content)
        return ClipStatistics(kind, medium.name)
    except (ValueError, VideoTruncatedWarning) as error:
        missing = medium.file is not None and not os.path.exists(medium.file)  # Path.exists raises for long names
        return ClipStatistics(kind, medium.name, problem=str(error), missing=missing)


def _measure_video(medium: Medium, processor: ProcessorMixin) -> tuple[int, float]:
    """Return the number of frames that training samples from, and their duration in seconds."""
    first = last = 0

    def first_and_last(metadata: VideoMetadata) -> list[int]:
        nonlocal first, last
        # One interval per frame: the indices are all frames, or all frames of a part
        indices = processor.video_processor.sample_frames(
            metadata, metadata.total_num_frames, sampling="start", **medium.bounds
        )
        first, last = int(indices[0]), int(indices[-1])
        return [first, last]

    _, metadata = load_frames(medium.content, first_and_last)
    frames = last - first + 1
    return frames, metadata.duration * frames / metadata.total_num_frames


def count_tokens(row: dict[str, Any], processor: ProcessorMixin) -> int:
    """Count a conversation's tokens, visual tokens included; of preferences, those of the longer answer."""
    answers = [answer for answer in (row["chosen"], row["rejected"]) if answer] or [[]]
    return max(_count_tokens(row["messages"] + answer, processor) for answer in answers)


def _count_tokens(messages: list[dict[str, Any]], processor: ProcessorMixin) -> int:
    messages = [{**message, "content": [_without_none(part) for part in message["content"]]} for message in messages]
    text = processor.apply_chat_template(messages, tokenize=False)
    # Like transformers: the tokenizer adds no BOS token if the template has written one
    has_bos = processor.tokenizer.bos_token and text.startswith(processor.tokenizer.bos_token)
    ids = processor.tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
    tokens = {"video": processor.num_video_tokens, "image": processor.num_image_tokens}
    media = [tokens[part["type"]] for message in messages for part in message["content"] if part["type"] in tokens]
    return len(ids) + sum(media) - len(media)


def _without_none(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if value is not None}
