"""The runs that a gallery shows: which folders they are in, their names, settings and problems, for others to read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..eval.benchmarks.benchmark import Benchmark, load_benchmark, load_prompts
from ..eval.store import Row
from ..hub_cards.predictions import published_rows
from ..origins import published_name
from ..result_files.folders import (
    LOCATION_SETTINGS,
    SWEPT_SETTINGS,
    Metrics,
    is_variant,
    read_finished_run,
    read_runs,
    result_folders,
)
from ..result_files.formatting import format_problems, run_name

NOT_SHOWN = {"benchmark", "samples", "prompts", *LOCATION_SETTINGS}  # keys of run.json: hashes, and places
REVISIONS = ("revision", "adapter_revision")
TITLES = {"num_frames": "frames"}
PAPER_FRAMES = 16
SHOWN_REVISION = 12  # characters


@dataclass(frozen=True)
class Run:
    """
    A plain run, or a variant, of a benchmark.

    Args:
        folder: With its run.json, metrics.json and predictions.jsonl.
        settings: run.json.
        rows: predictions.jsonl, with the paths of clips on this computer.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: Metrics
    rows: list[Row]

    @cached_property
    def published(self) -> list[Row]:
        """The rows without the folders of this computer, in the order of `rows`."""
        return published_rows(self.rows)

    @cached_property
    def benchmark(self) -> Benchmark | None:
        """The benchmark's definition, if it ships with the package."""
        try:
            return load_benchmark(self.settings["benchmark"], load_prompts())
        except ValueError:  # a custom one, whose file the results do not name
            return None

    @property
    def rule(self) -> str | None:
        """The rule that scored the answers (see [`Benchmark`]), if it is known."""
        return self.metrics.get("rule") or (self.benchmark and self.benchmark.score)

    @property
    def is_served(self) -> bool:
        """Whether a server answered, which samples the frames of most clips itself."""
        return "pooling" not in self.settings

    @property
    def sampling(self) -> tuple[int, str]:
        """
        How many frames were sampled, and how; what run.json does not say is as in the paper. Random frames cannot be
        sampled again, and the middle ones of the same intervals stand in for them.
        """
        sampling = self.settings.get("sampling", "uniform")
        return self.settings.get("num_frames", PAPER_FRAMES), "middle" if sampling == "random" else sampling

    def shown_settings(self) -> dict[str, str]:
        """Return the settings that the answers and the grades depend on, as text."""
        settings = {name: value for name, value in self.settings.items() if name not in NOT_SHOWN}
        settings |= {name: published_name(settings[name]) for name in ("model", "adapter") if settings.get(name)}
        if judge := self.metrics.get("judge"):
            settings |= {"judge": published_name(judge["model"]), "judge_temperature": judge["temperature"]}
        settings |= {name: settings[name][:SHOWN_REVISION] for name in REVISIONS if settings.get(name)}
        return {
            TITLES.get(name, name.replace("_", " ")): _as_text(value)
            for name, value in settings.items()
            if value is not None
        }

    def problems(self) -> list[str]:
        """Return what went wrong in the run, and what is not known about its frames, as text."""
        problems = format_problems(self.metrics)
        if self.metrics.get("judged") is False:
            problems.append("not judged")
        if self.is_served:
            problems.append("a server answered: it may have sampled other frames than those shown")
        elif not {"num_frames", "sampling"} <= self.settings.keys():
            frames, sampling = self.sampling
            problems.append(f"run.json does not say how frames were sampled: those shown are {frames} {sampling} ones")
        elif self.settings["sampling"] == "random":
            problems.append("frames were sampled at random: those shown are others")
        return problems


def find_runs(folders: Sequence[Path]) -> dict[str, list[Run]]:
    """
    Find the runs in folders of results: the `--out` of runs, a benchmark's folder in it, or a variant's in that. Of a
    folder with a plain run the variants are left out; pass their folders to see them.

    Returns:
        The runs by the benchmarks' names, in the order of `folders`.

    Raises:
        ValueError: if a folder has no results, a run was stopped, or a folder is passed twice.
    """
    runs: dict[str, list[Run]] = {}
    seen: set[Path] = set()
    for folder in folders:
        for benchmark_folder, name in result_folders(folder).items():
            found = dict(read_runs(benchmark_folder))
            chosen = [benchmark_folder] if benchmark_folder in found else list(found)
            for each in chosen:
                if each.resolve() in seen:
                    raise ValueError(f"{each} was passed twice: a run cannot be compared with itself")
                seen.add(each.resolve())
                runs.setdefault(name, []).append(Run(each, found[each], *read_finished_run(each)))
    return runs


def name_runs(runs: Sequence[Run]) -> list[str]:
    """
    Name the runs of a benchmark: by model, alpha, control and swept value; if that is not enough, by the settings in
    which they differ, and at last by the part of their paths in which they differ.
    """
    names = [_own_name(run) for run in runs]
    for more in (_differing_settings, _differing_folders):
        for name in [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            alike = [index for index, other in enumerate(names) if other == name]
            for index, difference in zip(alike, more([runs[each] for each in alike]), strict=True):
                names[index] = f"{name} ({difference})" if difference else name
    return names


def _own_name(run: Run) -> str:
    name = run_name(run.settings | {key: value for key, value in _published_names(run).items() if value})
    swept = run.folder.resolve().name
    # A run with an adapter has its alpha in its name
    if is_variant(run.folder, run.settings) and swept.startswith(tuple(f"{key}=" for key in SWEPT_SETTINGS)):
        name += "" if swept.startswith("alpha=") else f", {swept}"
    return name


def _published_names(run: Run) -> dict[str, str | None]:
    return {key: run.settings.get(key) and published_name(run.settings[key]) for key in ("model", "adapter")}


def _differing_settings(runs: Sequence[Run]) -> list[str]:
    settings = [run.shown_settings() for run in runs]
    names = list(dict.fromkeys(name for each in settings for name in each))
    differing = [name for name in names if len({each.get(name) for each in settings}) > 1]
    return [", ".join(f"{name} {each[name]}" for name in differing if name in each) for each in settings]


def _differing_folders(runs: Sequence[Run]) -> list[str]:
    paths = [run.folder.resolve().parts for run in runs]
    start = len(os.path.commonprefix(paths))
    end = len(os.path.commonprefix([path[start:][::-1] for path in paths]))
    return ["/".join(path[start : len(path) - end]) or "/".join(path[start - 1 :]) for path in paths]


def _as_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
