"""Write the reports of an inspection as files, and format them as text."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import to_lines
from .inspection import DISTRIBUTIONS, Report


def write_reports(reports: list[Report], model: str, out: Path) -> None:
    """Write inspection.json (the summaries), unreadable.jsonl (all problems) and inspection.png (histograms)."""
    out.mkdir(parents=True, exist_ok=True)
    summary = {"model": model, "sources": [report.summary() for report in reports]}
    (out / "inspection.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = ({"source": report.source.title, **asdict(problem)} for report in reports for problem in report.problems)
    (out / "unreadable.jsonl").write_text(to_lines(rows), encoding="utf-8")
    _draw_histograms(reports, out / "inspection.png")


def _draw_histograms(reports: list[Report], file: Path) -> None:
    """Draw a row of histograms for each source. Without pyplot, the Agg backend is used, which needs no display."""
    measures = ("frames", "seconds", "tokens")
    figure = Figure(figsize=(3.2 * len(measures), 2.2 * len(reports)), layout="constrained")
    panels = figure.subplots(len(reports), len(measures), squeeze=False)
    for row, report in zip(panels, reports, strict=True):
        for panel, measure in zip(row, measures, strict=True):
            values = report.values(measure)
            panel.hist(values, bins=40 if measure == "seconds" else _integer_bins(values), color="#0066b3")
            panel.set(xlabel=measure, ylabel="samples" if measure == "tokens" else "clips")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=measure != "seconds", min_n_ticks=1))
            panel.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            if not values:
                panel.set(xticks=[], yticks=[])
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_title(report.source.title, loc="left")
    figure.savefig(file, dpi=120)


def _integer_bins(values: list[float]) -> np.ndarray:
    """Return the edges of about 40 bins that contain equally many integers each."""
    low, high = min(values, default=0), max(values, default=0)
    width = int((high - low) // 40) + 1
    return np.arange(low, high + width + 1, width) - 0.5


def format_reports(reports: list[Report]) -> str:
    """Format the summaries as tables of plain text."""
    summaries = [report.summary() for report in reports]
    counts = ["source", "samples", "skipped", "malformed", "clips", "images", "missing", "unreadable"]
    distributions = [
        {"source": summary["source"], "measure": measure, **summary[measure]}
        for summary in summaries
        for measure in DISTRIBUTIONS
        if summary[measure]
    ]
    tables = pd.DataFrame(summaries)[counts], pd.DataFrame(distributions)
    return "\n\n".join(table.to_string(index=False, float_format="{:.10g}".format) for table in tables)
