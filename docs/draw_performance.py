"""
Draw our time relative to each peer's, job by job, as docs/figures/performance_light.png and performance_dark.png.
`python benchmarks/run.py --write` calls it.
"""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
from figure_style import DARK, LIGHT, WIDTH, Theme, save
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from measuring import FLOOR, OURS
from report import JOBS, rows

TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2)
ROW, MARGIN, TEXT = 21, 110, 8  # CSS pixels of a line, and of what is around them; points
MARKERS = "os^Dv"


def dots(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str, float, float, float]]:
    """Yield what was measured, the job, the peer, and the ratio of our time to its time: median, least and most."""
    for name, measured in results.items():
        for job, found in measured["jobs"].items():
            for row in rows(job, found):
                if not row.contender.startswith((OURS, FLOOR)):
                    ours = [each["seconds"] for each in found["cases"][row.case][OURS]]
                    theirs = [each["seconds"] for each in found["cases"][row.case][row.contender]]
                    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
                    yield name, job, row.contender, row.ratio, min(ratios), max(ratios)


def draw(results: dict[str, dict[str, Any]], theme: Theme) -> None:
    found = list(dots(results))
    lines = sorted(dict.fromkeys((job, peer) for _, job, peer, *_ in found), key=lambda line: [*JOBS].index(line[0]))
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.text)
    style = {"axes.edgecolor": theme.line, "grid.color": theme.quiet, "axes.axisbelow": True, "font.size": TEXT}
    switched_off = dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left", "legend.frameon"), False)
    with rc_context({**colours, **style, **switched_off}):
        figure = Figure(figsize=(WIDTH / 100, (MARGIN + ROW * len(lines)) / 100), layout="constrained")
        axes = figure.subplots()
        shades = dict(zip(results, cycle((theme.strong, theme.muted, theme.text)), strict=False))
        for number, name in enumerate(results):
            points = [point for point in found if point[0] == name]
            y = [lines.index((job, peer)) + 0.22 * (number - (len(results) - 1) / 2) for _, job, peer, *_ in points]
            x, low, high = zip(*[point[3:] for point in points], strict=True)
            spread = np.maximum([np.subtract(x, low), np.subtract(high, x)], 0)
            marker = {"fmt": MARKERS[number], "color": shades[name], "markersize": 4.5, "elinewidth": 1}
            axes.errorbar(x, y, xerr=spread, label=name, **marker)
        label(axes, lines, theme)
        figure.legend(loc="outside upper center", ncols=2)
        save(figure, "performance", theme)


def label(axes: Axes, lines: list[tuple[str, str]], theme: Theme) -> None:
    axes.set(
        xscale="log", ylim=(len(lines) - 0.5, -0.5), xlabel="our time / the peer's time: left of 1, ours is faster"
    )
    axes.set_yticks(range(len(lines)), [f"{job.replace('_', ' ')}: {peer}" for job, peer in lines])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.axvline(1, color=theme.line, linewidth=1)
    axes.grid(axis="both", linewidth=0.8)


def draw_all(results: dict[str, dict[str, Any]]) -> None:
    for theme in (LIGHT, DARK):
        draw(results, theme)
