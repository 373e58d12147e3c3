"""What was measured, as rows, as tables, and as docs/performance.md."""

import json
import statistics
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import captioning, data_loading, decode, decode_tokens, evaluation, prefill, preprocess, train_step
from measuring import FLOOR, NO_WARM_UP, OURS, Job, Round

from pllava.files import replace_file
from pllava.result_files.formatting import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = Path(__file__).with_name("results"), ROOT / "docs" / "performance.md"
# In the order of the table
JOBS: dict[str, Job] = {
    module.__name__.removeprefix("jobs."): module.JOB
    for module in (decode, preprocess, prefill, decode_tokens, train_step, evaluation, captioning, data_loading)
}
SLOWER = 1.05  # times a peer's time: a slow row
FAR = 0.5  # of the limit: a slow row
COLUMNS = ["case", "", "time", "least to most", "ours / this", "of the limit", "peak GB", "above GB", "as ours"]


@dataclass(frozen=True)
class Row:
    """
    A contender in a case.

    Args:
        seconds, fastest, slowest: The median and the spread over the rounds.
        ratio: The seconds of ours, relative to those of this contender.
        share: The share of the limit that it reaches; `None` where it does no work of that kind.
        peak, above: Medians of memory in bytes: all of it, and above what was there before the work.
        agrees: Whether its result equals ours; `None` if there is none.
    """

    case: str
    contender: str
    seconds: float
    fastest: float
    slowest: float
    ratio: float
    share: float | None
    peak: float
    above: float
    agrees: bool | None


def rows(name: str, found: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a job's measured values (see `measure_job`)."""
    for case, contenders in found["cases"].items():
        ours = contenders[OURS]
        for contender, rounds in contenders.items():
            times = [each["seconds"] for each in rounds]
            yield Row(
                case,
                contender,
                statistics.median(times),
                min(times),
                max(times),
                _median(ours, "seconds") / statistics.median(times),
                _share(name, rounds, contenders),
                _median(rounds, "peak"),
                _median(rounds, "above"),
                rounds[-1]["result"] == ours[-1]["result"] if "result" in rounds[-1] and contender != OURS else None,
            )


def _share(name: str, rounds: list[Round], contenders: dict[str, list[Round]]) -> float | None:
    limit = JOBS[name].limit
    if limit == FLOOR:
        return _median(contenders[FLOOR], "seconds") / _median(rounds, "seconds")
    work = rounds[-1]["flops" if limit == "matmul" else "moved"]
    return statistics.median(work / each["seconds"] / each["rate"] for each in rounds) if work else None


def _median(rounds: list[Round], key: str) -> float:
    return statistics.median(each[key] for each in rounds)


def slow_rows(name: str, found: dict[str, Any]) -> Iterator[tuple[Row, str]]:
    """Yield each row in which ours is slower than a peer, or far from the limit, with what the job says of it."""
    for row in rows(name, found):
        slower = not row.contender.startswith((OURS, FLOOR)) and row.ratio > SLOWER
        far = row.contender == OURS and row.share is not None and row.share < FAR
        if slower or far:
            reasons = JOBS[name].slow
            keys = (f"{row.contender}, {row.case}", row.contender, row.case)
            yield row, next((reasons[key] for key in keys if key in reasons), "")


def format_table(name: str, found: dict[str, Any]) -> str:
    """Return a job's rows as a Markdown table."""
    lines, last = [], None
    for row in rows(name, found):
        ratio = "" if row.contender in (OURS, FLOOR) else f"{row.ratio:.2f}"
        share = "" if row.share is None else f"{row.share:.0%}"
        agrees = {None: "", True: "yes", False: "no"}[row.agrees]
        spread = f"{duration(row.fastest)} to {duration(row.slowest)}"
        memory = [f"{row.peak / 1e9:.2f}", f"{row.above / 1e9:.2f}"]
        case = row.case if row.case != last else ""
        lines.append([case, row.contender, duration(row.seconds), spread, ratio, share, *memory, agrees])
        last = row.case
    return markdown_table(COLUMNS, lines)


def duration(seconds: float) -> str:
    """Return seconds with three digits and a unit."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


# --- the page ----------------------------------------------------------------------------------------------------

INTRODUCTION = f"""# Performance

Written by `python benchmarks/run.py --write` from `benchmarks/results/performance_*.json`; do not edit.

Each job runs beside its peers, at equal shapes and with random weights. In each round every contender runs once, in
turn, in a new process, after a warm-up if it takes less than {NO_WARM_UP:.0f} seconds; a time is the median of the
rounds. "ours / this" is our time relative to that of the row: below 1, ours is faster. "Of the limit" is the share of
what the hardware does just before: the rate of one large matrix product, the bytes a second of one large copy, or a
contender, the floor, which does only what nobody can leave out. Memory is the peak of the process or of the GPU;
"above" is without what was there before the work, such as the weights. "As ours" compares the result: the frames bit
for bit, the answers, the captions. A row that takes less than {SLOWER - 1:.0%} longer than a peer is called equal; all
others, and rows below {FAR:.0%} of the limit, are explained.

<p><picture>
  <source media="(prefers-color-scheme: dark)" srcset="figures/performance_dark.png">
  <img alt="Our time, relative to each peer's, job by job" src="figures/performance_light.png">
</picture></p>"""


def read_results() -> dict[str, dict[str, Any]]:
    """Return what was measured, by the name of its file."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("performance_*.json"))
    }


def page(results: dict[str, dict[str, Any]]) -> str:
    parts = [INTRODUCTION]
    if (PAGE.parent / "real_size.md").exists():
        parts.append("[Real size](real_size.md) has a whole model of 7B.")
    for measured in results.values():
        parts.append(f"## {heading(measured)}\n\n{circumstances(measured)}")
        parts += [section(name, measured["jobs"][name]) for name in JOBS if name in measured["jobs"]]
    return "\n\n".join(parts) + "\n"


def heading(measured: dict[str, Any]) -> str:
    setting = measured["setting"]
    return f"Size {setting['size']}, {setting['dtype']} on {'a GPU' if setting['device'] == 'cuda' else 'a CPU'}"


def circumstances(measured: dict[str, Any]) -> str:
    machine = measured["machine"]
    hardware = machine.get("gpu") or f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    dates = ", ".join(sorted({found["date"] for found in measured["jobs"].values()}))
    text = f"{hardware}; rounds: {measured['setting']['rounds']}; {dates}. Libraries: {versions}."
    return textwrap.fill(text, 119, break_long_words=False)


def section(name: str, found: dict[str, Any]) -> str:
    job = JOBS[name]
    title, _, rest = job.title.partition(": ")
    paragraph = textwrap.fill(f"{rest[0].upper()}{rest[1:]}", 119)
    names = {contender for contenders in found["cases"].values() for contender in contenders}
    notes = [f"- {contender} {text}." for contender, text in job.differs.items() if contender in names]
    notes += [f"- {row.contender}, {row.case}: {reason}" for row, reason in slow_rows(name, found)]
    notes += [f"- Left out: {contender}: {reason}." for contender, reason in found["left_out"].items()]
    items = "\n".join(textwrap.fill(note, 119, subsequent_indent="  ") for note in notes)
    return "\n\n".join(filter(None, [f"### {title}", paragraph, format_table(name, found), items]))


def write_page() -> None:
    """Write the page and its figures."""
    results = read_results()
    replace_file(PAGE, page(results))
    print(f"Wrote {PAGE}")
    sys.path.append(str(ROOT / "docs"))
    from draw_performance import draw_all

    draw_all({heading(measured): measured for measured in results.values()})
