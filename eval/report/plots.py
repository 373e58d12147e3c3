"""Pictures of a run: its tasks, and the sweeps of its settings. Each is drawn twice, for light and for dark pages."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..benchmarks.benchmark import Benchmark
from ..scoring.summary import Metrics
from .formatting import format_value, measure_title, on_scale, run_name, scale_end

PAPER = json.loads(Path(__file__).with_name("paper_results.json").read_text(encoding="utf-8"))
PEAKS = {"mvbench": 20, "vcg": 4}  # where the paper's figure 9 finds the best alpha
FIGURE_7 = {"mvbench": "figure7_spatial_mvbench", "vcg": "figure7_spatial_vcg"}
MARKERS = "s^Dv"  # of what is muted; the model has circles
WIDTH = 8  # of a picture, in inches
LABEL = 40  # characters of a name in a line of the legend: for more columns than one there is room beside them


@dataclass(frozen=True)
class Theme:
    """
    Args:
        suffix: Of the file's name.
        page: The background.
        text: What is read on it.
        grid: The lines behind bars and points.
        model: The one strong colour, which no form of colour blindness takes for a grey.
        muted: The greys of what stands beside the model, the strongest first.
    """

    suffix: str
    page: str
    text: str
    grid: str
    model: str
    muted: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """As matplotlib's rcParams."""
        texts = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
        return {
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), self.page),
            **dict.fromkeys(texts, self.text),
            "axes.edgecolor": self.muted[-1],
            "grid.color": self.grid,
            **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
            "axes.axisbelow": True,
            "font.size": 10,
            "savefig.dpi": 120,
        }


LIGHT = Theme("", "#ffffff", "#1f2328", "#dde1e6", "#0066b3", ("#3f464d", "#656c74", "#888f96", "#abb1b8"))
DARK = Theme("_dark", "#0d1117", "#e6edf3", "#2b323a", "#4db2ff", ("#c9d1d9", "#a0a8b0", "#7a828b", "#596169"))


def save(draw: Callable[[Theme], Figure], file: Path) -> str:
    """
    Draws FILE.png and FILE_dark.png. A figure made without pyplot is drawn by Agg, which needs no display.

    Returns:
        What shows the one that fits the page, in Markdown for GitHub and the Hub.
    """
    for theme in (LIGHT, DARK):
        with rc_context(theme.settings):
            draw(theme).savefig(file.with_name(f"{file.stem}{theme.suffix}.png"))
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{file.stem}{DARK.suffix}.png">'
    return f'<picture>{dark}<img alt="{file.stem.replace("_", " ")}" src="{file.name}"></picture>'


# --- tasks -----------------------------------------------------------------------------------------------------------


def plot_tasks(columns: dict[str, Metrics], name: str, file: Path) -> str:
    """
    Bars by task, the best one first, all of them together above. Gives the Markdown that shows the picture.

    Args:
        columns: The model's own metrics first, then those of the controls, by what they are called.
        name: The measure.
    """
    return save(lambda theme: _draw_tasks(columns, name, theme), file)


def sorted_tasks(found: Metrics, name: str) -> list[str]:
    """The tasks by what they were worth, the best first; those without a figure last, as they came."""
    return sorted(found["per_task"], key=lambda task: -found["per_task"][task].get(name, -1))


def _draw_tasks(columns: dict[str, Metrics], name: str, theme: Theme) -> Figure:
    (title, model), *controls = columns.items()
    tasks = sorted_tasks(model, name)
    rows = [("all", model)] * (len(tasks) > 1) + [(task, model["per_task"][task]) for task in tasks]
    # Below the model's bar a thin one for each control: in rows, beside it they would be as loud as it is
    thick, thin = (0.62, 0.0) if not controls else (0.34, min(0.46 / len(controls), 0.15))
    figure = Figure(figsize=(WIDTH, 1.1 + len(rows) * (0.5 if controls else 0.32)), layout="constrained")
    panel = figure.subplots()
    places = [number + (0.25 if number and len(rows) > 1 else 0) for number in range(len(rows))]
    top = [place - (thick + len(controls) * thin) / 2 for place in places]
    values = [on_scale(name, found.get(name, 0)) for _, found in rows]
    panel.barh(top, values, thick, align="edge", color=theme.model, label=fill(title, LABEL))
    for place, value, (_, found) in zip(top, values, rows, strict=True):
        if interval := found.get(f"{name}_ci"):
            low, high = (on_scale(name, end) for end in interval)
            for ends, color in (((low, value), theme.page), ((value, high), theme.text)):  # on the bar, and beside it
                panel.plot(ends, [place + thick / 2] * 2, color=color, linewidth=1.2, solid_capstyle="butt")
    for number, (control, metrics) in enumerate(controls):
        found = [metrics if task == "all" else metrics["per_task"].get(task, {}) for task, _ in rows]
        known = [(place, each[name]) for place, each in zip(top, found, strict=True) if name in each]
        edges = [place + thick + (number + 0.15) * thin for place, _ in known]
        lengths = [on_scale(name, value) for _, value in known]
        panel.barh(edges, lengths, 0.85 * thin, align="edge", color=theme.muted[number], label=control)
    chances = [(place, found["chance"]) for place, (_, found) in zip(places, rows, strict=True) if "chance" in found]
    for number, (place, chance) in enumerate(chances if name == "accuracy" else ()):
        ends = [place - 0.44, place + 0.44]
        panel.plot([100 * chance] * 2, ends, color=theme.page, linewidth=3)  # a rim, to be seen on bars too
        label = "chance" if number == 0 else None
        panel.plot([100 * chance] * 2, ends, ":", color=theme.text, linewidth=1.4, label=label)
    panel.set_yticks(places, [task for task, _ in rows])
    if len(rows) > 1:
        panel.get_yticklabels()[0].set_fontweight("bold")
    panel.set(ylim=(places[-1] + 0.5, -0.5), xlabel=measure_title(name))
    panel.set_xlim(0, scale_end(name))
    panel.tick_params(left=False)
    panel.spines["left"].set_visible(False)
    panel.grid(axis="x", linewidth=0.6)
    figures = panel.secondary_yaxis("right")
    figures.set_yticks(places, [format_value(name, found[name]) if name in found else "" for _, found in rows])
    figures.tick_params(right=False, labelcolor=theme.model)
    figures.spines["right"].set_visible(False)
    handles, labels = panel.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda number: labels[number] == "chance")  # the bars in their order first
    figure.legend(
        [handles[number] for number in order],
        [labels[number] for number in order],
        loc="outside upper center",
        ncols=3 if len(labels) > 4 else len(labels),
    )
    return figure


