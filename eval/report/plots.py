"""Plots of a run: its tasks, and the sweeps of its settings. Each is drawn for light and for dark pages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from ...pooling_pllava import parse_pooling
from ...result_files.folders import Metrics
from ...result_files.formatting import (
    format_value,
    in_unit,
    main_measure,
    measure_title,
    run_name,
    sorted_tasks,
    unit_maximum,
)
from ...result_files.variants import Points
from ..benchmarks.benchmark import Benchmark
from .paper import PAPER

WIDTH = 8  # inches
LEGEND_CHARACTERS = 40  # in a line of the legend: a longer name is wrapped
MUTED_MARKERS = "s^Dv"  # the main line has circles
PAPER_FRAMES = 4  # in figure 7


@dataclass(frozen=True)
class Theme:
    """The colours of a plot, and the suffix of its file's name."""

    suffix: str
    page: str
    text: str
    grid: str
    model: str  # the only strong colour; it differs from the greys for every form of colour blindness
    muted: tuple[str, ...]  # greys for everything beside the model, from the strongest to the weakest

    @property
    def rc_params(self) -> dict[str, Any]:
        texts = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
        return {
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), self.page),
            **dict.fromkeys(texts, self.text),
            **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
            "axes.edgecolor": self.muted[-1],
            "grid.color": self.grid,
            "axes.axisbelow": True,
            "font.size": 10,
            "figure.constrained_layout.w_pad": 0.1,  # inches
            "savefig.dpi": 120,
        }


LIGHT = Theme("", "#ffffff", "#1f2328", "#dde1e6", "#0066b3", ("#3f464d", "#656c74", "#888f96", "#abb1b8"))
DARK = Theme("_dark", "#0d1117", "#e6edf3", "#2b323a", "#4db2ff", ("#c9d1d9", "#a0a8b0", "#7a828b", "#596169"))


def save_plot(draw: Callable[[Theme], Figure], file: Path, page: Path | None = None) -> str:
    """
    Save FILE.png and FILE_dark.png. Figures made without pyplot are drawn by Agg, which needs no display.

    Args:
        page: The Markdown file that shows the picture; by default, one beside it.

    Returns:
        Markdown for GitHub and the Hub that shows the picture that fits the page.
    """
    for theme in (LIGHT, DARK):
        with rc_context(theme.rc_params):
            draw(theme).savefig(file.with_name(f"{file.stem}{theme.suffix}.png"))
    link = file.relative_to((page or file).parent).with_suffix("").as_posix()
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{link}{DARK.suffix}.png">'
    return f'<picture>{dark}<img alt="{file.stem.replace("_", " ")}" src="{link}.png"></picture>'


# --- tasks -----------------------------------------------------------------------------------------------------------


def plot_tasks(columns: dict[str, Metrics], measure: str, file: Path) -> str:
    """
    Plot a bar for each task, from the best to the worst, below the bar for all of them. Returns Markdown.

    Args:
        columns: The metrics of the run, then of its controls, by title.
    """
    return save_plot(lambda theme: _draw_tasks(columns, measure, theme), file)


def _draw_tasks(columns: dict[str, Metrics], measure: str, theme: Theme) -> Figure:
    (title, run), *controls = columns.items()
    tasks = sorted_tasks(run, measure)
    rows = [("all", run)] * (len(tasks) > 1) + [(task, run["per_task"][task]) for task in tasks]
    # Each control is a thin bar below the run's: beside it, bars of equal size would draw as much attention
    thick, thin = (0.34, min(0.46 / len(controls), 0.15)) if controls else (0.62, 0.0)
    figure = Figure(figsize=(WIDTH, 1.1 + len(rows) * (0.5 if controls else 0.32)), layout="constrained")
    axes = figure.subplots()
    centers = [index + 0.25 * (index > 0) for index in range(len(rows))]  # a gap below "all"
    tops = [center - (thick + len(controls) * thin) / 2 for center in centers]
    values = [in_unit(measure, metrics.get(measure, 0)) for _, metrics in rows]
    axes.barh(tops, values, thick, align="edge", color=theme.model, label=fill(title, LEGEND_CHARACTERS))
    for top, value, (_, metrics) in zip(tops, values, rows, strict=True):
        if interval := metrics.get(f"{measure}_ci"):
            low, high = (in_unit(measure, end) for end in interval)
            axes.hlines(top + thick / 2, low, value, color=theme.page, linewidth=1.2)  # on the bar
            axes.hlines(top + thick / 2, value, high, color=theme.text, linewidth=1.2)  # beside it
    for index, (control, metrics) in enumerate(controls):
        results = [metrics if task == "all" else metrics["per_task"].get(task, {}) for task, _ in rows]
        known = [(top, result[measure]) for top, result in zip(tops, results, strict=True) if measure in result]
        edges = [top + thick + (index + 0.15) * thin for top, _ in known]
        lengths = [in_unit(measure, value) for _, value in known]
        axes.barh(edges, lengths, 0.85 * thin, align="edge", color=theme.muted[index], label=control)
    legend = list(axes.containers)
    chances = [(center, each["chance"]) for center, (_, each) in zip(centers, rows, strict=True) if "chance" in each]
    if chances and measure == "accuracy":
        x, low, high = zip(*((100 * chance, center - 0.44, center + 0.44) for center, chance in chances), strict=True)
        axes.vlines(x, low, high, color=theme.page, linewidth=3)  # an outline, to be visible on bars too
        legend.append(axes.vlines(x, low, high, color=theme.text, linestyle=":", linewidth=1.4, label="chance"))
    axes.set_yticks(centers, [task for task, _ in rows])
    if len(rows) > 1:
        axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set(xlim=(0, unit_maximum(measure)), ylim=(centers[-1] + 0.5, -0.5), xlabel=measure_title(measure))
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", linewidth=0.6)
    labels = axes.secondary_yaxis("right")
    labels.set_yticks(centers, [format_value(measure, each[measure]) if measure in each else "" for _, each in rows])
    labels.tick_params(right=False, labelcolor=theme.model)
    labels.spines["right"].set_visible(False)
    figure.legend(handles=legend, loc="outside upper center", ncols=3 if len(legend) > 4 else len(legend))
    return figure


