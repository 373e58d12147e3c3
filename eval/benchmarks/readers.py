"""From a benchmark's files to its samples: a function for each layout. What differs inside a layout is in the YAML."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...files import read_lines
from ...video_source_pllava import is_address
from .benchmark import Benchmark
from .data_folder import find_folder, find_video, read_json
from .samples import LETTERS, Sample

MOST = 0.95  # of the clips: where more cannot be read, it is the folder that is wrong, and not the clips


def _media(root: Path, task: dict[str, Any]) -> Path:
    """The folder of a task's clips; `root` itself, in which they may be anywhere, where it is not there."""
    folder = root / task.get("media", "")
    return folder if folder.is_dir() else root


def read_samples(benchmark: Benchmark, data: str, limit: int | None = None) -> list[Sample]:
    """
    All samples of a benchmark, the first `limit` of each task.

    Args:
        data: A folder, or a dataset on the Hub that has one of this layout.

    Raises:
        ValueError: if the folder has not what the benchmark needs, or (nearly) none of its clips; the message says
            what is missing.
    """
    read = READERS.get(benchmark.read) or benchmark.custom_reader
    samples, counts = [], {}
    for sample in read(find_folder(data, benchmark.folder), benchmark):
        counts[sample.task] = counts.get(sample.task, 0) + 1
        if limit is None or counts[sample.task] <= limit:
            samples.append(sample)
    if not samples:
        raise ValueError(f"{benchmark.title}: there are no samples in {data}")
    for sample in samples if benchmark.score == "multiple_choice" else ():
        if sample.reference not in sample.options:
            raise ValueError(
                f"{benchmark.title}, {sample.id}: the answer {sample.reference!r} is not among {list(sample.options)}"
            )
    ids = {sample.id for sample in samples}
    if len(ids) != len(samples):
        raise ValueError(f"{benchmark.title}: {len(samples)} samples have only {len(ids)} different ids")
    for sample in samples if benchmark.score == "judge" else ():
        benchmark.aspects(sample.task)
    _look_for_clips(benchmark, samples)
    return samples


def _look_for_clips(benchmark: Benchmark, samples: list[Sample]) -> None:
    videos = {sample.video for sample in samples}
    missing = sorted(video for video in videos if not is_address(video) and not Path(video).exists())
    if len(missing) > MOST * len(videos):
        raise ValueError(
            f"{benchmark.title}: {len(missing)} of its {len(videos)} clips are not there; looked for {missing[0]}. Do "
            f"--data and `media` in {benchmark.file} name the right folder?"
        )


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


READERS: dict[str, Callable[[Path, Benchmark], Iterator[Sample]]] = {
    "mvbench": read_mvbench,
    "vcgbench": read_vcgbench,
    "videoqa": read_videoqa,
    "recaption": read_recaption,
    "rows": read_rows,
}
