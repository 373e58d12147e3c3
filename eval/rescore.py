"""Answers that were saved, scored and judged anew: without the model, and without the data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import locked, read_object
from .benchmarks.benchmark import Benchmark
from .benchmarks.samples import digest_samples
from .run import Collected, conclude, times
from .scoring.judge import Judge
from .scoring.score import scored_row
from .store import Results, from_row
from .variants import Variant

JUDGED = ("judge", "scores", "score", "correct", "judge_errors")  # what a judge has noted in a line


def result_folders(folder: Path) -> dict[Path, str]:
    """
    The folders of benchmarks' results in `folder`, or `folder` itself, and the benchmarks' names.

    Raises:
        ValueError: if there are none.
    """
    for candidates in ([folder], sorted(path for path in folder.glob("*") if path.is_dir())):
        found = {each: runs[0][1]["benchmark"] for each in candidates if (runs := list(_runs(each)))}
        if found:
            return found
    raise ValueError(f"{folder} has no results; name the --out of a run, or a benchmark's folder in it")


def _runs(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The run in a benchmark's folder of results, and its variants in the folders in it, with what they depend on."""
    for place in (folder, *sorted(folder.glob("*/"))):
        if (place / "run.json").is_file():
            run = read_object(place / "run.json", "benchmark", "samples")
            if place == folder or place.name != run["benchmark"]:
                yield place, run


def rescore(folder: Path, benchmark: Benchmark, judge: Judge | None = None, seed: int = 0) -> dict[str, Any]:
    """
    Scores the answers in a benchmark's folder of results by its rule, and has them judged: [`conclude`], see there.

    Raises:
        ValueError: if not all answers are there, they are a variant's only, or another run is writing them.
    """
    with locked(folder):
        return conclude(_scored(folder, benchmark), judge, seed)


def _scored(folder: Path, benchmark: Benchmark) -> Collected:
    results, samples = {}, []
    for place, run in _runs(folder):
        if place == folder and _is_variant(folder, run):
            raise ValueError(f"{folder} has a variant's answers only, which go with the run's: name the folder above")
        result = Results(place, run)
        saved = {name: (row, *from_row(row)) for name, row in result.rows.items()}
        samples = [sample for _, sample, _ in saved.values()]
        if digest_samples(samples) != run["samples"]:
            raise ValueError(f"{place} has not all answers of its run: go on with the run first")
        kept = JUDGED if benchmark.score == "judge" else ()
        result.rows = {
            name: {**scored_row(benchmark, sample, answer), **{key: row[key] for key in kept if key in row}}
            for name, (row, sample, answer) in saved.items()
        }
        result.save()
        results[Variant("" if place == folder else place.name)] = result
    return Collected(benchmark, folder, samples, results, times())


def _is_variant(folder: Path, run: dict[str, Any]) -> bool:
    """Whether a folder has a control, or a value of a sweep: which of these is in its name alone."""
    return run.get("control") is not None or folder.resolve().name.startswith(("alpha=", "pooling_shape="))
