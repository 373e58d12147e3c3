"""What an inspection of training data found, as files and as text."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .inspection import MEASURES, Report


def write_reports(reports: list[Report], model: str, out: Path) -> None:
    """Writes inspection.json (all figures), unreadable.jsonl (the problems of each sample) and inspection.png."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {"model": model, "sources": [report.summary() for report in reports]}
    (out / "inspection.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [{"source": report.source.title, **asdict(problem)} for report in reports for problem in report.problems]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "unreadable.jsonl").write_text(text, encoding="utf-8")
    _draw(reports, out / "inspection.png")


def _draw(reports: list[Report], file: Path) -> None:
    """A row of histograms for each source. A figure made without pyplot is drawn by Agg, which needs no display."""
    measures = MEASURES[:3]
    figure = Figure(figsize=(3.2 * len(measures), 2.2 * len(reports)), layout="constrained")
    panels = figure.subplots(len(reports), len(measures), squeeze=False)
    for row, report in zip(panels, reports, strict=True):
        for panel, measure in zip(row, measures, strict=True):
            values = report.values(measure)
            panel.hist(values, bins=40 if measure == "seconds" else _whole_bins(values), color="#0066b3")
            panel.set(xlabel=measure, ylabel="samples" if measure == "tokens" else "clips")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=measure != "seconds", min_n_ticks=1))
            panel.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            if not values:
                panel.set(xticks=[], yticks=[])
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_title(report.source.title, loc="left")
    figure.savefig(file, dpi=120)


def _whole_bins(values: list[float]) -> np.ndarray:
    """The edges of at most 40 bins, each around as many whole numbers as the others."""
    low, high = min(values, default=0), max(values, default=0)
    width = int((high - low) // 40) + 1
    return np.arange(low, high + width + 1, width) - 0.5


def format_reports(reports: list[Report]) -> str:
    """The figures as a table of plain text."""
    summaries = [report.summary() for report in reports]
    counts = ("source", "samples", "skipped", "malformed", "clips", "images", "missing", "unreadable")
    lines = [list(counts)] + [[str(summary[name]) for name in counts] for summary in summaries]
    spread = [["source", "", "min", "median", "95 %", "max"]]
    for summary in summaries:
        for measure in (measure for measure in MEASURES if summary[measure]):
            spread.append([summary["source"], measure, *(f"{value:.10g}" for value in summary[measure].values())])
    return f"{_aligned(lines, 1)}\n\n{_aligned(spread, 2)}"


def _aligned(lines: list[list[str]], names: int) -> str:
    """Columns as wide as what is in them; the first, `names` of them, begin on the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
