"""From a benchmark's files to its samples: a function for each layout. What differs inside a layout is in the YAML."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.utils import WeakFileLock

from ..files import VIDEO_SUFFIXES, read_lines
from ..loading import fetch
from .scoring import LETTERS

if TYPE_CHECKING:
    from .benchmark import Benchmark

Clip = tuple[str, float | None, float | None]  # path, start, end
PARTIAL, UNPACKED = ".zip.partial", ".zip.unpacked"  # in the place of an archive's suffix


@dataclass(frozen=True)
class Sample:
    """
    One question about a video.

    Args:
        id: One of its own in the benchmark.
        task: What it is averaged with.
        video: The path of a clip or a folder of frames; it need not exist, which is reported as any broken clip.
        questions: What is asked: one question, or two that the answers are to agree on.
        reference: The right answer, or what stands for it; "" where there is none.
        options: To choose from.
        start, end: The part of the clip that is asked about, in seconds.
    """

    id: str
    task: str
    video: str
    questions: tuple[str, ...]
    reference: str = ""
    options: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None

    @property
    def clip(self) -> Clip:
        """What is asked about: two samples about the same frames have the same."""
        return self.video, self.start, self.end

    @property
    def source(self) -> dict[str, Any]:
        """The clip as our video processor takes it."""
        bounds = {"start": self.start, "end": self.end}
        return {"path": self.video, **{name: value for name, value in bounds.items() if value is not None}}


def digest(value: Any) -> str:
    """A short name for a value that can be written as JSON: equal for equal values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def digest_samples(samples: Iterable[Sample]) -> str:
    """Of what is asked, in its order, and of what is right."""
    return digest([[sample.id, sample.questions, sample.reference] for sample in samples])


def find_folder(data: str, folder: str) -> Path:
    """
    Where a benchmark's files are: `data`/`folder`, or `data` itself if there is no such folder in it.

    Args:
        data: A folder, or the id of a dataset on the Hub. That is fetched, and zip archives in it are unpacked.

    Raises:
        ValueError: if there is neither.
    """
    path = fetch(data, repo_type="dataset")
    if path != Path(data):
        _unpack(path)
    return path / folder if (path / folder).is_dir() else path


def _unpack(folder: Path) -> None:
    """
    Unpacks each zip archive beside itself, once: a file that is written last says that it is done. One process does
    it, and the others wait.
    """
    if _packed(folder):
        with WeakFileLock(folder / ".unpacking.lock"):
            _unpack_archives(folder)


def _packed(folder: Path) -> list[Path]:
    """The archives that are not unpacked yet."""
    found = []
    # Unlike a pattern, it passes over folders that another process moves away
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(PARTIAL)]
        found += [Path(inside, name) for name in names if name.endswith(".zip")]
    return [archive for archive in sorted(found) if not archive.with_suffix(UNPACKED).exists()]


def _unpack_archives(folder: Path) -> None:
    for archive in _packed(folder):
        _unpack_archive(archive)
        archive.with_suffix(UNPACKED).touch()


def _unpack_archive(archive: Path) -> None:
    """Each file appears whole, and those of archives in it with them: written under another name, and moved."""
    beside = archive.with_suffix(PARTIAL)
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    with zipfile.ZipFile(archive) as content:
        content.extractall(beside)  # which keeps to that folder, whatever names are inside
    _unpack_archives(beside)
    for file in [path for path in beside.rglob("*") if path.is_file()]:
        target = archive.parent / file.relative_to(beside)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(beside)


def read_json(file: Path) -> list[dict[str, Any]]:
    """
    Raises:
        ValueError: if the file is not there, or no list of objects.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must be a list of objects")
    return rows


@lru_cache(maxsize=16)
def _clips_by_name(folder: Path) -> dict[str, list[Path]]:
    """The clips in a folder and the folders in it, by their names without suffix."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    return found


