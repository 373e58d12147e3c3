"""
Evaluate a model on a benchmark. Each sample is

- read by `benchmarks/readers.py`, and answered by a model in `models/`;
- scored by the benchmark's rule in `scoring/score.py`, and written to predictions.jsonl by `store.py`;
- when all are answered, scored by `scoring/captions.py` or `scoring/judge.py` if the benchmark needs it;
- counted in the metrics by `scoring/summary.py`, which `report/` presents.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..distributed import WorkClaims, join_processes, sharing_work
from ..files import locked, replace_file
from ..result_files.folders import read_metrics
from .benchmarks.benchmark import Benchmark
from .benchmarks.readers import MAX_UNREADABLE, read_samples
from .benchmarks.samples import Sample, digest_samples
from .controls_and_sweeps import PLAIN, Variant
from .models.answerer import Answerer, Timing, Work
from .report.report import write_report
from .scoring.judge import Judge
from .scoring.score import score_answer
from .scoring.summary import environment, summarise
from .store import Results, Row, to_row


@dataclass
class Collected:
    """A benchmark's answers in their results folders, and the time that they took."""

    benchmark: Benchmark
    folder: Path
    samples: dict[Variant, list[Sample]]
    results: dict[Variant, Results]
    time: dict[str, float]


def evaluate(
    benchmark: Benchmark,
    answerer: Answerer,
    data: str,
    out: str | Path,
    variants: Sequence[Variant] = (PLAIN,),
    judge: Judge | None = None,
    limit: int | None = None,
    seed: int = 0,
    retry_failed: bool = False,
) -> dict[str, dict[str, Any]]:
    """
    Evaluate a model on a benchmark: [`read_samples`], [`collect`] in all processes, and [`conclude`] in the main one.

    Returns:
        The metrics of each variant by its name, as in metrics.json; in other processes an empty dict.

    Raises:
        ValueError: if the data are missing, or another run is writing to the results folder.
    """
    samples = read_samples(benchmark, data, limit)
    with hold(out, [benchmark]):
        collected = collect(benchmark, answerer, samples, out, variants, limit, retry_failed)
        return conclude(collected, judge, seed) if join_processes().is_main_process else {}


@contextmanager
def hold(out: str | Path, benchmarks: Sequence[Benchmark]) -> Iterator[None]:
    """
    Lock these benchmarks' folders in `out` while [`collect`] and [`conclude`] write to them: a second run would claim
    pieces of the first run's work.

    Raises:
        ValueError: if another run holds one of the locks.
    """
    with ExitStack() as locks:
        for name in {each.name for each in benchmarks} if join_processes().is_main_process else ():
            locks.enter_context(locked(Path(out) / name))
        yield


def collect(
    benchmark: Benchmark,
    answerer: Answerer,
    samples: list[Sample],
    out: str | Path,
    variants: Sequence[Variant] = (PLAIN,),
    limit: int | None = None,
    retry_failed: bool = False,
) -> Collected:
    """
    Let a model answer the samples for which `out` has no answer yet. All processes call this, inside [`hold`].

    Args:
        samples: From [`read_samples`].
        out: Gets a folder with the benchmark's name, for the plain run, and in it a folder for each other variant.
        variants: Controls and values of sweeps; they share decoded clips and the vision tower's output.
        limit: The limit with which the samples were read.
        retry_failed: Whether to ask again where the clip could not be read or the server failed.

    Raises:
        ValueError: if `out` has the results of a run with other settings.
    """
    state = join_processes()
    folder = Path(out) / benchmark.name
    results = {}
    for variant in variants:
        run = {
            "benchmark": benchmark.name,
            "prompts": benchmark.prompt_hash(),
            "samples": digest_samples(samples),
            "limit": limit,
            **answerer.describe(variant),
        }
        results[variant] = Results(folder / variant.name, run, state.process_index, retry_failed)
    with sharing_work(folder / "claims") as claims:  # all have read the existing answers before one adds to them
        timing = _answer(benchmark, answerer, samples, results, claims)
    return Collected(benchmark, folder, dict.fromkeys(variants, samples), results, asdict(timing))


