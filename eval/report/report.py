"""The report of a benchmark's results: report.md with tables and plots, and model-index.yaml for a model's card."""

from collections.abc import Iterable
from pathlib import Path

from ...files import replace_file
from ...result_files.folders import MEASURES, SWEPT_SETTINGS, UNITS, Metrics, read_metrics
from ...result_files.formatting import (
    format_mean,
    format_problems,
    format_value,
    main_measure,
    markdown_table,
    measure_title,
    model_name,
    run_name,
    sorted_tasks,
)
from ...result_files.variants import format_gains, format_sweep, read_controls, read_sweep
from ..benchmarks.benchmark import Benchmark
from .model_index import write_eval_results, write_model_index
from .paper import paper_table, wording_and_judge
from .plots import plot_sweep, plot_tasks

LEGACY_NOTE = "by the original's matcher, which compares first words only; for comparison with published results"


def write_report(benchmark: Benchmark, folder: Path) -> None:
    """Write report.md and its plots for a run, its controls and its sweeps; for the run also model-index.yaml."""
    run = read_metrics(folder)
    sections: list[str | None] = [f"# {benchmark.title}", *(_run_sections(benchmark, run, folder) if run else [])]
    swept: dict[str, Metrics] = {}
    for setting in SWEPT_SETTINGS:
        points, left_out = read_sweep(folder, setting)
        if points:
            swept[setting] = points[0][1]
            heading = f"## {run_name(swept[setting]['run'], setting)} by {setting}"
            plot = plot_sweep(benchmark, setting, points, folder / f"sweep_{setting}.png")
            sections += [heading, format_sweep(setting, points), left_out, plot]
    if run:
        sections.append(_settings_section(run))
    elif swept:
        sections.append(_settings_section(next(iter(swept.values())), without=swept))
    else:
        return
    replace_file(folder / "report.md", "\n\n".join(section for section in sections if section) + "\n")


def _run_sections(benchmark: Benchmark, metrics: Metrics, folder: Path) -> list[str | None]:
    measure = main_measure(metrics)
    if measure is None:
        not_judged = "The answers were not judged: pass `--judge`."
        return [_coverage_text(metrics), not_judged if metrics.get("judged") is False else "There are no scores."]
    write_model_index(benchmark, metrics, folder / "model-index.yaml")
    write_eval_results(benchmark, metrics, folder / "eval-results.yaml")
    controls, left_out = read_controls(folder, metrics)
    columns = {run_name(metrics["run"]): metrics, **controls}
    return [
        _coverage_text(metrics),
        _measures_table(benchmark, metrics),
        plot_tasks(columns, measure, folder / "per_task.png"),
        _task_table(columns, measure),
        left_out,
        format_gains(metrics, controls, measure) if controls else None,
        paper_table(benchmark, metrics),
    ]


def _coverage_text(metrics: Metrics) -> str:
    run = metrics["run"]
    base = f" on {model_name(run['model'])}" if run.get("adapter") else ""
    counts = f"{metrics['evaluated']} of {metrics['expected']} samples evaluated"
    text = f"**{run_name(run)}**{base}: coverage {metrics['coverage']:.1%}, {counts}."
    if problems := format_problems(metrics):
        text += f"\nProblems: {', '.join(problems)}."
    if metrics.get("unreadable") or metrics.get("empty"):
        text += " Unreadable clips and empty answers count as wrong, with score 0."
    if metrics.get("judge_failed"):
        text += " Answers that the judge failed to grade are left out of the means."
    return text


def _measures_table(benchmark: Benchmark, metrics: Metrics) -> str:
    """All measures of the run and a judge's aspects. Each row says whether wording and judge are the paper's."""
    values = {}
    for measure in MEASURES.values():
        title = measure_title(measure)
        note = f", {LEGACY_NOTE}" if measure == "accuracy_legacy" else ""
        if measure in metrics:
            values[title + note] = format_mean(metrics, measure)
        if f"{measure}_over_grades" in metrics:
            values[f"{title}, mean over all grades"] = format_value(measure, metrics[f"{measure}_over_grades"])
    for aspect, result in metrics.get("aspects", {}).items():
        title = f"{aspect} ({UNITS['score']}; {result['graded']} graded, {result['judge_failed']} failed)"
        values[title] = format_mean(result, "score")
    notes = wording_and_judge(benchmark, metrics)
    heads = ["measure", "value [95 % interval]", *notes]
    rows = [[title, value, *notes.values()] for title, value in values.items()]
    table = markdown_table(heads, rows, text_columns=[index for index in range(len(heads)) if index != 1])
    if benchmark.score == "multiple_choice" and "accuracy_legacy" not in metrics:
        table += "\n\nNo accuracy_legacy: the original's matcher looks for an option's letter, and no answer has one."
    return table


def _task_table(columns: dict[str, Metrics], measure: str) -> str:
    """The main measure by task, in the order of the plot, with a column for the run and for each control."""
    run, *_ = columns.values()
    heads = [f"{title}, {measure_title(measure)}" if column is run else title for title, column in columns.items()]
    rows = []
    for title, task in [*((task, task) for task in sorted_tasks(run, measure)), ("**all**", None)]:
        results = [column["per_task"].get(task, {}) if task else column for column in columns.values()]
        coverage = [str(results[0]["expected"]), f"{results[0]['coverage']:.1%}"]
        rows.append([title, *coverage, *(format_mean(result, measure) for result in results)])
    return markdown_table(["task", "samples", "coverage", *heads], rows)


def _settings_section(metrics: Metrics, without: Iterable[str] = ()) -> str:
    """The settings, software and time of a run, except the settings that were swept."""
    settings = {name: value for name, value in metrics["run"].items() if name not in without}
    if judge := metrics.get("judge"):
        settings["judge"] = ", ".join(f"{name} {value}" for name, value in judge.items() if value is not None)
    settings["versions"] = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    settings["hardware"] = metrics["hardware"]
    settings["seed of the intervals"] = metrics["seed"]
    time = metrics["time"]
    share = f" (of the first of {time['processes']} processes)" if time["processes"] > 1 else ""
    settings["time"] = (
        f"{time['seconds']:.1f} s for {time['answered']} answers{share}: {time['model_seconds']:.1f} s in the model, "
        f"{time['waited_for_clips_seconds']:.1f} s waiting for clips; the workers decoded for "
        f"{time['decode_seconds']:.1f} s in total"
    )
    lines = [f"- {name}: {value}" for name, value in settings.items() if value not in (None, "")]
    return "\n".join(["## Settings", "", *lines])
