"""How measures, runs and models are named and written for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..controls_and_sweeps import CONTROLS
from ..scoring.summary import MEASURES, UNITS, Metrics

ENDS = {"%": 100.0, "0 to 5": 5.0, "0 to 10": 10.0}


PROBLEMS = ("unreadable", "damaged", "truncated", "empty", "judge_failed")


def format_summary(metrics: Metrics) -> str:
    """One line: the main figure with its interval, and what is missing."""
    parts = [
        f"{measure_title(name)} {format_value(name, metrics[name], metrics[f'{name}_ci'])}"
        for name in MEASURES.values()
        if name in metrics
    ]
    if metrics.get("judged") is False:
        parts.append("not judged (name a --judge)")
    parts.append(f"coverage {metrics['coverage']:.1%} ({metrics['evaluated']} of {metrics['expected']})")
    parts += [f"{metrics[name]} {name.replace('_', ' ')}" for name in PROBLEMS if metrics.get(name)]
    return f"{metrics['benchmark']} {metrics['variant']}".strip() + f": {', '.join(parts)}"


def measure_title(name: str) -> str:
    """With its unit: "accuracy" -> "accuracy (%)"."""
    return f"{name} ({UNITS[name]})" if name in UNITS else name


def on_scale(name: str, value: float) -> float:
    """In the unit that people read: "accuracy", 0.5 -> 50.0."""
    return 100 * value if UNITS.get(name) == "%" else value


def scale_end(name: str) -> float | None:
    """The largest value there can be, in the unit that people read, if there is one."""
    return ENDS.get(UNITS.get(name))


def format_value(name: str, value: float, interval: Sequence[float] | None = None) -> str:
    """In its unit, with its interval. "accuracy", 0.5, (0.4, 0.6) -> "50.0 [40.0, 60.0]"."""
    digits = 1 if UNITS.get(name) == "%" else 2
    ends = f" [{', '.join(f'{on_scale(name, end):.{digits}f}' for end in interval)}]" if interval else ""
    return f"{on_scale(name, value):.{digits}f}{ends}"


def main_measure(metrics: Metrics) -> str | None:
    return next((name for name in MEASURES.values() if name in metrics), None)


def model_name(source: str) -> str:
    """
    What a directory or Hub id is called: "user/pllava-7b" -> "pllava-7b". A directory that is called "checkpoint", or
    by its step, has its name from the one that it is in: "nano/checkpoint" -> "nano".
    """
    path = Path(source)
    path = path if path.parent.name else path.resolve()
    if path.parent.name == "snapshots":  # of the Hub's cache: models--user--pllava-7b/snapshots/REVISION
        return path.parent.parent.name.split("--")[-1]
    if path.name == "checkpoint":
        return path.parent.name
    return f"{path.parent.name}/{path.name}" if path.name.startswith("checkpoint-") else path.name


def run_name(run: dict[str, Any], swept: str | None = None) -> str:
    """What a run is called: its adapter or model, and the control if it is one; without the setting that is swept."""
    name = model_name(run.get("adapter") or run["model"])
    name += f" at alpha {run['alpha']:g}" if run.get("adapter") and swept != "alpha" else ""
    return f"{name}, {CONTROLS[run['control']]}" if run.get("control") else name
