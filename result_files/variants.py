"""The results of a run's variants, its controls and sweeps, from their folders in the folder of the run."""

from pathlib import Path
from typing import Any

from ..pooling_pllava import parse_pooling
from .folders import CONTROLS, LOCATION_SETTINGS, OLDER_SETTINGS, SWEPT_SETTINGS, Metrics, read_metrics
from .formatting import format_mean, format_value, main_measure, markdown_table, measure_title, sorted_tasks

Points = list[tuple[float | str, Metrics]]  # the values of a swept setting, in ascending order, and their metrics


def read_controls(folder: Path, run: Metrics) -> tuple[dict[str, Metrics], str | None]:
    """Return the metrics of a run's controls by title, and a note on the controls of other runs."""
    controls = {name: metrics for name in CONTROLS if (metrics := read_metrics(folder / name))}
    comparable, note = _keep_comparable(controls, run, "control")
    return {CONTROLS[name]: metrics for name, metrics in comparable.items()}, note


def read_sweeps(folder: Path) -> dict[str, Points]:
    """
    Return the points of each setting that was swept. A sweep consists of the value that was written last, and of those
    that differ from it in this setting alone.
    """
    return {setting: points for setting in SWEPT_SETTINGS if (points := read_sweep(folder, setting)[0])}


def read_sweep(folder: Path, setting: str) -> tuple[Points, str | None]:
    """Return the points of one setting, and a note on the values that other runs left in the folder."""
    files = sorted(folder.glob(f"{setting}=*/metrics.json"), key=lambda file: file.stat().st_mtime_ns)
    results = {file.parent.name: metrics for file in files if main_measure(metrics := read_metrics(file.parent))}
    if not results:
        return [], None
    comparable, note = _keep_comparable(results, list(results.values())[-1], setting)
    points = [(metrics["run"][setting], metrics) for metrics in comparable.values()]
    return sorted(points, key=lambda point: _place(point[0])), note


def format_sweep(setting: str, points: Points) -> str:
    """Return a table in Markdown of the main measure, overall and by task, with a column for each value."""
    measure = main_measure(points[0][1])
    titles = [value if isinstance(value, str) else f"{value:g}" for value, _ in points]
    rows = [
        ["coverage", *(f"{metrics['coverage']:.1%}" for _, metrics in points)],
        ["**all** [95 % interval]", *(format_mean(metrics, measure) for _, metrics in points)],
    ]
    tasks = sorted_tasks(points[-1][1], measure)
    for task in tasks if len(tasks) > 1 else []:
        means = [metrics["per_task"][task].get(measure) for _, metrics in points]
        rows.append([task, *("" if mean is None else format_value(measure, mean) for mean in means)])
    return markdown_table([f"{measure_title(measure)} by {setting}", *titles], rows)


def format_gains(metrics: Metrics, controls: dict[str, Metrics], measure: str) -> str:
    """Return a sentence on how much better the run is than each of its controls."""
    gains = {title: metrics[measure] - control[measure] for title, control in controls.items() if measure in control}
    text = ", ".join(f"{format_value(measure, gain)} over {title}" for title, gain in gains.items())
    title = measure_title(measure)
    return f"Gain from the whole video in {title}: {text}. Where it is small, the questions do not need the video."


def _place(value: float | str) -> tuple[float, str]:
    """The place of a swept value: that of a pooling is its number of tokens."""
    return (parse_pooling(value).num_tokens, value) if isinstance(value, str) else (value, "")


def _keep_comparable(results: dict[str, Metrics], run: Metrics, varied: str) -> tuple[dict[str, Metrics], str | None]:
    """Keep the results that differ from a run in the varied setting alone. Returns a note on the others."""
    settings = _settings(run, varied)
    comparable = {name: metrics for name, metrics in results.items() if _settings(metrics, varied) == settings}
    others = ", ".join(name for name in results if name not in comparable)
    why = "Left out because they come from another model, other samples or other settings"
    return comparable, f"{why}: {others}." if others else None


def _settings(metrics: Metrics, varied: str) -> dict[str, Any]:
    """The settings that answers depend on. None equals a missing key, as in files older than the setting."""
    ignored, settings = {varied, *LOCATION_SETTINGS}, OLDER_SETTINGS | metrics["run"]
    return {name: value for name, value in settings.items() if value is not None and name not in ignored}
