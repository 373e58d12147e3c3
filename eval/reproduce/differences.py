"""What differs between a run and the lock of a cell, and between the run and the paper."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...loading import load_config
from ...origins import published_name
from ...result_files.folders import Metrics
from ...result_files.formatting import format_problems
from ..benchmarks.benchmark import Benchmark
from ..models.local_model import LocalModel
from ..report.paper import wording_and_judge
from .data import Data
from .lock import Lock

AS_LOCKED, DIFFERS, UNSET, UNCHECKED = "as locked", "differs", "not locked yet", "not checked"
AS_RECORDED, CHANGED = "as in the first run", "not as in the first run"


@dataclass(frozen=True)
class Entry:
    """
    An entry of a lock, beside what a run had.

    Args:
        locked: The lock's value or, if it has none, that of the first run; None before the first run.
        found: The run's value; None if it is unknown, or says nothing about the locked one.
        status: One of the six above.
    """

    name: str
    locked: Any
    found: Any
    status: str


def find_settings(
    lock: Lock, benchmark: Benchmark, answerer: LocalModel, data: Data, metrics: Metrics, frame_digest: str | None
) -> dict[str, Any]:
    """
    Return what a run had for each entry of its lock. None is unknown, or says nothing about the lock: the commit of
    another model or dataset, digests of some of the samples, and a judge where nothing was judged.
    """
    run, judge = metrics["run"], metrics.get("judge", {})
    model, revision, alpha = _describe_weights(run)
    complete = run["limit"] is None
    return {
        "model": model,
        "model_revision": revision if model == lock.model else None,
        "alpha": alpha,
        **{name: run[name] for name in ("dtype", "num_frames", "sampling", "pooling")},
        "template_family": answerer.template_family or "the model's own template",
        "data": data.name,
        "data_revision": data.revision,
        "samples": metrics["expected"],
        "prompt_hash": run["prompts"],
        "max_new_tokens": benchmark.max_new_tokens,
        "sample_digest": run["samples"] if complete else None,
        "frame_digest": frame_digest,
        "judge": judge.get("model"),
        "judge_temperature": judge.get("temperature"),
        "judge_prompt_hash": judge.get("prompts"),
    }


def _describe_weights(run: Mapping[str, Any]) -> tuple[str, str | None, float | None]:
    """Return the name, the commit and the alpha of a run's weights: of a converted model, those of its source."""
    name, local = run["model"], os.path.isdir(run["model"])
    origin = load_config(name, revision=None if local else run["revision"]).origin or {}
    model, revision = published_name(name), run["revision"]
    if local and model == origin.get("source", {}).get("repo_id"):
        revision = origin["source"].get("revision")
    if not run["adapter"]:
        return model, revision, origin.get("alpha")
    return f"{model} with the adapter {published_name(run['adapter'])}", revision, run["alpha"]


def check_lock(lock: Lock, found: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[Entry]:
    """
    Compare what a run had with its lock.

    Args:
        found: From [`find_settings`].
        recorded: The same of the first run, against which entries are checked that the lock does not have.
    """
    entries = []
    for name, value in lock.entries().items():
        locked = recorded.get(name) if value is None else value
        if found[name] is None:
            status = UNCHECKED
        elif locked is None:
            status = UNSET
        elif value is None:
            status = AS_RECORDED if found[name] == locked else CHANGED
        else:
            status = AS_LOCKED if found[name] == locked else DIFFERS
        entries.append(Entry(name, locked, found[name], status))
    return entries


def list_differences(entries: Sequence[Entry], benchmark: Benchmark, metrics: Metrics) -> list[str]:
    """Return in what a run differs from its lock and from the paper, as lines of text."""
    places = {DIFFERS: "in the lock", CHANGED: "in the first run"}
    differing = [each for each in entries if each.status in places]
    lines = [f"{each.name}: {each.locked} {places[each.status]}, {each.found} here" for each in differing]
    if any(each.name == "judge_prompt_hash" and each.status == AS_LOCKED for each in entries):
        lines.append("wording of the judge's instructions: ours, not the paper's")
    return [*lines, *_differences_from_paper(benchmark, metrics)]


def _differences_from_paper(benchmark: Benchmark, metrics: Metrics) -> Iterator[str]:
    run = metrics["run"]
    if (wording := wording_and_judge(benchmark, metrics)["wording"]) != "the paper's":
        yield f"wording of the questions: {wording}"
    if metrics.get("judged") is False:
        yield "judge: there was none, so no answer has a score"
    if run["quantization"]:
        yield f"quantization: {run['quantization']}"
    if run["limit"] is not None:
        yield f"limit: {run['limit']} of each task's samples"
    if metrics["coverage"] < 1:
        yield f"coverage: {metrics['evaluated']:,} of {metrics['expected']:,} samples were evaluated"
    if problems := format_problems(metrics):
        yield f"problems: {', '.join(problems)}"
    if benchmark.score == "multiple_choice" and "accuracy_legacy" not in metrics:
        yield "scoring: strict, since the original's matcher finds an option in no answer"
