"""The dataset of predictions: results folders without local paths, from which anybody can compute the scores again."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..files import read_lines, replace_file, to_lines
from ..origins import published_name
from ..result_files.folders import (
    LOCATION_SETTINGS,
    Metrics,
    read_finished_run,
    read_metrics,
    read_runs,
    result_folders,
)
from ..result_files.formatting import is_local
from ..result_files.reading import read_results
from ..video_source_pllava import is_address
from .cards.dataset_cards import build_predictions_card

COPIED = ("*.png", "model-index.yaml", "eval-results.yaml")
COMMIT_LENGTH = 40  # of a revision on the Hub; a directory's fingerprint is shorter
# Folders in a message of the system, up to the name of the file: in quotation marks, where they may have spaces in
# them, or not; but not those in an address
FOLDERS = re.compile(r"""(?<=['"])/(?:[^/'"]+/)+|(?<![\w:/.])/(?:[^/\s'"]+/)+""")

Row = dict[str, Any]  # a line of predictions.jsonl


def stage_predictions(results: Path, folder: Path, repo_id: str, model_id: str) -> None:
    """
    Write what is published of a folder of results into another folder, in the same structure, with a dataset card:
    settings, predictions, metrics, reports and plots. Nothing in it names a folder of this computer: clips are named
    from their common folder on, a local model by `model_id`, and other local models by a short name.

    Args:
        results: The `--out` of runs, or one benchmark's folder in it.
        folder: Gets a folder for each benchmark; those of other benchmarks in it are kept, and are in the card.
        repo_id: The dataset's id on the Hub.
        model_id: The id on the Hub of the model, or of the adapter, that was evaluated.

    Raises:
        ValueError: if there are no results, a run is not finished, or the results are another model's.
    """
    read_results(results)  # raises if a run has no metrics
    models: dict[str, Path] = {}
    for benchmark_folder, name in result_folders(results).items():
        for run_folder, run in read_runs(benchmark_folder):
            models.setdefault(run.get("adapter") or run["model"], run_folder)
            if len(models) > 1:
                (one, first), (other, second) = models.items()
                raise ValueError(
                    f"{first} has results of {one}, and {second} of {other}: publish the folder of each benchmark by "
                    "itself"
                )
            _check_model(run_folder, run, model_id)
            _stage_run(run_folder, run, folder / name / run_folder.relative_to(benchmark_folder), model_id)
    write_predictions_card(folder, repo_id, model_id)


def write_predictions_card(folder: Path, repo_id: str, model_id: str) -> None:
    """Write README.md for the results in a staged folder."""
    configs = {}
    for benchmark_folder, name in result_folders(folder).items():
        for run_folder, _ in read_runs(benchmark_folder):
            config = name if run_folder == benchmark_folder else f"{name}-{run_folder.name}"
            file = run_folder / "predictions.jsonl"
            features = features_of(read_lines(file, "id"))
            configs[config] = (file.relative_to(folder).as_posix(), features, read_metrics(run_folder))
    replace_file(folder / "README.md", str(build_predictions_card(repo_id, model_id, configs)))


def features_of(rows: list[Row]) -> list[dict[str, str]]:
    """
    Return the columns of rows and their types as a dataset card has them. `datasets` would infer them from the first
    rows, and fail at a later one with another column or type. Values of several types, and lists, are "json".
    """
    types: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            types.setdefault(name, set()).add(type(value))
    return [{"name": name, "dtype": _dtype(found - {type(None)})} for name, found in types.items()]


def _dtype(types: set[type]) -> str:
    for dtype, known in (("string", {str}), ("bool", {bool}), ("int64", {int}), ("float64", {int, float})):
        if types <= known:
            return dtype
    return "json"


def _check_model(folder: Path, run: dict[str, Any], model_id: str) -> None:
    evaluated = run.get("adapter") or run["model"]
    named_by_id = (
        len(run.get("revision") or "") == COMMIT_LENGTH if not run.get("adapter") else not is_local(evaluated)
    )
    if named_by_id and "endpoint" not in run and evaluated != model_id:
        raise ValueError(f"{folder} has results of {evaluated}, not of {model_id}: push them to {evaluated}")


def _stage_run(source: Path, run: dict[str, Any], target: Path, model_id: str) -> None:
    metrics, rows = read_finished_run(source)
    target.mkdir(parents=True, exist_ok=True)
    for file in [file for file in target.iterdir() if file.is_file()]:
        file.unlink()  # of an earlier run
    for file in (file for pattern in COPIED for file in source.glob(pattern)):
        shutil.copyfile(file, target / file.name)
    judge = metrics.get("judge", {}).get("model")
    names = {"model": published_name(run["model"])}
    if run.get("adapter"):
        names["adapter"] = model_id
    elif is_local(run["model"]) or len(run.get("revision") or "") != COMMIT_LENGTH:
        names["model"] = model_id
    published = {key: value for key, value in {**run, **names}.items() if key not in LOCATION_SETTINGS}
    replace_file(target / "run.json", json.dumps(published, indent=2) + "\n")
    replace_file(target / "metrics.json", json.dumps(_published_metrics(metrics, published), indent=2) + "\n")
    replace_file(target / "predictions.jsonl", to_lines(published_rows(rows)))
    if (report := source / "report.md").is_file():
        renamed = {run[key]: name for key, name in names.items()} | ({judge: published_name(judge)} if judge else {})
        replace_file(target / "report.md", _published_report(report.read_text(encoding="utf-8"), renamed))


def _published_metrics(metrics: Metrics, run: dict[str, Any]) -> Metrics:
    judge = {"judge": _published_judge(metrics["judge"])} if "judge" in metrics else {}
    return {**metrics, **judge, "run": run}


def _published_judge(judge: dict[str, Any]) -> dict[str, Any]:
    return {**judge, "model": published_name(judge["model"])}


def published_rows(rows: list[Row]) -> list[Row]:
    """
    Return rows of predictions.jsonl that name no folder of this computer: clips by their path from their common folder
    on, and messages by the names of files.
    """
    local = {row["video"]: os.path.abspath(row["video"]) for row in rows if not is_address(row["video"])}
    common = os.path.commonpath([os.path.dirname(path) for path in local.values()]) if local else ""
    folders = {os.path.dirname(video) for video in local} | {common}

    def without_folders(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without_folders(text) for name, text in value.items()}
        if not isinstance(value, str):
            return value
        for known in sorted(filter(None, folders), key=len, reverse=True):  # they may have spaces in them
            value = value.replace(f"{known}{os.sep}", "")
        return FOLDERS.sub("", value)

    published = []
    for row in rows:
        messages = {name: without_folders(row[name]) for name in ("error", "damaged", "judge_errors") if name in row}
        judge = {"judge": _published_judge(row["judge"])} if "judge" in row else {}
        video = os.path.relpath(local[row["video"]], common) if row["video"] in local else row["video"]
        published.append({**row, "video": video, **messages, **judge})
    return published


def _published_report(text: str, renamed: dict[str, str]) -> str:
    """Rename models in a report: a path everywhere, and any other name in the list of settings."""
    for old, new in renamed.items():
        if os.path.isabs(old):
            text = text.replace(old, new)
        text = re.sub(rf"(?m)^(- (?:model|adapter): |- judge: model ){re.escape(old)}(?=$|,)", rf"\g<1>{new}", text)
    settings = "|".join(LOCATION_SETTINGS)
    return re.sub(rf"(?m)^- (?:{settings}): .*\n", "", text)