def _answer(
    benchmark: Benchmark,
    answerer: Answerer,
    samples: Sequence[Sample],
    results: dict[Variant, Results],
    claims: WorkClaims,
) -> Timing:
    """Answer, score and store the missing samples, with a progress bar."""
    state = join_processes()

    def is_done(variant: Variant, sample: Sample) -> bool:
        return results[variant].is_done(sample)

    total = len(samples) * len(results)
    done = sum(is_done(variant, sample) for variant in results for sample in samples)
    began, correct, failed = time.perf_counter(), [], 0
    timing = answerer.timing = Timing(processes=state.num_processes)
    with tqdm(
        total=total, initial=done, desc=benchmark.title, unit="answer", disable=not state.is_main_process
    ) as bar:
        for variant, answers in answerer.answers(Work(benchmark, samples, list(results), is_done, claims.claim)):
            rows = [to_row(sample, answer, score_answer(benchmark, sample, answer)) for sample, answer in answers]
            results[variant].append(rows)
            timing.answered += len(rows)
            failed += sum("error" in row for row in rows)
            correct += [row["correct"] for row in rows if "correct" in row and variant == PLAIN]
            accuracy = {"accuracy": f"{sum(correct) / len(correct):.1%}"} if correct else {}
            bar.set_postfix(failed=failed, **accuracy, refresh=False)  # `update` limits how often the bar is drawn
            bar.update(min(len(rows) * state.num_processes, total - bar.n))  # assumes that the others are as fast
    timing.seconds = time.perf_counter() - began
    return timing


def conclude(collected: Collected, judge: Judge | None = None, seed: int = 0) -> dict[str, dict[str, Any]]:
    """
    Compute the metrics of the answers, and write metrics.json and the reports. Call it in one process, after all have
    collected their answers.

    Args:
        judge: For benchmarks that need one; without it their answers get no scores.
        seed: The seed of the confidence intervals' resampling.

    Returns:
        The metrics of each variant by its name, as in metrics.json.

    Raises:
        ValueError: if (nearly) no sample has an answer: metrics would say nothing about the model.
    """
    benchmark, metrics = collected.benchmark, {}
    for variant, results in collected.results.items():
        samples = collected.samples[variant]
        rows, judging = results.merge(samples), {}
        _check_failures(benchmark, results.folder, samples, rows)
        if benchmark.score == "caption":
            from .scoring.captions import score_captions  # its libraries take a second to import

            score_captions(rows)
            results.save()
        elif benchmark.score == "judge" and judge is not None:
            try:
                judging = judge.judge(benchmark, rows)
            finally:
                results.save()
        # If this run added no answers or no grades, times, hardware and costs are those of the run that did
        previous = read_metrics(results.folder) or {}
        kept = () if collected.time["answered"] else previous.keys() & {"time", "hardware"}
        metrics[variant.name] = {
            "benchmark": benchmark.name,
            "title": benchmark.title,
            "variant": variant.name,
            "rule": benchmark.score,
            **summarise(benchmark, samples, rows, seed),
            **_judge_metrics(rows, judging, previous.get("judge", {})),
            "run": results.run,
            "time": collected.time,
            **environment(seed),
            **{name: previous[name] for name in kept},
        }
        replace_file(results.folder / "metrics.json", json.dumps(metrics[variant.name], indent=2) + "\n")
    write_report(benchmark, collected.folder)
    return metrics


def _check_failures(benchmark: Benchmark, folder: Path, samples: Sequence[Sample], rows: Sequence[Row]) -> None:
    errors = [row["error"] for row in rows if "error" in row]
    if len(errors) > MAX_UNREADABLE * len(samples):
        raise ValueError(
            f"{benchmark.title}: {len(errors)} of {len(samples)} samples in {folder} have no "
            f"answer; the first failed with: {errors[0]}. Nothing is scored; --retry-failed tries them again"
        )


def _judge_metrics(
    rows: Sequence[Row], judging: dict[str, Any], previous: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return who judged, and the requests and costs of judging."""
    if "judge" not in rows[0]:
        return {}
    judge = rows[0]["judge"]
    return {"judge": previous if not any(judging.values()) and judge.items() <= previous.items() else judge | judging}