def find_video(folder: Path, *names: str) -> str:
    """
    The clip in `folder` that has one of the names, which may lack their suffix. If none is there, the path of the
    first as it would be: so that the sample is kept, and reported as one that cannot be read.
    """
    for name in names:
        if (folder / name).exists():
            return str(folder / name)
        if found := _clips_by_name(folder).get(name):
            return str(min(found, key=lambda path: VIDEO_SUFFIXES.index(path.suffix.lower())))
    return str(folder / names[0])


def _media(root: Path, task: dict[str, Any]) -> Path:
    """The folder of a task's clips; `root` itself, in which they may be anywhere, where it is not there."""
    folder = root / task.get("media", "")
    return folder if folder.is_dir() else root


def read_mvbench(root: Path, benchmark: Benchmark) -> Iterator[Sample]:
    """Rows `{"video", "question", "candidates", "answer"}`, with "start" and "end" where it is about a part."""
    for name, task in benchmark.tasks.items():
        for number, row in enumerate(read_json(root / task["file"])):
            listed = "".join(f"({letter}) {text}\n" for letter, text in zip(LETTERS, row["candidates"], strict=False))
            bounds = {key: float(row[key]) for key in ("start", "end")} if task.get("sub_clips") else {}
            yield Sample(
                id=f"{name}/{number}",
                task=name,
                video=str(root / task["media"] / row["video"]),
                questions=(f"Question: {row['question']}\nOptions:\n{listed}".rstrip(),),
                reference=row["answer"],
                options=tuple(row["candidates"]),
                **bounds,
            )


def read_vcgbench(root: Path, benchmark: Benchmark) -> Iterator[Sample]:
    """Rows `{"video_name", "Q", "A"}`, or "Q1" and "Q2" in the place of "Q"."""
    for name, task in benchmark.tasks.items():
        folder = _media(root, task)
        for number, row in enumerate(read_json(root / task["file"])):
            questions = (row["Q"],) if "Q" in row else (row["Q1"], row["Q2"])
            video = find_video(folder, row["video_name"])
            yield Sample(f"{name}/{number}", name, video, questions, row["A"])


def read_videoqa(root: Path, benchmark: Benchmark) -> Iterator[Sample]:
    """Questions `{"question_id", "video_name", "question"}`, and in another file `{"question_id", "answer"}`."""
    for name, task in benchmark.tasks.items():
        folder = _media(root, task)
        answers = {str(row["question_id"]): row["answer"] for row in read_json(root / task["answers"])}
        for row in read_json(root / task["questions"]):
            identity, video = str(row["question_id"]), str(row["video_name"])
            if identity not in answers:
                raise ValueError(f"{root / task['answers']} has no answer to question {identity}")
            path = find_video(folder, video, f"v_{video}")  # so ActivityNet's files are called
            yield Sample(identity, name, path, (row["question"],), str(answers[identity]))


def read_recaption(root: Path, benchmark: Benchmark) -> Iterator[Sample]:
    """Rows `{"video_name"}`, some with a "caption"; what is asked is in the benchmark's wording."""
    for name, task in benchmark.tasks.items():
        folder = _media(root, task)
        for row in read_json(root / task["file"]):
            video = str(row["video_name"])
            yield Sample(video, name, find_video(folder, video), ("",), row.get("caption", ""))


def read_rows(root: Path, benchmark: Benchmark) -> Iterator[Sample]:
    """
    JSON Lines of `{"video", "question", "answer"}` with an optional "id", "type" (its task), "options", "start" and
    "end": the plain layout, for benchmarks of one's own.
    """
    for name, task in benchmark.tasks.items():
        file = root / task["file"]
        if not file.is_file():
            raise ValueError(f"{file} cannot be read: there is no such file")
        for number, row in enumerate(read_lines(file, "video", "question", "answer")):
            yield Sample(
                id=str(row.get("id", f"{name}/{number}")),
                task=row.get("type", name),
                video=str(root / task.get("media", "") / row["video"]),
                questions=(row["question"],),
                reference=row["answer"],
                options=tuple(row.get("options", ())),
                start=row.get("start"),
                end=row.get("end"),
            )
