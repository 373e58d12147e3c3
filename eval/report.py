"""What people read of a run: a report with tables and plots, and the metadata for a model's card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index
from matplotlib.figure import Figure

from ..files import replace_file
from .benchmark import Benchmark
from .results import read_metrics
from .summary import MEASURES, PROBLEMS, format_value, main_measure
from .variants import CONTROLS, parse_sweep

PAPER = Path(__file__).with_name("paper.json")
PEAKS = {"mvbench": 20, "vcg": 4}  # where the paper's figure 9 finds the best alpha
FIGURE_7 = {"mvbench": "figure7_spatial_mvbench", "vcg": "figure7_spatial_vcg"}
Metrics = dict[str, Any]


def write_report(benchmark: Benchmark, folder: Path) -> None:
    """report.md, per_task.png and model-index.yaml of a plain run and the controls that are beside it."""
    plain = read_metrics(folder)
    if plain is None:
        return
    name = main_measure(plain)
    controls = {title: found for key, title in CONTROLS.items() if (found := read_metrics(folder / key))}
    sections = [f"# {benchmark.title}", _what(plain)]
    if name is None:
        why = "The answers were not judged: name a `--judge`." if "judged" in plain else "There is nothing to score."
        sections.append(why)
    else:
        columns = {"video" if controls else name: plain, **controls}
        sections += [_figures(plain), _table(columns, name)]
        if controls:
            sections.append(_controls_note(plain, controls, name))
        if paper := _paper_table(benchmark, plain):
            sections.append(paper)
        _plot_tasks(columns, name, folder / "per_task.png")
        sections.append("![by task](per_task.png)")
        _write_model_index(benchmark, plain, folder / "model-index.yaml")
    sections.append(_how(plain))
    replace_file(folder / "report.md", "\n\n".join(sections) + "\n")


# --- the report's parts ----------------------------------------------------------------------------------------------


def _what(plain: Metrics) -> str:
    run = plain["run"]
    adapter = f", adapter `{run['adapter']}` at alpha {run['alpha']:g}" if run.get("adapter") else ""
    lines = [
        f"`{run['model']}`{adapter}: **coverage {plain['coverage']:.1%}**, {plain['evaluated']} of "
        f"{plain['expected']} samples evaluated."
    ]
    found = [f"{plain[name]} {name.replace('_', ' ')}" for name in PROBLEMS if plain.get(name)]
    if found:
        lines.append(
            f"Counted: {', '.join(found)}. What is unreadable or empty is in the denominators, as wrong or as 0; what "
            "the judge failed at is in none."
        )
    return "\n".join(lines)


def _figures(plain: Metrics) -> str:
    """All measures of the run, and a judge's aspects."""
    lines = ["| measure | value [95 % interval] |", "|---|---:|"]
    for name in MEASURES.values():
        if name in plain:
            lines.append(f"| {name} | {format_value(name, plain[name], plain[f'{name}_ci'])} |")
        if f"{name}_over_grades" in plain:
            lines.append(f"| {name}, mean over all grades | {format_value(name, plain[f'{name}_over_grades'])} |")
    for aspect, found in plain.get("aspects", {}).items():
        value = format_value("score", found["score"], found["score_ci"])
        lines.append(f"| {aspect} ({found['graded']} graded, {found['judge_failed']} failed) | {value} |")
    return "\n".join(lines)


