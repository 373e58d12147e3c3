"""An evaluation from beginning to end: answers, judge, metrics, report."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from tqdm import tqdm

from ..files import locked, replace_file
from .benchmarks.benchmark import Benchmark
from .benchmarks.readers import MOST, read_samples
from .benchmarks.samples import Sample, digest_samples
from .distributed import Shares, join_processes
from .models.answer import Answer, Seconds
from .report.report import write_report
from .scoring.judge import Judge
from .scoring.score import score_captions, scored_row
from .scoring.summary import Metrics, environment, summarise
from .store import Results, Row, read_metrics
from .variants import PLAIN, Variant


class Answerer(Protocol):
    """What answers: a `LocalModel`, or an `Endpoint`."""

    seconds: Seconds

    def describe(self, variant: Variant) -> dict[str, Any]: ...

    def answers(
        self, benchmark: Benchmark, samples: Sequence[Sample], variants: Sequence[Variant], is_done: Any, take: Any
    ) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]: ...


@dataclass
class Collected:
    """The answers to a benchmark, in the folders that they are in, and what they took."""

    benchmark: Benchmark
    folder: Path
    samples: list[Sample]
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
    Evaluates a model on a benchmark: [`collect`], then in the main process [`conclude`]; see there.

    Args:
        data: A folder, or a dataset on the Hub.

    Returns:
        The metrics by variant, as metrics.json has them; in other processes nothing.

    Raises:
        ValueError: if the data are not there, or another run is writing the results.
    """
    samples = read_samples(benchmark, data, limit)
    with hold(out, [benchmark]):
        collected = collect(benchmark, answerer, samples, out, variants, limit, retry_failed)
        return conclude(collected, judge, seed) if join_processes().is_main_process else {}


@contextmanager
def hold(out: str | Path, benchmarks: Sequence[Benchmark]) -> Iterator[None]:
    """
    Around all that [`collect`] and [`conclude`] do with `out`: keeps other runs out of these benchmarks' folders, for
    two would take each other's share of the work.

    Raises:
        ValueError: if another run is writing one of them.
    """
    with ExitStack() as folders:
        for name in {each.name for each in benchmarks} if join_processes().is_main_process else ():
            folders.enter_context(locked(Path(out) / name))
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
    Has a model answer a benchmark, but for what `out` has already. All processes take part; [`hold`] keeps others out.

    Args:
        benchmark: As `load_benchmark` gives it.
        answerer: The model.
        samples: As `benchmark.samples` gives them.
        out: Gets a folder with the benchmark's name, with the plain run's files and a folder for each other variant.
        variants: Ways to ask; they share decoded clips and the vision tower's work.
        limit: How many samples of each task these are, if not all.
        retry_failed: Ask again where there was no answer before: the clip could not be read, or the server failed.

    Raises:
        ValueError: if `out` has the results of another run.
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
    shares = Shares(folder / "shares")
    if state.is_main_process:
        shutil.rmtree(shares.folder, ignore_errors=True)  # of a run that was killed
        shares.folder.mkdir()
    state.wait_for_everyone()  # all have read what is there before one of them adds to it
    seconds = _answer(benchmark, answerer, samples, results, shares, state)
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(shares.folder)
    return Collected(benchmark, folder, samples, results, seconds)


def conclude(collected: Collected, judge: Judge | None = None, seed: int = 0) -> dict[str, dict[str, Any]]:
    """
    Makes metrics and reports of the answers. For one process, when all have collected theirs.

    Args:
        judge: For a benchmark that wants one; without it there are answers only.
        seed: Of the intervals' resampling.

    Returns:
        The metrics by variant, as metrics.json has them.

    Raises:
        ValueError: if (nearly) nothing could be answered: that says something of the data, and nothing of the model.
    """
    benchmark, samples, metrics = collected.benchmark, collected.samples, {}
    for variant, result in collected.results.items():
        rows, judging = result.merge(samples), {}
        failed = [row for row in rows if "error" in row]
        if len(failed) > MOST * len(samples):
            raise ValueError(
                f"{benchmark.title}: {len(failed)} of {len(samples)} samples in {result.folder} have no answer; the "
                f"first failed with: {failed[0]['error']}. Nothing is scored; --retry-failed tries them again"
            )
        if benchmark.score == "caption":
            score_captions(rows)
            result.save()
        elif benchmark.score == "judge" and judge is not None:
            try:
                judging = judge.judge(benchmark, rows)
            finally:
                result.save()
        before = read_metrics(result.folder)  # of the run that gave the answers, where this one had none to give
        metrics[variant.name] = {
            "benchmark": benchmark.name,
            "variant": variant.name,
            **summarise(benchmark, samples, rows, seed),
            **_judged(rows, judging, before),
            "run": result.run,
            "time": before["time"] if before and not collected.time["answered"] else collected.time,
            **environment(seed),
        }
        replace_file(result.folder / "metrics.json", json.dumps(metrics[variant.name], indent=2) + "\n")
    write_report(benchmark, collected.folder)
    return metrics


def _judged(rows: Sequence[Row], spent: dict[str, Any], before: Metrics | None) -> dict[str, dict[str, Any]]:
    """Who judged, and what that took; what it took before, if all grades were there already."""
    if "judge" not in rows[0]:
        return {}
    judge, known = rows[0]["judge"], (before or {}).get("judge", {})
    return {"judge": known if not any(spent.values()) and judge.items() <= known.items() else {**judge, **spent}}


def _answer(
    benchmark: Benchmark,
    answerer: Answerer,
    samples: Sequence[Sample],
    results: dict[Variant, Results],
    shares: Shares,
    state: PartialState,
) -> dict[str, float]:
    """Collects the answers that are missing; a bar shows how far, and how many of them are right. Gives the times."""
    done = sum(result.is_done(sample) for result in results.values() for sample in samples)
    began, answered, right, failed = time.perf_counter(), 0, [], 0
    answerer.seconds = Seconds()
    total = len(samples) * len(results)
    with tqdm(
        total=total, initial=done, desc=benchmark.title, unit="answer", disable=not state.is_main_process
    ) as bar:
        for variant, answers in answerer.answers(
            benchmark, samples, list(results), lambda variant, sample: results[variant].is_done(sample), shares.take
        ):
            rows = [scored_row(benchmark, sample, answer) for sample, answer in answers]
            results[variant].append(rows)
            answered += len(rows)
            failed += sum("error" in row for row in rows)
            right += [row["correct"] for row in rows if "correct" in row and variant == PLAIN]
            accuracy = {"accuracy": f"{sum(right) / len(right):.1%}"} if right else {}
            bar.update(min(len(rows) * state.num_processes, total - bar.n))  # the others go on at about the same pace
            bar.set_postfix(failed=failed, **accuracy)
    return times(answered, time.perf_counter() - began, answerer.seconds, state.num_processes)


def times(
    answered: int = 0, seconds: float = 0.0, parts: Seconds | None = None, processes: int = 1
) -> dict[str, float]:
    """What collecting answers took, as metrics.json has it; by default, of answers that were there."""
    parts = parts or Seconds()
    return {
        "answered": answered,
        "seconds": seconds,
        "model_seconds": parts.model,
        "decode_seconds": parts.decode,
        "waited_for_clips_seconds": parts.waited,
        "processes": processes,
    }
