"""What an inspection of training data found, as files and as text."""

import json
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

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
    figure = Figure(figsize=(4 * len(measures), 2.4 * len(reports)), layout="constrained")
    panels = figure.subplots(len(reports), len(measures), squeeze=False)
    for row, report in zip(panels, reports, strict=True):
        for panel, measure in zip(row, measures, strict=True):
            panel.hist(report.values(measure), bins=40)
            panel.set(xlabel=measure, ylabel="samples" if measure == "tokens" else "clips")
        row[0].set_title(report.source.title, loc="left")
    figure.savefig(file)


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
