"""
Draw nano's accuracy with different poolings as docs/figures/poolings_light.png and poolings_dark.png, and write the
tables of docs/pooling.md. What was measured is in docs/figures/poolings.json, by benchmarks/poolings.py.

    python docs/draw_poolings.py
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from figure_style import DARK, FIGURES, LIGHT, WIDTH, Theme, save
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from pllava.files import replace_file
from pllava.nano.world.questions import ORDERED_TYPES, UNORDERED_TYPES
from pllava.pooling_pllava import POOLINGS, parse_pooling
from pllava.result_files.formatting import markdown_table

PAGE = Path(__file__).with_name("pooling.md")
# Frames, and rows and columns of patches
PRESETS = {"CLIP-L/336": (16, 24), "SigLIP/384": (16, 27), "CLIP, 50 frames": (50, 24), "CLIP, 128 frames": (128, 24)}
HEIGHT = 820  # CSS pixels
TICKS = (36, 72, 144, 288, 576)  # tokens
TEXT, LABEL = 9, 7.5  # points
Point = dict[str, Any]
Cost = Callable[[Point], list[float]]


@dataclass(frozen=True)
class Series:
    """
    How a pooling is drawn. The colours differ for every form of colour blindness.

    Args:
        light, dark: The colour on a light and on a dark page.
        shift: The factor by which points are moved, so that those with as many tokens do not cover each other.
        label: Where a point's label is.
    """

    marker: str
    light: str
    dark: str
    shift: float
    label: dict[str, Any]


SERIES = {
    "average": Series("o", "#0066b3", "#4db2ff", 0.97, {"xytext": (-5, 2), "ha": "right", "va": "bottom"}),
    "slowfast": Series("s", "#d55e00", "#ff9a4d", 1.0, {"xytext": (0, -6), "ha": "center", "va": "top"}),
    "merge": Series("^", "#00805c", "#4fd6a8", 1.03, {"xytext": (5, 2), "ha": "left", "va": "bottom"}),
}
# Labels that would cover another point or the line, and where they are instead
MOVED_LABELS = {
    "slowfast-4x6x6+16x3x3": {"xytext": (0, 5), "va": "bottom"},
    "average-8x6x6": {"xytext": (-4, -9), "ha": "left", "va": "top"},
    "merge-12x3x3": {"xytext": (5, -2), "va": "top"},
}


def tokens(point: Point) -> list[float]:
    return [SERIES[point["pooling"].split("-")[0]].shift * point["tokens"]] * 3


def milliseconds(point: Point) -> list[float]:
    """The quartiles of the time up to the first word."""
    return [1000 * seconds for seconds in point["seconds"]["total"]]


def draw(results: dict[str, Any], theme: Theme) -> None:
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.text)
    switched_off = dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
    style = {"axes.edgecolor": theme.line, "grid.color": theme.quiet, "axes.axisbelow": True}
    with rc_context({**colours, **switched_off, **style, "font.size": TEXT, "axes.titlesize": TEXT}):
        figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), layout="constrained")
        top, *rows = figure.subfigures(3, 1, height_ratios=(2, 1, 1), hspace=0.04)
        by_tokens, by_time = top.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
        for axes, cost in ((by_tokens, tokens), (by_time, milliseconds)):
            draw_panel(axes, results, "all", cost, theme)
            draw_frontier(axes, results["points"], cost, theme)
        by_tokens.set(xlabel="tokens of a clip", ylabel="correct answers to all questions (%)", xlim=(20, 800))
        by_time.set(xlabel="milliseconds up to the first word")
        label_points(by_tokens, results, theme)
        titles = "questions that need the order of the frames (%)", "questions that do not, and captions (%)"
        for row, title, kinds in zip(rows, titles, (ORDERED_TYPES, (*UNORDERED_TYPES, "caption")), strict=True):
            row.suptitle(title, fontsize=TEXT)
            panels = row.subplots(1, len(kinds), sharey=True)
            for axes, kind in zip(panels, kinds, strict=True):
                draw_panel(axes, results, kind, tokens, theme)
                axes.set(title=kind, ylim=(-3, 105))
        handles, names = panels[0].get_legend_handles_labels()
        (best,) = by_time.lines[-1:]
        figure.legend([*handles, best], [*names, "best at this cost"], loc="outside upper center", ncols=5)
        save(figure, "poolings", theme)


def draw_panel(axes: Axes, results: dict[str, Any], kind: str, cost: Cost, theme: Theme) -> None:
    """Draw the accuracy of all poolings over their cost, both with their intervals."""
    for name, series in SERIES.items():
        points = [point for point in results["points"] if point["pooling"].startswith(name)]
        low, x, high = np.array([cost(point) for point in points]).T
        y, worst, best = 100 * np.array([point["accuracy"][kind] for point in points]).T
        style = {"color": getattr(series, theme.name), "marker": series.marker, "markersize": 5, "elinewidth": 1}
        axes.errorbar(x, y, (y - worst, best - y), (x - low, high - x), linestyle="none", label=name, **style)
    if kind in results["chance"]:
        axes.axhline(100 * results["chance"][kind], color=theme.muted, linestyle=":", linewidth=1, label="chance")
    axes.grid(axis="y", linewidth=0.8)
    if cost is tokens:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def label_points(axes: Axes, results: dict[str, Any], theme: Theme) -> None:
    outline = [withStroke(linewidth=2, foreground=theme.page)]
    for point in results["points"]:
        name, shape = point["pooling"].split("-")
        shape = shape.replace("+", "\n+") + "\nas trained" * (point["pooling"] == results["trained_with"])
        style = {"color": getattr(SERIES[name], theme.name), "fontsize": LABEL, "path_effects": outline}
        place = {"xy": (tokens(point)[0], 100 * point["accuracy"]["all"][0]), "textcoords": "offset points"}
        side = SERIES[name].label | MOVED_LABELS.get(point["pooling"], {})
        axes.annotate(shape, **place, **style, **side)


def draw_frontier(axes: Axes, points: list[Point], cost: Cost, theme: Theme) -> None:
    """Draw the best accuracy that each cost allows."""
    points = sorted(points, key=lambda point: cost(point)[1])
    best = accumulate((100 * point["accuracy"]["all"][0] for point in points), max)
    axes.step([cost(point)[1] for point in points], list(best), where="post", color=theme.line, linewidth=1, zorder=1)


def presets() -> str:
    """The preset shapes and their numbers of tokens."""
    rows = []
    for name in POOLINGS:
        poolings = [parse_pooling(name, *sizes) for sizes in PRESETS.values()]
        shapes = [f"{str(pooling).removeprefix(f'{name}-')}: {pooling.num_tokens:,}" for pooling in poolings]
        rows.append([f"`{name}`", *shapes])
    return markdown_table(["", *PRESETS], rows)


def costs(results: dict[str, Any]) -> str:
    """Accuracy, tokens and time of each pooling."""
    rows = []
    for point in results["points"]:
        cost = [f"{point['at_7b']['tokens']:,}", f"{sum(point['at_7b']['teraflop'].values()):.0f}"]
        accuracy = percent(point, ("all", "caption"))
        rows.append([f"`{point['pooling']}`", *accuracy, str(point["tokens"]), f"{milliseconds(point)[1]:.1f}", *cost])
    return markdown_table(["pooling", "all", "caption", "tokens", "ms", "tokens at 7B", "TFLOP at 7B"], rows)


def types(results: dict[str, Any]) -> str:
    """Accuracy by type of question."""
    kinds = (*ORDERED_TYPES, *UNORDERED_TYPES)
    rows = [[f"`{point['pooling']}`", *percent(point, kinds)] for point in results["points"]]
    return markdown_table(["pooling", *kinds], rows)


def percent(point: Point, kinds: Sequence[str]) -> list[str]:
    return [f"{100 * point['accuracy'][kind][0]:.0f}" for kind in kinds]


def write_table(name: str, table: str) -> None:
    """Write a table between its marks in the page."""
    begin, end = f"<!-- {name}: written by docs/draw_poolings.py -->\n\n", f"\n\n<!-- end of {name} -->"
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    replace_file(PAGE, f"{before}{begin}{table}{end}{rest.split(end)[1]}")


def main() -> None:
    results = json.loads((FIGURES / "poolings.json").read_text(encoding="utf-8"))
    for theme in (LIGHT, DARK):
        draw(results, theme)
    write_table("presets", presets())
    write_table("costs", costs(results))
    write_table("types", types(results))
    print(f"Wrote the tables in {PAGE}")


if __name__ == "__main__":
    main()
