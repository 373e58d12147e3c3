"""Read a benchmark's files into samples: one function for each file layout."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ...files import read_lines
from ...video_source_pllava import is_address
from .benchmark import Benchmark
from .data_folder import find_folder, find_video
from .samples import LETTERS, Sample

MAX_UNREADABLE = 0.95  # a larger share of unreadable clips means a wrong folder, not broken clips


def read_samples(benchmark: Benchmark, data: str, limit: int | None = None) -> list[Sample]:
    """
    Read the samples of a benchmark, at most the first `limit` of each task.

    Args:
        data: A folder, or a dataset on the Hub with the same layout.

    Raises:
        ValueError: if files or (nearly) all clips are missing, or the samples are inconsistent.
    """
    samples, counts = [], Counter()
    for sample in _read_files(benchmark, find_folder(data, benchmark.folder)):
        counts[sample.task] += 1
        if limit is None or counts[sample.task] <= limit:
            samples.append(sample)
    if not samples:
        raise ValueError(f"{benchmark.title}: there are no samples in {data}")
    _check_samples(benchmark, samples)
    return samples


def _read_files(benchmark: Benchmark, root: Path) -> Iterable[Sample]:
    if benchmark.read not in READERS:
        return benchmark.custom_reader(root, benchmark)
    read = READERS[benchmark.read]
    return (sample for name, task in benchmark.tasks.items() for sample in read(root, name, task))


def _check_samples(benchmark: Benchmark, samples: list[Sample]) -> None:
    for sample in samples:
        if benchmark.score == "multiple_choice" and sample.reference not in sample.options:
            raise ValueError(
                f"{benchmark.title}, {sample.id}: the answer {sample.reference!r} is not among {list(sample.options)}"
            )
        if benchmark.score == "judge":
            benchmark.aspects(sample.task)  # raises if they are ambiguous
    ids = {sample.id for sample in samples}
    if len(ids) != len(samples):
        raise ValueError(f"{benchmark.title}: {len(samples)} samples have only {len(ids)} different ids")
    videos = {sample.video for sample in samples}
    missing = sorted(video for video in videos if not is_address(video) and not Path(video).exists())
    if len(missing) > MAX_UNREADABLE * len(videos):
        raise ValueError(
            f"{benchmark.title}: {len(missing)} of its {len(videos)} clips are missing, for example {missing[0]}. Do "
            f"--data and `media` in {benchmark.file} name the right folder?"
        )


def read_mvbench(root: Path, name: str, task: dict[str, Any]) -> Iterator[Sample]:
    """Rows `{"video", "question", "candidates", "answer"}`; with "start" and "end" in tasks with `sub_clips`."""
    for number, row in enumerate(_read_json(root / task["file"])):
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


def read_vcgbench(root: Path, name: str, task: dict[str, Any]) -> Iterator[Sample]:
    """Rows `{"video_name", "Q", "A"}`, or with "Q1" and "Q2" instead of "Q"."""
    folder = _media_folder(root, task)
    for number, row in enumerate(_read_json(root / task["file"])):
        questions = (row["Q"],) if "Q" in row else (row["Q1"], row["Q2"])
        yield Sample(f"{name}/{number}", name, find_video(folder, row["video_name"]), questions, row["A"])


def read_videoqa(root: Path, name: str, task: dict[str, Any]) -> Iterator[Sample]:
    """Questions `{"question_id", "video_name", "question"}`, and in a second file `{"question_id", "answer"}`."""
    folder = _media_folder(root, task)
    answers = {str(row["question_id"]): row["answer"] for row in _read_json(root / task["answers"])}
    for row in _read_json(root / task["questions"]):
        question_id, video = str(row["question_id"]), str(row["video_name"])
        if question_id not in answers:
            raise ValueError(f"{root / task['answers']} has no answer to question {question_id}")
        path = find_video(folder, video, f"v_{video}")  # ActivityNet's file names start with v_
        yield Sample(question_id, name, path, (row["question"],), str(answers[question_id]))


def read_recaption(root: Path, name: str, task: dict[str, Any]) -> Iterator[Sample]:
    """Rows `{"video_name"}`, some with a "caption". The question is in the benchmark's wording."""
    folder = _media_folder(root, task)
    for row in _read_json(root / task["file"]):
        video = str(row["video_name"])
        yield Sample(video, name, find_video(folder, video), ("",), row.get("caption", ""))


def read_rows(root: Path, name: str, task: dict[str, Any]) -> Iterator[Sample]:
    """
    JSON Lines of `{"video", "question", "answer"}` with an optional "id", "type" (its task), "options", "start" and
    "end": the layout for custom benchmarks.
    """
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


# Called with the data folder, the task's name and its declaration
READERS: dict[str, Callable[[Path, str, dict[str, Any]], Iterator[Sample]]] = {
    "mvbench": read_mvbench,
    "vcgbench": read_vcgbench,
    "videoqa": read_videoqa,
    "recaption": read_recaption,
    "rows": read_rows,
}


def _media_folder(root: Path, task: dict[str, Any]) -> Path:
    """Return the folder of a task's clips; if it is missing, `root`, whose subfolders are searched for them."""
    folder = root / task.get("media", "")
    return folder if folder.is_dir() else root


def _read_json(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must be a list of objects")
    return rows