# --- sweeps ----------------------------------------------------------------------------------------------------------


def plot_sweep(benchmark: Benchmark, setting: str, points: Points, file: Path) -> str:
    """Plot the main measure over the values of a setting. Returns Markdown."""
    draw = _draw_alpha if setting == "alpha" else _draw_pooling
    measure = main_measure(points[0][1])
    return save_plot(lambda theme: draw(benchmark, points, measure, theme), file)


def _draw_alpha(benchmark: Benchmark, points: Points, measure: str, theme: Theme) -> Figure:
    """As in the paper's figure 9."""
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    axes = figure.subplots()
    _draw_lines(axes, {fill(run_name(points[0][1]["run"], "alpha"), LEGEND_CHARACTERS): points}, measure, theme)
    if best := PAPER["best_alpha"].get(benchmark.paper):
        axes.axvline(best, linestyle=":", color=theme.muted[0], label="best in the paper")
    _label_axes(axes, "alpha", measure)
    return figure


def _draw_pooling(benchmark: Benchmark, points: Points, measure: str, theme: Theme) -> Figure:
    """Over the tokens of a clip, with a line for each pooling; of one path, for each number of frames left."""
    lines: dict[str, Points] = {}
    for value, metrics in points:
        pooling = parse_pooling(value)
        frames = f", {pooling.shapes[0][0]} frames" if pooling.num_paths == 1 else ""
        lines.setdefault(pooling.name + frames, []).append((pooling.num_tokens, metrics))
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    axes = figure.subplots()
    _draw_lines(axes, lines, measure, theme)
    if published := PAPER["spatial_pooling"].get(benchmark.paper):  # figure 7
        tokens = [PAPER_FRAMES * int(side) ** 2 for side in published]
        label = f"average, {PAPER_FRAMES} frames, in the paper"
        axes.plot(tokens, list(published.values()), ":", color=theme.muted[0], label=label)
    _label_axes(axes, "tokens of a clip", measure)
    return figure


def _draw_lines(axes: Axes, lines: dict[str, Points], measure: str, theme: Theme) -> None:
    """Draw the line with the most points in the model's colour and the others muted, each point with its interval."""
    main = max(reversed(lines), key=lambda title: len(lines[title]))
    muted = [title for title in lines if title != main]
    for title, points in lines.items():
        color, marker, width, order, shift = theme.model, "o", 2.0, 3, 0.0
        if title != main:
            index = muted.index(title)
            color, marker, width, order = theme.muted[index % 3], MUTED_MARKERS[index % len(MUTED_MARKERS)], 1.0, 2
            shift = (index + 1) / 16  # inches to the right, so that intervals at one value do not overlap
        xs, ys = [x for x, _ in points], [in_unit(measure, metrics[measure]) for _, metrics in points]
        artists = axes.plot(xs, ys, color=color, marker=marker, linewidth=width, zorder=order, label=title)
        for x, metrics in points:
            if interval := metrics[f"{measure}_ci"]:
                low, high = (in_unit(measure, end) for end in interval)
                artists.append(axes.vlines(x, low, high, color=color, linewidth=1, zorder=order))
        for artist in artists:  # only now, since an artist with a transform is ignored in the limits of the axes
            artist.set_transform(axes.transData + ScaledTranslation(shift, 0, axes.figure.dpi_scale_trans))
    if measure == "accuracy" and "chance" in points[0][1]:
        axes.axhline(100 * points[0][1]["chance"], linestyle="--", linewidth=1, color=theme.text, label="chance")


def _label_axes(axes: Axes, title: str, measure: str) -> None:
    integers = all(float(x).is_integer() for line in axes.lines for x in line.get_xdata())
    axes.xaxis.set_major_locator(MaxNLocator(integer=integers, min_n_ticks=1))
    axes.set(xlabel=title, ylabel=measure_title(measure))
    axes.grid(axis="y", linewidth=0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
