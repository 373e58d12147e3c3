"""Score and judge saved answers again, without the model and without the data."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import locked, read_object
from .benchmarks.benchmark import Benchmark
from .benchmarks.samples import digest_samples
from .controls_and_sweeps import Variant
from .models.answerer import Timing
from .run import Collected, conclude
from .scoring.judge import Judge
from .scoring.score import score_answer
from .store import Results, Row, from_row, to_row

JUDGE_KEYS = ("judge", "scores", "score", "correct", "judge_errors")  # written by a judge, and kept


def result_folders(folder: Path) -> dict[Path, str]:
    """
    Return the benchmarks' results folders in `folder`, or `folder` itself if it is one, and the benchmarks' names.

    Raises:
        ValueError: if there are none.
    """
    for candidates in ([folder], sorted(path for path in folder.glob("*") if path.is_dir())):
        benchmarks = {each: runs[0][1]["benchmark"] for each in candidates if (runs := list(_runs(each)))}
        if benchmarks:
            return benchmarks
    raise ValueError(f"{folder} has no results; pass the --out of a run, or a benchmark's folder in it")


def rescore(folder: Path, benchmark: Benchmark, judge: Judge | None = None, seed: int = 0) -> dict[str, Any]:
    """
    Score the answers in a benchmark's results folder by its rule, and [`conclude`].

    Raises:
        ValueError: if answers are missing, the folder is a variant's, or a run is writing to it.
    """
    with locked(folder):
        results, samples = {}, {}
        for run_folder, run in _runs(folder):
            if run_folder == folder and _is_variant(folder, run):
                raise ValueError(
                    f"{folder} has a variant's answers only, which belong to a plain run: pass its parent folder"
                )
            result = Results(run_folder, run)
            variant = Variant("" if run_folder == folder else run_folder.name)
            samples[variant] = [from_row(row)[0] for row in result.rows.values()]
            if digest_samples(samples[variant]) != run["samples"]:
                raise ValueError(f"{run_folder} lacks answers of its run: resume the run first")
            result.rows = {key: _rescored(benchmark, row) for key, row in result.rows.items()}
            result.save()
            results[variant] = result
        return conclude(Collected(benchmark, folder, samples, results, asdict(Timing())), judge, seed)


def _rescored(benchmark: Benchmark, row: Row) -> Row:
    sample, answer = from_row(row)
    judged = {key: row[key] for key in JUDGE_KEYS if key in row} if benchmark.score == "judge" else {}
    return to_row(sample, answer, score_answer(benchmark, sample, answer) | judged)


def _runs(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folders and settings of the plain run in a benchmark's results folder, and of its variants."""
    for run_folder in (folder, *sorted(folder.glob("*/"))):
        if (run_folder / "run.json").is_file():
            run = read_object(run_folder / "run.json", "benchmark", "samples")
            if run_folder == folder or run_folder.name != run["benchmark"]:
                yield run_folder, run


def _is_variant(folder: Path, run: dict[str, Any]) -> bool:
    """Whether the folder is a control's or a sweep's; only the folder's name tells a sweep from a plain run."""
    return run.get("control") is not None or folder.resolve().name.startswith(("alpha=", "pooling_shape="))
