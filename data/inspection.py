"""
What training will find in its data: each clip is opened, its index read and its first and last frame decoded; each
conversation is counted in tokens.

Reading the index alone would be faster still. But a file that was allocated whole and downloaded in part has an index
that is whole, and zeros where its last frames should be. Damage in between that no index shows is left for training to
find: that takes decoding everything.
"""

import os
import warnings
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import TemplateError
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata

from ..video_decoding_pllava import VideoTruncatedWarning, load_frames
from ..video_images_pllava import read_image
from ..workers import unchanged
from .media import Medium, find_medium
from .sources import Source, load_source

MEASURES = ("frames", "seconds", "tokens", "turns")

Key = tuple[Hashable, ...]


# --- one clip, one conversation --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clip:
    """
    A video or an image of a row.

    Args:
        kind: "video" or "image".
        name: Its path.
        frames, seconds: Those of a video that training draws from: all of it, or what lies between `start` and `end`.
        problem: Why training would pass it over; `None` if it would not.
        missing: There is no such file.
    """

    kind: str
    name: str
    frames: int = 0
    seconds: float = 0.0
    problem: str | None = None
    missing: bool = False


def check_clip(kind: str, item: dict[str, Any], processor: ProcessorMixin) -> Clip:
    """Opens a video or an image, `{"path", "bytes"}`, as training would. What is wrong with it is no error here."""
    medium = find_medium(item)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", VideoTruncatedWarning)
            if kind == "video":
                return Clip(kind, medium.name, *_measure_video(medium, processor))
        read_image(medium.content)
        return Clip(kind, medium.name)
    except (ValueError, VideoTruncatedWarning) as error:
        missing = medium.file is not None and not os.path.exists(medium.file)  # a name may be too long to ask
        return Clip(kind, medium.name, problem=str(error), missing=missing)


def _measure_video(medium: Medium, processor: ProcessorMixin) -> tuple[int, float]:
    """How many frames there are to draw from, and how long they are shown in seconds."""
    drawn: list[int] = []

    def first_and_last(metadata: VideoMetadata) -> list[int]:
        # The first frame of as many intervals as there are frames: all of them, or all of a sub-clip's
        indices = processor.video_processor.sample_frames(
            metadata, metadata.total_num_frames, sampling="start", **medium.bounds
        )
        drawn[:] = [int(indices[0]), int(indices[-1])]
        return drawn

    _, metadata = load_frames(medium.content, first_and_last)
    frames = drawn[1] - drawn[0] + 1
    return frames, metadata.duration * frames / metadata.total_num_frames


def count_tokens(row: dict[str, Any], processor: ProcessorMixin) -> int:
    """Of a conversation as the model reads it, its videos' and images' included; of preferences, of the longer one."""
    answers = [answer for answer in (row["chosen"], row["rejected"]) if answer] or [[]]
    return max(_count_tokens(row["messages"] + answer, processor) for answer in answers)


def _count_tokens(messages: list[dict[str, Any]], processor: ProcessorMixin) -> int:
    messages = [{**message, "content": [_without_none(part) for part in message["content"]]} for message in messages]
    text = processor.apply_chat_template(messages, tokenize=False)
    begins = processor.tokenizer.bos_token and text.startswith(processor.tokenizer.bos_token)
    # As transformers does: where the template has written the first token, the tokenizer adds none
    ids = processor.tokenizer(text, add_special_tokens=not begins)["input_ids"]
    media = sum(part["type"] in ("video", "image") for message in messages for part in message["content"])
    return len(ids) + media * (processor.num_visual_tokens - 1)


def _without_none(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if value is not None}


# --- many rows -------------------------------------------------------------------------------------------------------


