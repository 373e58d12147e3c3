"""Score and judge saved answers again, without the model and without the data."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import locked
from ..result_files.folders import is_variant, read_runs
from .benchmarks.benchmark import Benchmark
from .benchmarks.samples import digest_samples
from .controls_and_sweeps import Variant
from .models.answerer import Timing
from .run import Collected, conclude
from .scoring.judge import Judge
from .scoring.score import score_answer
from .store import Results, Row, from_row, to_row

JUDGE_KEYS = ("judge", "scores", "score", "correct", "reasons", "judge_errors")  # written by a judge, and kept


def rescore(folder: Path, benchmark: Benchmark, judge: Judge | None = None, seed: int = 0) -> dict[str, Any]:
    """
    Score the answers in a benchmark's results folder by its rule, and [`conclude`].

    Raises:
        ValueError: if answers are missing, the folder is a variant's, or a run is writing to it.
    """
    with locked(folder):
        results, samples = {}, {}
        for run_folder, run in read_runs(folder):
            if run_folder == folder and is_variant(folder, run):
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
