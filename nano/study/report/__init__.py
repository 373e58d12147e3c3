"""The study's report: `report.md`, its pictures in `plots/`, and `verdicts.json`."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from torch.backends.cpu import get_cpu_capability

from ....environment import hardware, library_versions
from ....files import read_object, replace_file
from ....result_files.formatting import markdown_table
from ..settings import IMAGE_MODEL, Experiment, Setting
from ..workshop import Workshop
from .measures import TITLES, TOKENS, measure_seeds
from .plots import plot_experiment
from .verdicts import AGREES, CANNOT_TELL, DISAGREES, Verdict, interval_of, judge

TOKEN_COLUMNS = {  # titles, and digits after the point
    "dominant.frames": ("dominant tokens of frames (%)", 1),
    "dominant.pooled": ("dominant pooled tokens (%)", 1),
    "similarity": ("cosine with the next frame's token", 3),
}


def write_report(workshop: Workshop, output: Path) -> None:
    """Judge all claims, and write the report with its plots."""
    study = workshop.study
    verdicts = [judge(workshop, claim, study.seeds, study.fresh_seeds) for claim in study.claims]
    facts = describe(workshop)
    page = output / "report.md"
    content = {**facts, "verdicts": [asdict(verdict) for verdict in verdicts]}
    (output / "plots").mkdir(parents=True, exist_ok=True)
    replace_file(output / "verdicts.json", json.dumps(content, indent=1) + "\n")
    parts = ["# The paper's questions, asked of nano", _introduction(facts), "## Verdicts", _verdict_table(verdicts)]
    for name, experiment in study.experiments.items():
        picture = plot_experiment(workshop, name, output / "plots" / f"{name.replace(' ', '_')}.png", page)
        parts += [f"## {experiment.title}", f"The paper: {experiment.source}.", picture]
        parts.append((_token_table if experiment.norms else _result_table)(workshop, name, experiment))
    replace_file(page, "\n\n".join(part for part in parts if part) + "\n")


def describe(workshop: Workshop) -> dict[str, Any]:
    """Return the facts about a study: its seeds, the number of runs, and the time of training on which machine."""
    study = workshop.study
    runs = [run for seed in (*study.seeds, *study.fresh_seeds) for run in study.runs(seed)]
    starts = {workshop.image_model(run) for run in runs if run.start == IMAGE_MODEL}
    libraries = library_versions(["torch", "transformers", "trl", "peft"])
    seconds = [read_object(workshop.folder_of(run) / "run.json")["seconds"] for run in runs]
    for start in starts:
        seconds += read_object(start / "seconds.json").values()
    return {
        "seeds": study.seeds,
        "fresh_seeds": study.fresh_seeds,
        "held_out": study.held_out,
        "image_models": len(starts),
        "runs": len(runs),
        "core_hours": sum(seconds) / 3600,
        "machine": {"hardware": hardware(), "instructions": get_cpu_capability(), **libraries},
    }


def _introduction(facts: dict[str, Any]) -> str:
    clips, hours, machine = facts["held_out"]["clips"], facts["core_hours"], facts["machine"]
    parts = [
        "Written by `python -m pllava.nano study`, which anybody can run: small PLLaVAs are trained on a synthetic "
        f"world ({facts['image_models']} image models and {facts['runs']} models of videos; {hours:.1f} core hours of "
        f"training on {machine['hardware']} with {machine['instructions']}), and asked about {clips} held-out clips. "
        "What holds for them need not hold for real models, and the other way round.",
        f"Effects are means over the seeds {_list(facts['seeds'])}, with Student's 95 % interval over them.",
    ]
    if facts["fresh_seeds"]:
        parts.append(
            f"The seeds {_list(facts['fresh_seeds'])} were used for nothing before all claims and settings were "
            "fixed. A verdict holds if the effect of each of them is on its side."
        )
    return " ".join(parts)


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _verdict_table(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for each in verdicts:
        low, high = each.interval
        holds = {None: "-", True: "holds", False: "does not hold"}[each.holds]
        size = f"{each.mean:+.1f} [{low:+.1f}, {high:+.1f}] {each.claim.unit}"
        rows.append([each.claim.text, f"**{each.verdict}**", size, each.why, holds])
    counts = Counter(each.verdict for each in verdicts)
    summary = (
        f"Of {len(verdicts)} claims, the study agrees with {counts[AGREES]} and disagrees with "
        f"{counts[DISAGREES]}; for {counts[CANNOT_TELL]} it cannot tell."
    )
    table = markdown_table(["claim", "verdict", "effect", "why", "fresh seeds"], rows, text_columns=range(5))
    return f"{summary}\n\n{table}"


def _result_table(workshop: Workshop, name: str, experiment: Experiment) -> str:
    """
    A row for each run as it was trained, or for each pooling of an experiment that compares these. Cells have the mean
    over seeds and its interval.
    """
    rows = {label: (label, Setting()) for label in experiment.runs}
    if experiment.poolings:
        (label,) = experiment.runs
        rows = {f"trained with {workshop.study.run(name, label, workshop.study.seeds[0]).pooling}": (label, Setting())}
        rows |= {f"`{pooling}`": (label, Setting(pooling=pooling)) for pooling in experiment.poolings}
    cells = [
        [title, *(_cell(measure_seeds(workshop, name, label, setting, column)) for column in TITLES)]
        for title, (label, setting) in rows.items()
    ]
    return markdown_table(["", *TITLES.values()], cells)


def _token_table(workshop: Workshop, name: str, experiment: Experiment) -> str:
    """A row for each run before and after its training, with the share of dominant tokens and their similarity."""
    rows = [
        [
            f"{label}, {when} training",
            *(
                _cell(measure_seeds(workshop, name, label, Setting(), f"{TOKENS}{when}.{column}"), digits)
                for column, (_, digits) in TOKEN_COLUMNS.items()
            ),
        ]
        for label in experiment.runs
        for when in ("before", "after")
    ]
    return markdown_table(["", *(title for title, _ in TOKEN_COLUMNS.values())], rows)


def _cell(values: Sequence[float], digits: int = 1) -> str:
    low, high = interval_of(values)
    return f"{fmean(values):.{digits}f} ± {(high - low) / 2:.{digits}f}"
