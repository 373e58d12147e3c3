"""
Folders of results: a folder for each benchmark, with the files of its plain run, and in it a folder for each variant,
which is a control or a value of a sweep.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import read_lines, read_object

Metrics = dict[str, Any]  # metrics.json, or its part about one task

CONTROLS = {
    "no_video": "no video",
    "one_frame": "one frame",
    "shuffled": "frames shuffled",
    "reversed": "frames reversed",
}
SWEPT_SETTINGS = ("alpha", "pooling")
LOCATION_SETTINGS = {"endpoint"}  # keys of run.json that say where the model ran, and do not affect its answers
OLDER_SETTINGS = {"sampling": "uniform"}  # of the runs whose run.json is older than these keys

ROW_KEYS = (
    "id",
    "task",
    "video",
    "question",
    "reference",
    "prediction",
)  # those that each line of predictions.jsonl has
# The keys of rows that are averaged, and the names of their means. The first that a run has is its main measure
MEASURES = {
    "correct": "accuracy",
    "legacy_correct": "accuracy_legacy",
    "score": "score",
    "cider": "cider",
    "rouge_l": "rouge_l",
    "words": "words",
}
# The units in which measures are shown. In metrics.json, those in per cent are fractions
UNITS = {"accuracy": "%", "accuracy_legacy": "%", "score": "0 to 5", "cider": "0 to 10", "rouge_l": "%"}
PROBLEMS = ("unreadable", "damaged", "truncated", "empty", "judge_failed")


def result_folders(folder: Path) -> dict[Path, str]:
    """
    Return the benchmarks' results folders in `folder`, or `folder` itself if it is one, and the benchmarks' names.

    Raises:
        ValueError: if there are none.
    """
    for candidates in ([folder], sorted(path for path in folder.glob("*") if path.is_dir())):
        benchmarks = {each: runs[0][1]["benchmark"] for each in candidates if (runs := list(read_runs(each)))}
        if benchmarks:
            return benchmarks
    raise ValueError(f"{folder} has no results; pass the --out of a run, or a benchmark's folder in it")


def read_runs(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folders and settings of the plain run in a benchmark's results folder, and of its variants."""
    for run_folder in (folder, *sorted(folder.glob("*/"))):
        if (run_folder / "run.json").is_file():
            run = read_object(run_folder / "run.json", "benchmark", "samples")
            if run_folder == folder or run_folder.name != run["benchmark"]:
                yield run_folder, run


def read_finished_run(folder: Path) -> tuple[Metrics, list[dict[str, Any]]]:
    """
    Return the contents of metrics.json and predictions.jsonl in the folder of a plain run or of a variant.

    Raises:
        ValueError: if the run was stopped before it was finished, or a file is invalid.
    """
    metrics, rows = read_metrics(folder), read_lines(folder / "predictions.jsonl", *ROW_KEYS)
    if metrics is None or len(rows) != metrics["expected"] or list(folder.glob("predictions-*.jsonl")):
        expected = "no metrics" if metrics is None else f"metrics of {metrics['expected']}"
        raise ValueError(
            f"{folder} has {len(rows)} predictions, but {expected}: a run was stopped in it. Run the same command "
            "again, and it goes on where it stopped"
        )
    return metrics, rows


def is_variant(folder: Path, run: dict[str, Any]) -> bool:
    """Whether the folder is a control's or a sweep's; only the folder's name tells a sweep from a plain run."""
    swept = tuple(f"{setting}=" for setting in SWEPT_SETTINGS)
    return run.get("control") is not None or folder.resolve().name.startswith(swept)


def read_metrics(folder: Path) -> Metrics | None:
    """
    Return the contents of metrics.json, or None if there is none.

    Raises:
        ValueError: if the file is invalid.
    """
    file = folder / "metrics.json"
    return read_object(file, "benchmark", "run", "time") if file.exists() else None
