"""Evaluate a model on several benchmarks, or score the saved answers of several benchmarks again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..distributed import join_processes
from ..result_files.folders import Metrics, result_folders
from .benchmarks.benchmark import Benchmark, load_benchmark
from .benchmarks.samples import Sample
from .controls_and_sweeps import PLAIN, Variant
from .models.answerer import Answerer
from .rescore import rescore
from .run import collect, conclude, hold
from .scoring.judge import Judge


def evaluate_suite(
    benchmarks: Sequence[Benchmark],
    samples: Sequence[list[Sample]],
    answerer: Answerer,
    out: str | Path,
    variants: Sequence[Variant] = (PLAIN,),
    judge: Judge | None = None,
    limit: int | None = None,
    seed: int = 0,
    retry_failed: bool = False,
) -> Iterator[tuple[Path, dict[str, Metrics]]]:
    """
    Evaluate a model on several benchmarks. All processes of a distributed run call this and iterate to the end.

    Args:
        samples: Those of each benchmark, from `read_samples` with the same `limit`.
        answerer, out, variants, limit, retry_failed: See [`collect`].
        judge, seed: See [`conclude`].

    Yields:
        The folder of each benchmark's results, and its metrics by the variants' names. Only the main process yields.

    Raises:
        ValueError: if another run is writing to `out`, it has the results of a different run, or (nearly) all samples
            of a benchmark failed.
    """
    state = join_processes()
    # A judge may take hours, for which the other processes would wait before the next benchmark
    judge_last = judge is not None and state.num_processes > 1
    unjudged = []
    with hold(out, benchmarks):
        for benchmark, its_samples in zip(benchmarks, samples, strict=True):
            answers = collect(benchmark, answerer, its_samples, out, variants, limit, retry_failed)
            if judge_last:
                unjudged.append(answers)
            elif state.is_main_process:
                yield answers.folder, conclude(answers, judge, seed)
        for answers in unjudged if state.is_main_process else ():
            yield answers.folder, conclude(answers, judge, seed)


def rescore_suite(
    folder: Path,
    benchmarks: Sequence[Benchmark],
    prompts: dict[str, Any],
    judge: Judge | None = None,
    seed: int = 0,
) -> Iterator[tuple[Path, dict[str, Metrics]]]:
    """
    Score the answers in a folder of results, of one benchmark or of several, without the model.

    Args:
        benchmarks: Definitions; those of benchmarks that are not among them ship with the package.
        prompts: The wording, for those.
        judge, seed: See [`conclude`].

    Yields:
        As [`evaluate_suite`].

    Raises:
        ValueError: if there are no results, answers are missing, or another run is writing them.
    """
    by_name = {benchmark.name: benchmark for benchmark in benchmarks}
    for results, name in result_folders(folder).items() if join_processes().is_main_process else ():
        benchmark = by_name.get(name) or load_benchmark(name, prompts)
        yield results, rescore(results, benchmark, judge, seed)
