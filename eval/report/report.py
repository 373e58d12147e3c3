"""What people read of a run: a report with tables and plots, and the metadata for a model's card."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from ...files import replace_file
from ..benchmarks.benchmark import Benchmark, digest, load_prompts
from ..controls_and_sweeps import CONTROLS, parse_sweep
from ..scoring.summary import MEASURES, UNITS, Metrics
from ..store import LOCATION_SETTINGS, read_metrics
from .formatting import PROBLEMS, format_value, main_measure, measure_title, model_name, on_scale, run_name
from .plots import PAPER, Points, plot_sweep, plot_tasks, sorted_tasks

LEGACY = "by the original's matcher, which compares first words; for comparison with published figures"


def write_report(benchmark: Benchmark, folder: Path) -> None:
    """Of a run, its controls and its sweeps: report.md and its pictures; of the run itself model-index.yaml too."""
    plain, sweeps = read_metrics(folder), read_sweeps(folder)
    sections = [f"# {benchmark.title}"]
    if plain:
        sections += _plain_sections(benchmark, plain, folder)
    for setting, points in sweeps.items():
        name = main_measure(points[0][1])
        picture = plot_sweep(benchmark, setting, points, name, folder / f"sweep_{setting}.png")
        title = f"## {run_name(points[0][1]['run'], setting)} by {setting}"
        sections += [title, format_sweep(setting, points), *_read_sweep(folder, setting)[1], picture]
    if plain or sweeps:
        found = plain or next(iter(sweeps.values()))[0][1]
        settings = {name: value for name, value in found["run"].items() if plain or name not in sweeps}
        sections.append(_how(found, settings))
        replace_file(folder / "report.md", "\n\n".join(sections) + "\n")


def _plain_sections(benchmark: Benchmark, plain: Metrics, folder: Path) -> list[str]:
    name = main_measure(plain)
    if name is None:
        why = "The answers were not judged: name a `--judge`." if "judged" in plain else "There is nothing to score."
        return [_what(plain), why]
    asked = {key: found for key in CONTROLS if (found := read_metrics(folder / key))}
    asked, left_out = _of_the_run(asked, plain, "control")
    controls = {CONTROLS[key]: found for key, found in asked.items()}
    columns = {run_name(plain["run"]): plain, **controls}
    _write_model_index(benchmark, plain, folder / "model-index.yaml")
    return [
        _what(plain),
        _figures(benchmark, plain),
        plot_tasks(columns, name, folder / "per_task.png"),
        _table(columns, name),
        *left_out,
        *([_controls_note(plain, controls, name)] if controls else []),
        *([paper] if (paper := _paper_table(benchmark, plain)) else []),
    ]


def _of_the_run(found: dict[str, Metrics], run: Metrics, varied: str) -> tuple[dict[str, Metrics], list[str]]:
    """Those that differ from a run in one setting alone, and what to say of the others, if there are any."""
    alike = {name: each for name, each in found.items() if _settings(each, varied) == _settings(run, varied)}
    others = ", ".join(name for name in found if name not in alike)
    why = "Left out, as they are of another model, other samples or other settings"
    return alike, [f"{why}: {others}."] if others else []


def _settings(found: Metrics, varied: str) -> dict[str, Any]:
    """What a run's answers depend on, but for what is varied; a setting that is None may as well be missing."""
    return {
        name: value
        for name, value in found["run"].items()
        if value is not None and name != varied and name not in LOCATION_SETTINGS
    }


# --- the report's parts ----------------------------------------------------------------------------------------------


def _what(plain: Metrics) -> str:
    run = plain["run"]
    base = f" on {model_name(run['model'])}" if run.get("adapter") else ""
    lines = [
        f"**{run_name(run)}**{base}: coverage {plain['coverage']:.1%}, {plain['evaluated']} of "
        f"{plain['expected']} samples evaluated."
    ]
    found = [f"{plain[name]} {name.replace('_', ' ')}" for name in PROBLEMS if plain.get(name)]
    if found:
        lines.append(
            f"Counted: {', '.join(found)}. What is unreadable or empty is in the denominators, as wrong or as 0; what "
            "the judge failed at is in none."
        )
    return "\n".join(lines)


def _figures(benchmark: Benchmark, plain: Metrics) -> str:
    """All measures of the run, a judge's aspects, and whether they were come by as the paper's."""
    notes = _like_the_paper(benchmark, plain)
    lines = [f"| {' | '.join(['measure', 'value [95 % interval]', *notes])} |", "|---|---:|" + "---|" * len(notes)]

    def add(title: str, value: str) -> None:
        lines.append(f"| {' | '.join([title, value, *notes.values()])} |")

    for name in MEASURES.values():
        about = f", {LEGACY}" if name == "accuracy_legacy" else ""
        if name in plain:
            add(measure_title(name) + about, format_value(name, plain[name], plain[f"{name}_ci"]))
        if f"{name}_over_grades" in plain:
            add(f"{measure_title(name)}, mean over all grades", format_value(name, plain[f"{name}_over_grades"]))
    for aspect, found in plain.get("aspects", {}).items():
        value = format_value("score", found["score"], found["score_ci"])
        add(f"{aspect} ({UNITS['score']}; {found['graded']} graded, {found['judge_failed']} failed)", value)
    if benchmark.score == "multiple_choice" and "accuracy_legacy" not in plain:
        lines.append("\nNo accuracy_legacy: the original's matcher looks for an option's letter; no answer has one.")
    return "\n".join(lines)


