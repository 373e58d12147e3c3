"""Reading folders of results, for cards."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from .folders import Metrics, is_variant, read_metrics, read_runs, result_folders
from .formatting import ExactNumber, main_measure
from .variants import Points, read_controls, read_sweeps

Result = TypeVar("Result", EvalResult, EvalResultEntry)


@dataclass(frozen=True)
class BenchmarkResults:
    """
    The results of one model on one benchmark.

    Args:
        name: The benchmark's name, which is the name of its folder.
        title: The name shown in reports.
        metrics: The plain run's metrics.json; None if there are variants only.
        eval_results: All measures of the plain run for a card's metadata, with all digits, from model-index.yaml.
        leaderboard: The entries for `.eval_results`, if the Hub has a leaderboard of the benchmark.
        controls: The metrics of the plain run's controls, by title.
        sweeps: The values of each swept setting, with their metrics.
    """

    name: str
    title: str
    metrics: Metrics | None
    eval_results: list[EvalResult]
    leaderboard: list[EvalResultEntry]
    controls: dict[str, Metrics]
    sweeps: dict[str, Points]

    @property
    def best_alpha(self) -> tuple[float, Metrics] | None:
        """The alpha with the best main measure and its metrics, if alpha was swept; the lowest of equal ones."""
        points = self.sweeps.get("alpha", [])
        return max(points, key=lambda point: point[1][main_measure(point[1])]) if len(points) > 1 else None


def read_results(folder: Path) -> list[BenchmarkResults]:
    """
    Read the results in a folder, which is the `--out` of runs or one benchmark's folder in it.

    Raises:
        ValueError: if there are none, a run was stopped before it had metrics, or a file is invalid.
    """
    results = []
    for benchmark_folder, name in result_folders(folder).items():
        found = {}
        for run_folder, run in read_runs(benchmark_folder):
            if run_folder == benchmark_folder and is_variant(run_folder, run):
                raise ValueError(f"{run_folder} is one variant of a benchmark's results: pass its parent folder")
            if (metrics := read_metrics(run_folder)) is None:
                raise ValueError(
                    f"{run_folder} has no metrics.json, since its run was stopped: run the same command again, and it "
                    "goes on where it stopped"
                )
            found[run_folder] = metrics
        plain, any_run = found.get(benchmark_folder), next(iter(found.values()))
        results.append(
            BenchmarkResults(
                name,
                any_run.get("title", name),
                plain,
                _read_file(benchmark_folder / "model-index.yaml", _read_model_index) if plain else [],
                _read_file(benchmark_folder / "eval-results.yaml", parse_eval_result_entries) if plain else [],
                read_controls(benchmark_folder, plain)[0] if plain else {},
                read_sweeps(benchmark_folder),
            )
        )
    return results


def recommended_alphas(results: list[BenchmarkResults]) -> dict[str, tuple[float, Metrics]]:
    """Return the best alpha and its metrics for each benchmark on which alpha was swept, by the benchmark's title."""
    return {each.title: best for each in results if (best := each.best_alpha)}


def load_exact_yaml(text: str) -> Any:
    """Load YAML like `yaml.safe_load`, but keep all digits of its numbers: they are [`ExactNumber`]s."""
    return yaml.load(text, _ExactLoader)


class _ExactLoader(yaml.SafeLoader):
    """Constructs no other objects than its parent does, apart from numbers."""

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float | ExactNumber:
        try:
            return ExactNumber(self.construct_scalar(node).replace("_", ""))
        except InvalidOperation:  # .inf, .nan, or in base 60
            return super().construct_yaml_float(node)


_ExactLoader.add_constructor("tag:yaml.org,2002:float", _ExactLoader.construct_yaml_float)


def _read_model_index(content: Any) -> list[EvalResult]:
    return model_index_to_eval_results(content["model-index"])[1]


def _read_file(file: Path, parse: Callable[[Any], list[Result]]) -> list[Result]:
    """Read a file of results, which a run without scores, or without a leaderboard, does not have."""
    if not file.is_file():
        return []
    try:
        return parse(load_exact_yaml(file.read_text(encoding="utf-8")))
    except (KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} has no results ({error}): pllava eval --rescore writes it again") from error
