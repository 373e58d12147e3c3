"""
What training will find in its data: each clip is opened, its index read and its first and last frame decoded; each
conversation is counted in tokens.

Reading the index alone would be faster still. But a file that was allocated whole and downloaded in part has an index
that is whole, and zeros where its last frames should be. Damage in between that no index shows is left for training to
find: that takes decoding everything.
"""

import json
import warnings
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from datasets import Dataset
from jinja2 import TemplateError
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata

from ..video_decoding_pllava import VideoTruncatedWarning, load_frames, read_image
from ..workers import unchanged
from .data import Source, load_source

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
    name = item["path"] or "<bytes>"
    content = item["path"] if item["bytes"] is None else item["bytes"]
    try:
        if content is None:
            raise ValueError("the row names no file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", VideoTruncatedWarning)
            if kind == "video":
                bounds = {key: item[key] for key in ("start", "end")}
                return Clip(kind, name, *_measure_video(content, bounds, processor))
        read_image(content)
        return Clip(kind, name)
    except (ValueError, VideoTruncatedWarning) as error:
        file = local_file(item["path"]) if item["bytes"] is None else None
        return Clip(kind, name, problem=str(error), missing=file is not None and not file.exists())


def local_file(path: str | None) -> Path | None:
    """The file or folder that a clip's path names; none where it is an address elsewhere."""
    if path is not None and path.startswith("file://"):
        return Path(unquote(urlparse(path).path))
    return None if path is None or "://" in path else Path(path)


def _measure_video(
    content: str | bytes, bounds: dict[str, float | None], processor: ProcessorMixin
) -> tuple[int, float]:
    """How many frames there are to draw from, and how long they are shown in seconds."""
    drawn: list[int] = []

    def first_and_last(metadata: VideoMetadata) -> list[int]:
        # The first frame of as many intervals as there are frames: all of them, or all of a sub-clip's
        indices = processor.video_processor.sample_frames(
            metadata, metadata.total_num_frames, sampling="start", **bounds
        )
        drawn[:] = [int(indices[0]), int(indices[-1])]
        return drawn

    _, metadata = load_frames(content, first_and_last)
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
    Rows in their order, each with its length in tokens and its clips. A file that several rows name is opened once.

    Args:
        workers: Processes that open clips; with 0 this one does.
        clips: Is filled with the clips of all rows.

    Raises:
        ValueError: if a conversation cannot be written by the chat template.
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
            yield {name: row[name] for name in ("messages", "chosen", "rejected")}, new

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
            tokens, checked = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            under_way = ", ".join(row["id"] for row, _ in waiting)
            raise RuntimeError(
                f"{error}\nThe clip that did it belongs to one of these samples: {under_way}"
            ) from error
        clips |= checked
        row, keys = waiting.popleft()
        if isinstance(tokens, str):
            raise ValueError(f"{row['source']} {row['id']}: the chat template does not take it: {tokens}")
        yield row, tokens, {key: clips[key] for key in keys}


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

    def __getitem__(self, task: tuple[dict[str, Any], dict[Key, dict[str, Any]]]) -> tuple[int | str, dict[Key, Clip]]:
        row, media = task
        try:
            tokens = count_tokens(row, self.processor)
        except TemplateError as error:
            tokens = str(error)
        return tokens, {key: check_clip(key[0], item, self.processor) for key, item in media.items()}


# --- the report ------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What was found in one source."""

    source: Source
    clips: dict[Key, Clip] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)  # of each sample
    turns: list[int] = field(default_factory=list)
    skipped: int = 0  # samples that training passes over
    bad: list[tuple[str, Clip]] = field(default_factory=list)  # the samples' ids and what is wrong with them

    def add(self, row: dict[str, Any], tokens: int, clips: Iterable[Clip]) -> None:
        self.tokens.append(tokens)
        said = row["messages"] + (row["chosen"] or [])
        self.turns.append(sum(message["role"] == "assistant" for message in said))
        bad = [(row["id"], clip) for clip in clips if clip.problem]
        self.skipped += bool(bad)
        self.bad += bad

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
            "samples": len(self.tokens),
            "skipped": self.skipped,
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
        ValueError: if a row is of no known form.
    """
    rows, report = load_source(source), Report(source)
    total = len(rows) if isinstance(rows, Dataset) else None
    with tqdm(examine(rows, processor, workers, report.clips), source.title, total, unit="sample") as bar:
        for row, tokens, clips in bar:
            report.add(row, tokens, clips.values())
            bar.set_postfix(skipped=report.skipped, refresh=False)
    return report


def write_reports(reports: list[Report], model: str, out: Path) -> None:
    """Writes inspection.json (all figures), unreadable.jsonl (each sample's bad clips) and inspection.png."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {"model": model, "sources": [report.summary() for report in reports]}
    (out / "inspection.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [
        {"source": report.source.title, "id": identity, "media": clip.name, "reason": clip.problem}
        for report in reports
        for identity, clip in report.bad
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "unreadable.jsonl").write_text(text, encoding="utf-8")
    _draw(reports, out / "inspection.png")


def _draw(reports: list[Report], file: Path) -> None:
    """A row of histograms for each source. A figure made without pyplot is drawn by Agg, which needs no display."""
    measures = MEASURES[:3]
    figure = Figure(figsize=(4 * len(measures), 2.4 * len(reports)), layout="constrained")
    panels = figure.subplots(len(reports), len(measures), squeeze=False)
    for row, report in zip(panels, reports, strict=True):
        for panel, measure in zip(row, measures, strict=True):
            panel.hist(report.values(measure), bins=40)
            panel.set(xlabel=measure, ylabel="samples" if measure == "tokens" else "clips")
        row[0].set_title(report.source.title, loc="left")
    figure.savefig(file)


def format_reports(reports: list[Report]) -> str:
    """The figures as a table of plain text."""
    summaries = [report.summary() for report in reports]
    counts = ("source", "samples", "skipped", "clips", "images", "missing", "unreadable")
    lines = [list(counts)] + [[str(summary[name]) for name in counts] for summary in summaries]
    spread = [["source", "", "min", "median", "95 %", "max"]]
    for summary in summaries:
        for measure in (measure for measure in MEASURES if summary[measure]):
            spread.append([summary["source"], measure, *(f"{value:.10g}" for value in summary[measure].values())])
    return f"{_aligned(lines, 1)}\n\n{_aligned(spread, 2)}"


def _aligned(lines: list[list[str]], names: int) -> str:
    """Columns as wide as what is in them; the first, `names` of them, begin on the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_problem(title: str, identity: str, clip: Clip) -> str:
    """What is wrong with a sample's clip, in a line that names both."""
    reason = clip.problem if clip.name in clip.problem else f"{clip.name}: {clip.problem}"
    return f"{title} {identity}: {reason}"