def _table(columns: dict[str, Metrics], name: str) -> str:
    """The main measure by task, a column for each way to ask."""
    lines = [f"| task | samples | coverage | {' | '.join(columns)} |", "|---|---:|---:|" + "---:|" * len(columns)]
    for task, found in next(iter(columns.values()))["per_task"].items():
        cells = [_cell(column["per_task"].get(task, {}), name) for column in columns.values()]
        lines.append(f"| {task} | {found['expected']} | {found['coverage']:.1%} | {' | '.join(cells)} |")
    total = next(iter(columns.values()))
    cells = [_cell(column, name) for column in columns.values()]
    lines.append(f"| **all** | {total['expected']} | {total['coverage']:.1%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Metrics, name: str) -> str:
    return format_value(name, found[name], found[f"{name}_ci"]) if name in found else ""


def _controls_note(plain: Metrics, controls: dict[str, Metrics], name: str) -> str:
    needs = {title: plain[name] - control[name] for title, control in controls.items() if name in control}
    said = ", ".join(f"{format_value(name, difference)} over {title}" for title, difference in needs.items())
    return f"What the video, whole and in order, adds: {said}. Where that is little, the questions do not need it."


def _paper_table(benchmark: Benchmark, plain: Metrics) -> str | None:
    """The paper's rows, and this run's in the same columns."""
    if benchmark.paper is None:
        return None
    rows = dict(json.loads(PAPER.read_text(encoding="utf-8"))[benchmark.paper])
    columns = rows.pop("columns")
    ours = _paper_columns(benchmark, plain)
    kept = [place for place, column in enumerate(columns) if column in ours]
    if not kept:
        return None
    lines = [
        f"| | {' | '.join(columns[place] for place in kept)} |",
        "|---|" + "---:|" * len(kept),
        f"| **this run** | {' | '.join(ours[columns[place]] for place in kept)} |",
        *(f"| {row} | {' | '.join(str(values[place]) for place in kept)} |" for row, values in rows.items()),
    ]
    notes = ["The other rows are the paper's (arXiv 2404.16994)."]
    if plain.get("judge"):
        notes.append(
            f"They were judged by GPT-3.5 with other words, this run by {plain['judge']['model']}: scores of "
            "different judges cannot be compared."
        )
    if "score_over_grades" in plain:
        notes.append(
            "The paper's average is about the mean over all grades, in which the three aspects of the generic "
            "questions weigh more; so it stands in its column here."
        )
    return "\n".join(lines) + "\n\n" + " ".join(notes)


def _paper_columns(benchmark: Benchmark, plain: Metrics) -> dict[str, str]:
    """What this run has for the paper's columns, by their names."""
    if "aspects" in plain and "score_over_grades" in plain:
        aspects = {name: format_value("score", found["score"]) for name, found in plain["aspects"].items()}
        return {**aspects, "average": format_value("score", plain["score_over_grades"])}
    values = {}
    for task, found in plain["per_task"].items():
        short = benchmark.tasks[task].get("short")
        if "score" in found:
            values[f"{short}_score"] = format_value("score", found["score"])
        if "accuracy" in found:
            values[short] = values[f"{short}_acc"] = format_value("accuracy", found["accuracy"])
    return {**values, "Avg": format_value("accuracy", plain["accuracy"])} if "accuracy" in plain else values


def _how(plain: Metrics) -> str:
    run, seconds = plain["run"], plain["time"]
    lines = ["## How", ""]
    lines += [f"- {name}: {value}" for name, value in run.items() if value not in (None, "")]
    if judge := plain.get("judge"):
        lines.append("- judge: " + ", ".join(f"{name} {value}" for name, value in judge.items() if value is not None))
    lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in plain["versions"].items()))
    lines.append(f"- hardware: {plain['hardware']}; seed of the intervals: {plain['seed']}")
    share = f", the share of one of {seconds['processes']} processes" if seconds["processes"] > 1 else ""
    lines.append(
        f"- time: {seconds['answered']} answers in {seconds['seconds']:.1f} s{share}: the model took "
        f"{seconds['model_seconds']:.1f} s and waited {seconds['waited_for_clips_seconds']:.1f} s for clips, whose "
        f"decoding took the workers {seconds['decode_seconds']:.1f} s together"
    )
    return "\n".join(lines)


def _plot_tasks(columns: dict[str, Metrics], name: str, file: Path) -> None:
    """Bars with their intervals. A figure made without pyplot is drawn by Agg, which needs no display."""
    tasks = list(next(iter(columns.values()))["per_task"])
    width = 0.8 / len(columns)
    figure = Figure(figsize=(max(6, 0.5 * len(tasks) * len(columns) ** 0.5 + 2), 4.5), layout="constrained")
    panel = figure.subplots()
    for number, (title, column) in enumerate(columns.items()):
        found = [column["per_task"].get(task, {}) for task in tasks]
        heights = [each.get(name, 0) for each in found]
        ends = [each.get(f"{name}_ci") or (height, height) for each, height in zip(found, heights, strict=True)]
        errors = [[abs(height - end[side]) for height, end in zip(heights, ends, strict=True)] for side in (0, 1)]
        places = [place + width * (number - (len(columns) - 1) / 2) for place in range(len(tasks))]
        panel.bar(places, heights, width, yerr=errors, label=title, error_kw={"linewidth": 0.8})
    panel.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right")
    panel.set_ylabel(name)
    if len(columns) > 1:
        figure.legend(loc="outside upper center", ncols=len(columns))
    figure.savefig(file)


def _write_model_index(benchmark: Benchmark, plain: Metrics, file: Path) -> None:
    """The metrics as a model's card takes them."""
    run = plain["run"]
    source = {
        "coverage": plain["coverage"],
        "samples": plain["expected"],
        "judge": plain.get("judge", {}).get("model"),
    }
    results = [
        EvalResult(
            task_type="video-text-to-text",
            dataset_type=benchmark.hub or benchmark.name,
            dataset_name=benchmark.title,
            dataset_args={key: value for key, value in source.items() if value is not None},
            metric_type="accuracy" if measure.startswith("accuracy") else measure,
            metric_name=measure,
            metric_value=plain[measure],
        )
        for measure in MEASURES.values()
        if measure in plain
    ]
    index = eval_results_to_model_index(Path(run.get("adapter") or run["model"]).name, results)
    replace_file(file, yaml.safe_dump({"model-index": index}, sort_keys=False))


