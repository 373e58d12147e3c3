"""Writes docs/performance.md and its figures from what `benchmarks/run.py` measured, in benchmarks/results."""

import json
import sys
from pathlib import Path
from typing import Any

from jobs import JOBS
from results import FAR, SLOWER, format_table, slow_rows

from pllava.files import replace_file

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = Path(__file__).with_name("results"), ROOT / "docs" / "performance.md"


def read_results() -> dict[str, dict[str, Any]]:
    """Return what was measured, by the name of its file."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))}


def page(results: dict[str, dict[str, Any]]) -> str:
    parts = [INTRODUCTION]
    for measured in results.values():
        parts.append(f"## {heading(measured)}\n\n{circumstances(measured)}")
        parts += [section(name, found) for name, found in measured["jobs"].items()]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = f"""# Performance

Written by `python benchmarks/run.py --write` from `benchmarks/results`; do not edit.

Each job runs beside its peers, at equal shapes and with random weights. In each round every contender runs once, in
turn, in a new process, after a warm-up; a time is the median of the rounds. "ours / this" is our time relative to that
of the row: below 1, ours is faster. "Of the limit" is the share of what the hardware does in the same rounds: the rate
of one large matrix product, the bytes a second of one large copy, or a contender, the floor, which does only what
nobody can leave out. Memory is the peak of the process or of the GPU; "above" is without what was there before the
work, such as the weights. "As ours" compares the result: the frames bit for bit, the answers, the captions. A row that
takes less than {SLOWER - 1:.0%} longer than a peer is called equal; all others, and rows below {FAR:.0%} of the limit,
are explained.

<p><picture>
  <source media="(prefers-color-scheme: dark)" srcset="figures/performance_dark.png">
  <img alt="Our time, relative to each peer's, job by job" src="figures/performance_light.png">
</picture></p>"""


def heading(measured: dict[str, Any]) -> str:
    setting = measured["setting"]
    return f"Size {setting['size']}, {setting['dtype']} on {'a GPU' if setting['device'] == 'cuda' else 'a CPU'}"


def circumstances(measured: dict[str, Any]) -> str:
    machine = measured["machine"]
    hardware = machine.get("gpu") or f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    return f"{hardware}; {measured['setting']['rounds']} rounds, {measured['date']}. Libraries: {versions}."


def section(name: str, found: dict[str, Any]) -> str:
    job = JOBS[name]
    title, _, rest = job.title.partition(": ")
    limits = [f"{found['hardware'][0][kind]:.3g}" for kind in ()]
    parts = [f"### {title}", f"{rest[0].upper()}{rest[1:]}", format_table(name, found), *limits]
    names = {contender for contenders in found["cases"].values() for contender in contenders}
    notes = [f"- {contender} {text}." for contender, text in job.differs.items() if contender in names]
    notes += [f"- {row.contender}, {row.case}: {reason}" for row, reason in slow_rows(name, found)]
    notes += [f"- Left out: {contender}: {reason}." for contender, reason in found["left_out"].items()]
    return "\n\n".join([*parts, "\n".join(notes)] if notes else parts)


def write() -> None:
    """Write the page and its figures."""
    results = read_results()
    replace_file(PAGE, page(results))
    print(f"Wrote {PAGE}")
    sys.path.append(str(ROOT / "docs"))
    from draw_performance import draw_all

    draw_all({heading(measured): measured for measured in results.values()})
