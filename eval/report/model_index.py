"""The results of a run in the two forms that the Hub reads: a card's `model-index`, and `.eval_results`."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from ...files import replace_file
from ...origins import published_name
from ...result_files.folders import MEASURES, PROBLEMS, UNITS, Metrics
from ...result_files.formatting import (
    ExactNumber,
    exact_in_unit,
    format_mean,
    main_measure,
    measure_title,
    model_name,
)
from ..benchmarks.benchmark import Benchmark


def write_model_index(benchmark: Benchmark, metrics: Metrics, file: Path) -> None:
    """
    Write all measures of a run as a `model-index`: what cards on the Hub are made from. Values are in the units that
    people read, with all digits of metrics.json. `huggingface_hub.repocard_data.model_index_to_eval_results` reads it.
    """
    settings = _settings(metrics)
    results = []

    def add(values: Metrics, measure: str, title: str, **details: Any) -> None:
        ends = values[f"{measure}_ci"]
        results.append(
            EvalResult(
                task_type="video-text-to-text",
                dataset_type=benchmark.hub or benchmark.name,
                dataset_name=benchmark.title,
                dataset_config=benchmark.name,  # tells apart what several declarations take from one dataset
                dataset_args=settings,
                metric_type="accuracy" if measure.startswith("accuracy") else measure,
                metric_name=title,
                metric_value=exact_in_unit(measure, values[measure]),
                metric_args={"interval_95": ends and [exact_in_unit(measure, end) for end in ends], **details},
            )
        )

    for measure in MEASURES.values():
        if measure in metrics:
            has_chance = measure == "accuracy" and "chance" in metrics
            add(
                metrics,
                measure,
                measure_title(measure),
                **({"chance": exact_in_unit(measure, metrics["chance"])} if has_chance else {}),
            )
    aspects = metrics.get("aspects", {})
    for aspect, result in aspects.items() if len(aspects) > 1 else ():
        counts = {name: result[name] for name in ("graded", "judge_failed")}
        add(result, "score", f"{aspect} ({UNITS['score']})", **counts)
    name = model_name(metrics["run"].get("adapter") or metrics["run"]["model"])
    index = eval_results_to_model_index(name, results)
    replace_file(file, yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True))


def write_eval_results(benchmark: Benchmark, metrics: Metrics, file: Path) -> None:
    """Write the main measure of a run on all samples for the benchmark's leaderboard on the Hub, if there is one."""
    if benchmark.hub_benchmark is None or metrics["run"].get("limit") is not None:
        file.unlink(missing_ok=True)  # of an earlier declaration
        return
    measure = main_measure(metrics)
    coverage = f"coverage {metrics['coverage']:.1%} of {metrics['expected']} samples"
    entry = EvalResultEntry(
        dataset_id=benchmark.hub_benchmark["id"],
        task_id=benchmark.hub_benchmark["task_id"],
        value=exact_in_unit(measure, metrics[measure]),
        notes=f"{measure_title(measure)} {format_mean(metrics, measure)}, {coverage}",
    )
    replace_file(file, yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True))


def _settings(metrics: Metrics) -> dict[str, Any]:
    """Return what the values depend on. Of what ran on this computer, paths are left out."""
    run, judge, time = metrics["run"], metrics.get("judge", {}), metrics["time"]
    settings = {
        "coverage_percent": exact_in_unit("accuracy", metrics["coverage"]),
        **{name: metrics.get(name) for name in ("evaluated", "expected", *PROBLEMS)},
        "limit": run.get("limit"),
        "prompt_hash": run.get("prompts"),
        "judge": judge and published_name(judge["model"]),
        "judge_temperature": judge.get("temperature"),
        "judge_prompt_hash": judge.get("prompts"),
        "model_revision": run.get("revision"),
        "adapter_revision": run.get("adapter_revision"),
        **{name: run.get(name) for name in ("alpha", "num_frames", "pooling", "chat_template")},
        **{name: run.get(name) for name in ("dtype", "quantization")},
        "interval_seed": metrics["seed"],
        "hardware": metrics["hardware"],
        "seconds": ExactNumber.of(time["seconds"]),
        **{name: time[name] for name in ("answered", "processes")},
        "versions": metrics["versions"],
    }
    return {name: value for name, value in settings.items() if value is not None and value != {}}