# --- sweeps ----------------------------------------------------------------------------------------------------------


def read_sweeps(folder: Path) -> dict[str, list[tuple[Any, Metrics]]]:
    """The metrics of all values in `folder` of each setting that was swept, in the order of the values."""
    sweeps = {}
    for setting in ("alpha", "pooling_shape"):
        found = {file.parent.name: read_metrics(file.parent) for file in folder.glob(f"{setting}=*/metrics.json")}
        points = [(variant, found[variant.name]) for name in found for variant in parse_sweep(name)]
        points = sorted(((getattr(v, setting), m) for v, m in points if main_measure(m)), key=lambda point: point[0])
        if points:
            sweeps[setting] = points
    return sweeps


def write_sweeps(benchmark: Benchmark, folder: Path) -> None:
    """A table and a figure of each setting that was swept."""
    for setting, points in read_sweeps(folder).items():
        draw = _plot_alpha if setting == "alpha" else _plot_pooling
        draw(benchmark, points, main_measure(points[0][1]), folder / f"sweep_{setting}.png")
        text = (
            f"# {benchmark.title}: {setting}\n\n{format_sweep(setting, points)}\n\n![{setting}](sweep_{setting}.png)\n"
        )
        replace_file(folder / f"sweep_{setting}.md", text)


def format_sweep(setting: str, points: list[tuple[Any, Metrics]]) -> str:
    """A table in Markdown: the main measure of each value, over all and by task."""
    name = main_measure(points[0][1])
    tasks = list(points[0][1]["per_task"])
    tasks = tasks if len(tasks) > 1 else []
    lines = [f"| {setting} | coverage | {name} | {' | '.join(tasks)}{' |' if tasks else ''}"]
    lines.append("|---:|---:|---:|" + "---:|" * len(tasks))
    for value, found in points:
        title = "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"
        cells = [_cell(found, name), *(_cell(found["per_task"][task], name) for task in tasks)]
        lines.append(f"| {title} | {found['coverage']:.1%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _plot_alpha(benchmark: Benchmark, points: list[tuple[float, Metrics]], name: str, file: Path) -> None:
    """As the paper's figure 9: the main measure over alpha."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    _line(panel, [value for value, _ in points], [found for _, found in points], name, "this run")
    if benchmark.paper in PEAKS:
        panel.axvline(PEAKS[benchmark.paper], linestyle=":", color="grey", label="the paper's best")
    panel.set(xlabel="alpha", ylabel=name, title=benchmark.title)
    panel.legend()
    figure.savefig(file)


def _plot_pooling(benchmark: Benchmark, points: list[tuple[Sequence[int], Metrics]], name: str, file: Path) -> None:
    """As the paper's figure 7: the main measure over the side of the spatial pooling, and over the pooled frames."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    spatial, temporal = figure.subplots(1, 2)
    for frames in sorted({shape[0] for shape, _ in points}):
        chosen = [(shape[1], found) for shape, found in points if shape[0] == frames and shape[1] == shape[2]]
        if chosen:
            _line(spatial, *zip(*chosen, strict=True), name, f"{frames} frames")
    for side in sorted({shape[1:] for shape, _ in points}):
        chosen = [(shape[0], found) for shape, found in points if shape[1:] == side]
        _line(temporal, *zip(*chosen, strict=True), name, f"{side[0]} x {side[1]}")
    if benchmark.paper in FIGURE_7:
        known = json.loads(PAPER.read_text(encoding="utf-8"))[FIGURE_7[benchmark.paper]]["points"]
        factor = 0.01 if name == "accuracy" else 1
        values = [factor * value for value in known.values()]
        spatial.plot([int(side) for side in known], values, ":", color="grey", label="the paper, 4 frames")
    spatial.set(xlabel="side of the spatial pooling", ylabel=name, title=benchmark.title)
    temporal.set(xlabel="pooled frames", ylabel=name)
    spatial.legend()
    temporal.legend()
    figure.savefig(file)


def _line(panel: Any, places: Sequence[float], found: Sequence[Metrics], name: str, label: str) -> None:
    values = [each[name] for each in found]
    ends = [each[f"{name}_ci"] or (each[name], each[name]) for each in found]
    errors = [[abs(value - end[side]) for value, end in zip(values, ends, strict=True)] for side in (0, 1)]
    panel.errorbar(places, values, errors, marker="o", capsize=3, label=label)
