"""Write and read a run's results folder: `predictions.jsonl`, one line for each sample, `run.json`, `metrics.json`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import append_lines, read_lines, read_object, replace_file, to_lines
from ..result_files.folders import LOCATION_SETTINGS, OLDER_SETTINGS
from .benchmarks.samples import Sample
from .models.answerer import Answer

Row = dict[str, Any]  # a line of predictions.jsonl


class Results:
    """
    A folder with one run's answers. Each process appends to a file of its own; `merge` joins them.

    Args:
        folder: Created if necessary.
        run: The settings that the answers depend on, for `run.json`.
        rank: The rank of this process.
        retry_failed: Whether samples with an error count as missing.

    Raises:
        ValueError: if the folder has answers of a run with other settings, or a file in it is invalid.
    """

    def __init__(self, folder: Path, run: dict[str, Any], rank: int = 0, retry_failed: bool = False):
        self.folder, self.run, self.retry_failed = folder, run, retry_failed
        self.predictions = folder / "predictions.jsonl"
        self._own_file = self.predictions if rank == 0 else folder / f"predictions-{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        run_file = folder / "run.json"
        if run_file.exists():
            saved, asked = (OLDER_SETTINGS | settings for settings in (read_object(run_file), run))
            if changed := [key for key in {*saved, *asked} - LOCATION_SETTINGS if saved.get(key) != asked.get(key)]:
                old, new = ({key: values.get(key) for key in changed} for values in (saved, asked))
                raise ValueError(f"{folder} has answers of a run with {old}, not {new}. Pass another --out")
        elif rank == 0:
            replace_file(run_file, json.dumps(run, indent=2) + "\n")
        self.rows = self._read()

    def _read(self) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        for file in sorted(self.folder.glob("predictions*.jsonl")):
            for row in read_lines(file, "id"):
                if "error" not in row or row["id"] not in rows:  # another process may have retried successfully
                    rows[row["id"]] = row
        return rows

    def is_done(self, sample: Sample) -> bool:
        row = self.rows.get(sample.id)
        return row is not None and not (self.retry_failed and "error" in row)

    def append(self, rows: Sequence[Row]) -> None:
        """Append rows, all of them or none. A retry that fails in the same way is not written again."""
        new = [row for row in rows if self.rows.get(row["id"]) != row]
        append_lines(self._own_file, new)
        self.rows.update({row["id"]: row for row in new})

    def merge(self, samples: Sequence[Sample]) -> list[Row]:
        """Join all processes' rows in one file, in the samples' order. Call it in one process, when all are done."""
        rows = self._read()
        self.rows = {sample.id: rows[sample.id] for sample in samples if sample.id in rows}
        self.save()
        for part in self.folder.glob("predictions-*.jsonl"):
            part.unlink()
        return list(self.rows.values())

    def save(self) -> None:
        replace_file(self.predictions, to_lines(self.rows.values()))


def to_row(sample: Sample, answer: Answer, scores: dict[str, bool | float]) -> Row:
    """Return the line for a sample, its answer, and the scores that the benchmark's rule gives it."""
    return {
        "id": sample.id,
        "task": sample.task,
        "video": sample.video,
        **_not_none(start=sample.start, end=sample.end),
        "question": _one_or_list(sample.questions),
        **_not_none(options=list(sample.options) or None),
        "reference": sample.reference,
        "prediction": _one_or_list(answer.texts or [""]),
        **_not_none(error=answer.error, damaged=answer.damaged, truncated=answer.truncated or None),
        **scores,
    }


def from_row(row: Row) -> tuple[Sample, Answer]:
    """Return the sample and the answer that [`to_row`] wrote."""
    sample = Sample(
        row["id"],
        row["task"],
        row["video"],
        tuple(texts_of(row["question"])),
        row["reference"],
        tuple(row.get("options", ())),
        row.get("start"),
        row.get("end"),
    )
    texts = tuple(texts_of(row["prediction"]))
    return sample, Answer(texts, row.get("error"), row.get("truncated", False), row.get("damaged"))


def _not_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _one_or_list(texts: Iterable[str]) -> str | list[str]:
    texts = list(texts)
    return texts[0] if len(texts) == 1 else texts


def texts_of(value: str | list[str]) -> list[str]:
    """Return a row's "question" or "prediction" as a list."""
    return value if isinstance(value, list) else [value]