def examine(
    rows: Iterable[dict[str, Any]], processor: ProcessorMixin, workers: int, clips: dict[Key, Clip]
) -> Iterator[tuple[dict[str, Any], int, dict[Key, Clip]]]:
    """
    Rows in their order, each with its length in tokens and its clips. A row that training cannot use has an `error`. A
    file that several rows name is opened once.

    Args:
        workers: Processes that open clips; with 0 this one does.
        clips: Is filled with the clips of all rows.

    Raises:
        RuntimeError: if a worker dies, as of a file that crashes the decoder; names the rows that were open.
    """
    asked: set[Key] = set()
    waiting: deque[tuple[dict[str, Any], list[Key]]] = deque()

    def tasks() -> Iterator[tuple[dict[str, Any], dict[Key, dict[str, Any]]]]:
        for number, row in enumerate(rows):
            media = _media(row, number)
            waiting.append((row, list(media)))
            new = {key: item for key, item in media.items() if key not in asked}
            asked.update(new)
            yield {name: row[name] for name in ("messages", "chosen", "rejected", "error")}, new

    prefetch = {"prefetch_factor": 4} if workers else {}
    results = iter(
        DataLoader(
            _RowCheck(processor),
            sampler=tasks(),
            batch_size=None,
            collate_fn=unchanged,
            num_workers=workers,
            **prefetch,
        )
    )
    while True:
        try:
            tokens, error, checked = next(results)
        except StopIteration:
            return
        except RuntimeError as crash:
            under_way = ", ".join(row["id"] for row, _ in waiting)
            raise RuntimeError(
                f"{crash}\nThe clip that did it belongs to one of these samples: {under_way}"
            ) from crash
        clips |= checked
        row, keys = waiting.popleft()
        yield {**row, "error": error}, tokens, {key: clips[key] for key in keys}


def _media(row: dict[str, Any], number: int) -> dict[Key, dict[str, Any]]:
    """A row's videos and images. The keys are equal for equal paths and bounds; bytes are not compared."""
    items = [("video", item) for item in row["videos"]] + [("image", item) for item in row["images"]]
    return {
        (kind, item["path"], item.get("start"), item.get("end"))
        if item["bytes"] is None
        else (kind, number, place): item
        for place, (kind, item) in enumerate(items)
    }


class _RowCheck:
    """What the workers do; the sampler hands them rows in place of indices."""

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor

    def __getitem__(
        self, task: tuple[dict[str, Any], dict[Key, dict[str, Any]]]
    ) -> tuple[int, str | None, dict[Key, Clip]]:
        row, media = task
        tokens, error = 0, row["error"]
        if error is None:
            try:
                tokens = count_tokens(row, self.processor)
            except (TemplateError, ValueError) as problem:
                error = f"the chat template does not take it: {problem}"
        return tokens, error, {key: check_clip(key[0], item, self.processor) for key, item in media.items()}


# --- the report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Why training would pass over a sample: `media` names the clip or image that it is about, if it is about one."""

    id: str
    media: str | None
    reason: str


def find_problems(row: dict[str, Any], clips: Iterable[Clip]) -> list[Problem]:
    """All that is wrong with a row that [`examine`] gave, and with its clips."""
    malformed = [Problem(row["id"], None, row["error"])] if row["error"] else []
    return malformed + [Problem(row["id"], clip.name, clip.problem) for clip in clips if clip.problem]


def format_problem(title: str, problem: Problem) -> str:
    """A problem in a line that names source, sample and clip."""
    named = problem.media is None or problem.media in problem.reason
    return f"{title} {problem.id}: " + (problem.reason if named else f"{problem.media}: {problem.reason}")


@dataclass
class Report:
    """What was found in one source."""

    source: Source
    clips: dict[Key, Clip] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)  # of each sample that is a conversation
    turns: list[int] = field(default_factory=list)
    malformed: int = 0  # samples that are none
    skipped: int = 0  # samples that training passes over, for whatever reason
    problems: list[Problem] = field(default_factory=list)

    def add(self, row: dict[str, Any], tokens: int, clips: Iterable[Clip]) -> None:
        problems = find_problems(row, clips)
        self.problems += problems
        self.skipped += bool(problems)
        if row["error"]:
            self.malformed += 1
            return
        self.tokens.append(tokens)
        said = row["messages"] + (row["chosen"] or [])
        self.turns.append(sum(message["role"] == "assistant" for message in said))

    def values(self, measure: str) -> list[float]:
        """Of each sample, or of each video that can be read, once however many samples are about it."""
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
            **{measure: _distribution(self.values(measure)) for measure in MEASURES},
        }


def _distribution(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    figures = np.percentile(values, (0, 50, 95, 100))
    return dict(zip(("min", "median", "p95", "max"), figures.round(3).tolist(), strict=True))


def inspect_source(source: Source, processor: ProcessorMixin, workers: int) -> Report:
    """
    Goes over all rows of a source; a bar shows how far.

    Raises:
        ValueError: if the source cannot be read (see [`load_source`]).
    """
    rows, report = load_source(source), Report(source)
    total = len(rows) if isinstance(rows, Dataset) else None
    with tqdm(examine(rows, processor, workers, report.clips), source.title, total, unit="sample") as bar:
        for row, tokens, clips in bar:
            report.add(row, tokens, clips.values())
            bar.set_postfix(skipped=report.skipped, refresh=False)
    return report
