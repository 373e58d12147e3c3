"""The folder of a run's results: predictions line by line as they come, and what becomes of them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import open_to_append, read_lines, read_object, replace_file, to_lines
from .benchmarks.samples import Sample
from .models.answer import Answer

Row = dict[str, Any]
ELSEWHERE = {"endpoint"}  # of a run's description: where it ran, which makes it no other run


class Results:
    """
    `predictions.jsonl` and `run.json` in a folder of their own.

    Each process appends to a file of its own, so that none waits for another; `merge` makes one of them.

    Args:
        folder: Is made if need be.
        run: What the answers depend on; a folder takes the answers of one run only.
        rank: Of this process.
        retry_failed: Take samples that could not be answered before for such as were not asked yet.

    Raises:
        ValueError: if the folder has the answers of another run; the message says in what they differ. Or if a file in
            it is none of a run's.
    """

    def __init__(self, folder: Path, run: dict[str, Any], rank: int = 0, retry_failed: bool = False):
        self.folder, self.run, self.retry_failed = folder, run, retry_failed
        self.predictions = folder / "predictions.jsonl"
        self._own = self.predictions if rank == 0 else folder / f"predictions-{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        run_file = folder / "run.json"
        if run_file.exists():
            before = read_object(run_file)
            if changed := [name for name in {*before, *run} - ELSEWHERE if before.get(name) != run.get(name)]:
                was, now = ({name: values.get(name) for name in changed} for values in (before, run))
                raise ValueError(
                    f"{folder} has answers of another run, with {was}; this one has {now}. Name another --out"
                )
        elif rank == 0:
            replace_file(run_file, json.dumps(run, indent=2) + "\n")
        self.rows = self._read()

    def _read(self) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        for file in sorted(self.folder.glob("predictions*.jsonl")):
            for row in read_lines(file, "id"):
                if "error" not in row or row["id"] not in rows:  # a file may hold what another process has mended
                    rows[row["id"]] = row
        return rows

    def is_done(self, sample: Sample) -> bool:
        row = self.rows.get(sample.id)
        return row is not None and not (self.retry_failed and "error" in row)

    def append(self, rows: Sequence[Row]) -> None:
        """In one write; an error is noted once."""
        new = [row for row in rows if self.rows.get(row["id"]) != row]
        with open_to_append(self._own) as lines:
            lines.write(to_lines(new))
        self.rows.update({row["id"]: row for row in new})

    def merge(self, samples: Sequence[Sample]) -> list[Row]:
        """All processes' rows as one file, in the order of the benchmark. For one process, when all are done."""
        rows = self._read()
        self.rows = {sample.id: rows[sample.id] for sample in samples if sample.id in rows}
        self.save()
        for part in self.folder.glob("predictions-*.jsonl"):
            part.unlink()
        return list(self.rows.values())

    def save(self) -> None:
        replace_file(self.predictions, to_lines(self.rows.values()))


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """
    What metrics.json has, if there is one.

    Raises:
        ValueError: if it is none of a run's.
    """
    file = folder / "metrics.json"
    return read_object(file, "benchmark", "run", "time") if file.exists() else None


def to_row(sample: Sample, answer: Answer) -> Row:
    """The line of a sample and its answer."""
    bounds = {"start": sample.start, "end": sample.end}
    row = {
        "id": sample.id,
        "task": sample.task,
        "video": sample.video,
        **{name: value for name, value in bounds.items() if value is not None},
        "question": _one_or_list(sample.questions),
        **({"options": list(sample.options)} if sample.options else {}),
        "reference": sample.reference,
        "prediction": _one_or_list(answer.texts) if answer.texts else "",
    }
    if answer.error is not None:
        row["error"] = answer.error
    if answer.damaged is not None:
        row["damaged"] = answer.damaged
    if answer.truncated:
        row["truncated"] = True
    return row


def from_row(row: Row) -> tuple[Sample, Answer]:
    """What `to_row` has made a line of."""
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


def _one_or_list(texts: Iterable[str]) -> str | list[str]:
    texts = list(texts)
    return texts[0] if len(texts) == 1 else texts


def texts_of(value: str | list[str]) -> list[str]:
    """A row's "question" or "prediction" as a list."""
    return value if isinstance(value, list) else [value]