def _like_the_paper(benchmark: Benchmark, plain: Metrics) -> dict[str, str]:
    """Whether the wording of the questions and the judge are the paper's, where it has this benchmark."""
    if benchmark.paper is None:
        return {}
    told = [benchmark.wording.get(name, "") for name in ("system", "question")]
    if digest(["".join(text.split()) for text in told]) in PAPER["wording"].get(benchmark.prompts, []):
        wording = "the paper's"
    elif benchmark.wording == load_prompts().get(benchmark.prompts, {}):
        wording = "ours, not the paper's"
    else:
        wording = "of `--prompts`, not the paper's"
    if "judge" not in plain:
        return {"wording": wording}
    judge = plain["judge"]["model"]
    whose = "the paper's" if judge == PAPER["judge"] else f"not the paper's, {PAPER['judge']}"
    return {"wording": wording, "judge": f"{judge}: {whose}"}


def _table(columns: dict[str, Metrics], name: str) -> str:
    """The main measure by task, in the picture's order, a column for each way to ask."""
    total = next(iter(columns.values()))
    heads = [f"{title}, {measure_title(name)}" if column is total else title for title, column in columns.items()]
    lines = [f"| task | samples | coverage | {' | '.join(heads)} |", "|---|---:|---:|" + "---:|" * len(columns)]
    for task in sorted_tasks(total, name):
        found = total["per_task"][task]
        cells = [_cell(column["per_task"].get(task, {}), name) for column in columns.values()]
        lines.append(f"| {task} | {found['expected']} | {found['coverage']:.1%} | {' | '.join(cells)} |")
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
    rows = dict(PAPER[benchmark.paper])
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
            f"They were judged by {PAPER['judge']}, this run by {plain['judge']['model']}: scores of different judges "
            "cannot be compared, nor those of one that is told other words."
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


def _how(plain: Metrics, settings: dict[str, Any]) -> str:
    seconds = plain["time"]
    lines = ["## How", ""]
    lines += [f"- {name}: {value}" for name, value in settings.items() if value not in (None, "")]
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


def _write_model_index(benchmark: Benchmark, plain: Metrics, file: Path) -> None:
    """The metrics as a model's card takes them, in the unit that their names say."""
    run = plain["run"]
    source = {
        "coverage": f"{plain['coverage']:.1%}",
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
            metric_name=measure_title(measure),
            metric_value=round(on_scale(measure, plain[measure]), 2),
        )
        for measure in MEASURES.values()
        if measure in plain
    ]
    index = eval_results_to_model_index(model_name(run.get("adapter") or run["model"]), results)
    replace_file(file, yaml.safe_dump({"model-index": index}, sort_keys=False))


# --- sweeps ----------------------------------------------------------------------------------------------------------


def read_sweeps(folder: Path) -> dict[str, Points]:
    """
    The metrics of the values in `folder` of each setting that was swept, in the order of the values: of those that
    were written last, and of others that differ from them in that setting alone.
    """
    return {setting: points for setting in ("alpha", "pooling_shape") if (points := _read_sweep(folder, setting)[0])}


def _read_sweep(folder: Path, setting: str) -> tuple[Points, list[str]]:
    """The points of a setting, and what to say of those that are left out."""
    files = sorted(folder.glob(f"{setting}=*/metrics.json"), key=lambda file: file.stat().st_mtime_ns)
    found = {file.parent.name: each for file in files if main_measure(each := read_metrics(file.parent))}
    if not found:
        return [], []
    alike, left_out = _of_the_run(found, list(found.values())[-1], setting)
    points = [(getattr(variant, setting), each) for name, each in alike.items() for variant in parse_sweep(name)]
    return sorted(points, key=lambda point: point[0]), left_out


def format_sweep(setting: str, points: Points) -> str:
    """A table in Markdown: the main measure over all and by task, a column for each value of the setting."""
    name = main_measure(points[0][1])
    titles = ["x".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" for value, _ in points]
    tasks = sorted_tasks(points[-1][1], name)
    rows = {
        "coverage": [f"{found['coverage']:.1%}" for _, found in points],
        "**all** [95 % interval]": [_cell(found, name) for _, found in points],
    }
    for task in tasks if len(tasks) > 1 else []:
        values = [found["per_task"][task].get(name) for _, found in points]
        rows[task] = ["" if value is None else format_value(name, value) for value in values]
    lines = [f"| {measure_title(name)} by {setting} | {' | '.join(titles)} |", "|---|" + "---:|" * len(points)]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items())])
