"""
Reproduce a cell of the paper's tables. The run is an ordinary one (`suite.py`), and its folder of results gets three
more files: `lock.json`, what the first run found for the entries of the lock; and `reproduction.md` and
`reproduction.json`, the paper's figures beside the run's, and what differs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files import read_object, replace_file
from ...result_files.formatting import markdown_table, measure_title
from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Sample
from ..controls_and_sweeps import PLAIN
from ..models.local_model import LocalModel
from ..scoring.judge import Judge
from ..suite import evaluate_suite
from .data import Data
from .differences import UNSET, Entry, check_lock, find_settings, list_differences
from .figures import CANNOT_TELL, OUTSIDE, WITHIN, Figure, compare_figures
from .frames import digest_frames
from .lock import Lock

NO_VALUE = "-"


@dataclass(frozen=True)
class Reproduction:
    """
    Args:
        title: What was reproduced, for people.
        figures: All figures of the cell.
        differences: In what the run differs from the lock and the paper, as lines of text.
        entries: The lock's entries, with what the run had for each.
    """

    cell: str
    title: str
    figures: list[Figure]
    differences: list[str]
    entries: list[Entry]


def reproduce(
    lock: Lock,
    benchmark: Benchmark,
    answerer: LocalModel,
    data: Data,
    samples: list[Sample],
    out: Path,
    judge: Judge | None = None,
    limit: int | None = None,
    retry_failed: bool = False,
) -> tuple[Path, Reproduction] | None:
    """
    Evaluate a model on a cell's samples, compare the figures, and write the evidence. All processes of a distributed
    run call this. A run that was stopped continues.

    Args:
        lock: The cell's.
        benchmark: The lock's.
        data: Where the samples come from.
        samples: From [`read_locked_samples`] with the same `limit`.
        out: Gets a folder of results at the cell's address, `out`/table2/7b/mvbench.
        judge, limit, retry_failed: See [`evaluate_suite`].

    Returns:
        The folder of results, and what is written there; in other processes than the main one None.

    Raises:
        ValueError: if another run is writing to the folder, it has the results of a different run, or (nearly) all
            samples failed.
    """
    parent = out / Path(lock.cell).parent
    options = {"judge": judge, "limit": limit, "retry_failed": retry_failed}
    results = list(evaluate_suite([benchmark], [samples], answerer, parent, **options))
    if not results:  # not the main process
        return None
    ((folder, variants),) = results
    metrics, video_processor = variants[PLAIN.name], answerer.processor.video_processor
    frame_digest = digest_frames(samples, video_processor, answerer.num_workers) if limit is None else None
    found = find_settings(lock, benchmark, answerer, data, metrics, frame_digest)
    entries = check_lock(lock, found, _record(lock, found, folder / "lock.json"))
    reproduction = Reproduction(
        lock.cell,
        f"{lock.paper_row} on {benchmark.title}",
        compare_figures(lock, benchmark, metrics),
        list_differences(entries, benchmark, metrics),
        entries,
    )
    replace_file(folder / "reproduction.json", json.dumps(asdict(reproduction), indent=1) + "\n")
    replace_file(folder / "reproduction.md", format_reproduction(reproduction) + "\n")
    return folder, reproduction


def _record(lock: Lock, found: dict[str, Any], file: Path) -> dict[str, Any]:
    """Write what this run found, except where an earlier run has found something, and return what earlier runs had."""
    earlier = read_object(file, "found")["found"] if file.exists() else {}
    known = {name: value for name, value in earlier.items() if value is not None}
    content = {"cell": lock.cell, "lock": lock.entries(), "found": {**found, **known}}
    replace_file(file, json.dumps(content, indent=1) + "\n")
    return known


# --- for people ------------------------------------------------------------------------------------------------------


def format_reproduction(reproduction: Reproduction) -> str:
    """Return a page in Markdown."""
    entries, unset = reproduction.entries, [each.name for each in reproduction.entries if each.status == UNSET]
    rows = [[each.name, _show(each.locked), _show(each.found), each.status] for each in entries]
    parts = [
        f"# {reproduction.cell}: {reproduction.title}",
        _summary(reproduction.figures),
        _figure_table(reproduction.figures),
        "## What differs",
        "\n".join(f"- {each}" for each in reproduction.differences) or "Nothing.",
        "## The lock",
        markdown_table(["entry", "locked", "here", "status"], rows, text_columns=range(4)),
        f"Recorded in lock.json, since no value is locked yet: {', '.join(unset)}." if unset else None,
    ]
    return "\n\n".join(part for part in parts if part)


def _summary(figures: Sequence[Figure]) -> str:
    counts = {verdict: sum(each.verdict == verdict for each in figures) for verdict in (WITHIN, OUTSIDE, CANNOT_TELL)}
    return (
        f"Of {len(figures)} figures of the paper, {counts[WITHIN]} lie within the 95 % interval of this run, and "
        f"{counts[OUTSIDE]} outside it; {counts[CANNOT_TELL]} cannot be compared. The paper's values are rounded: an "
        "interval is wider by half a unit of their last digit at both ends."
    )


def _figure_table(figures: Sequence[Figure]) -> str:
    rows = []
    for each in figures:
        digits = 1 if each.measure.startswith("accuracy") else 2
        ours = NO_VALUE if each.ours is None else f"{each.ours:.{digits}f}"
        ends = f" [{', '.join(f'{end:.{digits}f}' for end in each.interval)}]" if each.interval else ""
        paper, reason = f"{each.paper:.{each.digits}f}", f": {each.reason}" if each.reason else ""
        rows.append([each.name, measure_title(each.measure), paper, ours + ends, each.verdict + reason])
    return markdown_table(["figure", "measure", "paper", "this run", "verdict"], rows, text_columns=(0, 1, 4))


def _show(value: Any) -> str:
    return NO_VALUE if value is None else str(value)