# --- sweeps ----------------------------------------------------------------------------------------------------------

Points = list[tuple[Any, Metrics]]


def plot_sweep(benchmark: Benchmark, setting: str, points: Points, name: str, file: Path) -> str:
    """The measure over the values of a setting. Gives the Markdown that shows the picture."""
    draw = _draw_alpha if setting == "alpha" else _draw_pooling
    return save(lambda theme: draw(benchmark, points, name, theme), file)


def _draw_alpha(benchmark: Benchmark, points: Points, name: str, theme: Theme) -> Figure:
    """As the paper's figure 9."""
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    panel = figure.subplots()
    _draw_lines(panel, {fill(run_name(points[0][1]["run"], "alpha"), LABEL): points}, name, theme)
    if benchmark.paper in PEAKS:
        panel.axvline(PEAKS[benchmark.paper], linestyle=":", color=theme.muted[0], label="the paper's best")
    panel.set(xlabel="alpha", ylabel=measure_title(name))
    _finish(figure, [panel])
    return figure


def _draw_pooling(benchmark: Benchmark, points: Points, name: str, theme: Theme) -> Figure:
    """As the paper's figure 7: over the side of the spatial pooling, where shapes have one, and the pooled frames."""
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    by_frames, by_side = {}, {}
    for (frames, height, width), found in points:
        by_side.setdefault(f"{height} x {width} a frame", []).append((frames, found))
        if height == width:
            by_frames.setdefault(f"{frames} frames", []).append((height, found))
    panels = figure.subplots(1, 2 if by_frames else 1, sharey=True, squeeze=False)[0]
    if by_frames:
        _draw_lines(panels[0], by_frames, name, theme)
        panels[0].set(xlabel="side of the spatial pooling")
    if by_frames and benchmark.paper in FIGURE_7:
        known = PAPER[FIGURE_7[benchmark.paper]]["points"]
        sides = [int(side) for side in known]
        panels[0].plot(sides, list(known.values()), ":", color=theme.muted[0], label="the paper, 4 frames")
    _draw_lines(panels[-1], by_side, name, theme)
    panels[-1].set(xlabel="pooled frames")
    panels[0].set(ylabel=measure_title(name))
    _finish(figure, panels)
    return figure


def _draw_lines(panel: Axes, lines: dict[str, Points], name: str, theme: Theme) -> None:
    """The line of most points in the model's colour, each with its interval; the others muted."""
    most = max(reversed(lines), key=lambda title: len(lines[title]))
    muted = [title for title in lines if title != most]
    for title, points in lines.items():
        color, marker, width = theme.model, "o", 2.0
        if title != most:
            number = muted.index(title)
            color, marker, width = theme.muted[number % 3], MARKERS[number % len(MARKERS)], 1.0
        places, order = [place for place, _ in points], 3 if title == most else 2
        values = [on_scale(name, found[name]) for _, found in points]
        panel.plot(places, values, color=color, marker=marker, linewidth=width, zorder=order, label=title)
        for place, found in points:
            if interval := found[f"{name}_ci"]:
                ends = [on_scale(name, end) for end in interval]
                panel.plot([place] * 2, ends, color=color, linewidth=1, zorder=order)
    if name == "accuracy" and "chance" in points[0][1]:
        panel.axhline(100 * points[0][1]["chance"], linestyle="--", linewidth=1, color=theme.text, label="chance")


def _finish(figure: Figure, panels: Sequence[Axes]) -> None:
    for panel in panels:
        whole = all(float(place).is_integer() for line in panel.lines for place in line.get_xdata())
        panel.xaxis.set_major_locator(MaxNLocator(integer=whole, min_n_ticks=1))
        panel.grid(axis="y", linewidth=0.6)
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
