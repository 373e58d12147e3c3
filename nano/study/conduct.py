"""Conduct the study: train and ask all runs, side by side, and write the report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...files import locked
from ...workers import ordered_map
from ..training.recipe import read_recipe
from .asking import answers_folder, ask, held_out
from .report import write_report
from .settings import CLIPS, IMAGE_MODEL, NOTHING, STILLS, Run, Setting, Study
from .tokens import FILE as TOKENS_FILE
from .tokens import measure_tokens
from .workshop import Workshop

RUN_TIMEOUT = 24 * 3600  # seconds


def conduct(study: Study, folder: Path, output: Path, processes: int) -> None:
    """
    Train and ask all runs of all seeds for which `folder` has no results, and write the report to `output`.

    Args:
        processes: Runs that are trained side by side, with one thread each: the models are too small for more.

    Raises:
        ValueError: if another study is using `folder`.
        RuntimeError: if a run fails.
    """
    with locked(folder):
        workshop = Workshop(folder, study, study.adapt(read_recipe()))
        seeds = [*study.seeds, *study.fresh_seeds]
        for seed in seeds:
            workshop.clips(seed)
        for about in (CLIPS, STILLS):
            held_out(workshop, about)
        runs = {run: settings for seed in seeds for run, settings in study.runs(seed).items()}
        runs = {run: settings for run, settings in runs.items() if not is_finished(workshop, run, settings)}
        starts = {run.size: run for run in runs if run.start == IMAGE_MODEL}
        widest_first = sorted(starts.values(), key=lambda run: -workshop.recipe.widths[run.size])
        _map(partial(_train_image_model, workshop), widest_first, processes, "Image models")
        longest_first = sorted(runs.items(), key=lambda item: (item[0].start != NOTHING, -item[0].steps))
        _map(partial(_train_and_ask, workshop), longest_first, processes, "Runs")
        write_report(workshop, output)


def is_finished(workshop: Workshop, run: Run, settings: list[Setting]) -> bool:
    """Whether a run is trained, asked in all settings, and measured."""
    files = [answers_folder(workshop, run, setting) / "metrics.json" for setting in settings]
    files += [workshop.folder_of(run) / TOKENS_FILE] if workshop.study.has_norms(run) else []
    return all(file.exists() for file in files)


def _train_image_model(workshop: Workshop, run: Run) -> None:
    with logging_to(workshop.folder / "logs" / f"image-model-{run.size}.txt"):
        workshop.image_model(run)


def _train_and_ask(workshop: Workshop, task: tuple[Run, list[Setting]]) -> None:
    run, settings = task
    with logging_to(workshop.folder / "logs" / f"{workshop.folder_of(run).name}.txt"):
        workshop.train(run)
        model, processor = workshop.load(run)
        ask(workshop, run, model, processor, settings)
        if workshop.study.has_norms(run):
            measure_tokens(workshop, run, model, processor)


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Write what a call prints, with its progress bars, to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        yield


def _map(function: Callable[[Any], Any], tasks: list[Any], processes: int, title: str) -> None:
    """Call a function for each task in worker processes, with a progress bar."""

    def lost(task: Any, reason: str) -> None:
        raise RuntimeError(f"{title}: {task} was lost: {reason}. Start the study again: it continues")

    results = ordered_map(function, tasks, processes, len(tasks) + 1, RUN_TIMEOUT, lost)
    for _ in tqdm(results, total=len(tasks), desc=title, unit="run"):
        pass
