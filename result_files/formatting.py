"""Measures, runs and tables as text for people."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from .folders import CONTROLS, MEASURES, PROBLEMS, UNITS, Metrics

UNIT_MAXIMA = {"%": 100.0, "0 to 5": 5.0, "0 to 10": 10.0}


def format_summary(metrics: Metrics) -> str:
    """Return one line with a run's measures, their intervals, the coverage and the problems."""
    parts = [f"{measure_title(name)} {format_mean(metrics, name)}" for name in MEASURES.values() if name in metrics]
    if metrics.get("judged") is False:
        parts.append("not judged (pass --judge)")
    parts.append(f"coverage {metrics['coverage']:.1%} ({metrics['evaluated']} of {metrics['expected']})")
    title = f"{metrics['benchmark']} {metrics['variant']}".strip()
    return f"{title}: {', '.join(parts + format_problems(metrics))}"


def format_problems(metrics: Metrics) -> list[str]:
    """Return the counts of what went wrong, such as ["2 unreadable", "1 empty"]."""
    counts = {"ungraded" if name == "judge_failed" else name: metrics.get(name) for name in PROBLEMS}
    return [f"{count} {name}" for name, count in counts.items() if count]


# --- measures --------------------------------------------------------------------------------------------------------


def main_measure(metrics: Metrics) -> str | None:
    """Return the most important measure that a run has, if it has any."""
    return next((name for name in MEASURES.values() if name in metrics), None)


def measure_title(measure: str) -> str:
    """Return a measure with its unit: "accuracy" -> "accuracy (%)"."""
    return f"{measure} ({UNITS[measure]})" if measure in UNITS else measure


def in_unit(measure: str, value: float) -> float:
    """Convert a value from metrics.json to the unit that is shown: "accuracy", 0.5 -> 50.0."""
    return 100 * value if UNITS.get(measure) == "%" else value


class ExactNumber(Decimal):
    """A number that YAML files get with all its digits: 100 times a float in memory often is another number."""

    @classmethod
    def of(cls, value: float) -> "ExactNumber":
        """Return the number that JSON files have for `value`."""
        return cls(repr(float(value)))

    def __str__(self) -> str:
        digits = format(self, "f")
        return digits if "." in digits else f"{digits}.0"


def _represent(dumper: yaml.representer.SafeRepresenter, value: ExactNumber) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", str(value))


for _dumper in (yaml.Dumper, yaml.SafeDumper):  # huggingface_hub dumps cards with the first
    _dumper.add_representer(ExactNumber, _represent)


def exact_in_unit(measure: str, value: float) -> ExactNumber:
    """Convert a value from metrics.json to the unit that is shown, digit by digit: "accuracy", 0.07 -> 7.0."""
    number = ExactNumber.of(value)
    return ExactNumber(number.scaleb(2)) if UNITS.get(measure) == "%" else number


def unit_maximum(measure: str) -> float | None:
    """Return the largest possible value in the unit that is shown, if there is one."""
    return UNIT_MAXIMA.get(UNITS.get(measure))


def format_value(measure: str, value: float, interval: Sequence[float] | None = None) -> str:
    """Return a value with its interval: "accuracy", 0.5, (0.4, 0.6) -> "50.0 [40.0, 60.0]"."""
    digits = 1 if UNITS.get(measure) == "%" else 2
    ends = f" [{', '.join(f'{in_unit(measure, end):.{digits}f}' for end in interval)}]" if interval else ""
    return f"{in_unit(measure, value):.{digits}f}{ends}"


def format_mean(metrics: Metrics, measure: str) -> str:
    """Return a run's or a task's mean with its interval, or "" if there is none."""
    return format_value(measure, metrics[measure], metrics[f"{measure}_ci"]) if measure in metrics else ""


def sorted_tasks(metrics: Metrics, measure: str) -> list[str]:
    """Return the tasks from the best to the worst; those without the measure come last."""
    return sorted(metrics["per_task"], key=lambda task: -metrics["per_task"][task].get(measure, -1))


# --- runs ------------------------------------------------------------------------------------------------------------


def run_name(run: dict[str, Any], swept: str | None = None) -> str:
    """Return the name of a run's adapter or model, with alpha (unless that is swept) and the control."""
    name = model_name(run.get("adapter") or run["model"])
    if run.get("adapter") and swept != "alpha":
        name += f" at alpha {run['alpha']:g}"
    return f"{name}, {CONTROLS[run['control']]}" if run.get("control") else name


def model_name(source: str) -> str:
    """
    Return a short name for a directory or Hub id: "user/pllava-7b" -> "pllava-7b".

    A directory named "checkpoint", or "checkpoint-STEP", takes its name from its parent: "nano/checkpoint" -> "nano".
    """
    path = Path(source)
    path = path if path.parent.name else path.resolve()
    if path.parent.name == "snapshots":  # the Hub's cache: models--user--pllava-7b/snapshots/REVISION
        return path.parent.parent.name.split("--")[-1]
    if path.name == "checkpoint":
        return path.parent.name
    return f"{path.parent.name}/{path.name}" if path.name.startswith("checkpoint-") else path.name


def is_local(source: str) -> bool:
    """Whether a model's name is the path of a local directory, which may have been moved, and not a Hub id."""
    return Path(source).is_absolute() or Path(source).is_dir()


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    """Return a table in Markdown. Columns of numbers are aligned to the right, those of text to the left."""
    rules = ["---" if column in text_columns else "---:" for column in range(len(heads))]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])
