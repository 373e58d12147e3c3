"""The results in a model's card: its metadata, with all digits, and a section with rounded numbers."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, constants
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import model_index_to_eval_results

from ...model_card_pllava import SIGNATURE, describe_pooling
from ...pooling_pllava import parse_pooling
from ...result_files.folders import Metrics
from ...result_files.formatting import (
    format_mean,
    format_problems,
    format_value,
    main_measure,
    markdown_table,
    measure_title,
    run_name,
    sorted_tasks,
)
from ...result_files.reading import BenchmarkResults, load_exact_yaml, recommended_alphas
from ...result_files.variants import format_gains, format_sweep
from .rendering import render

BEGIN, END = "<!-- pllava eval: results begin -->", "<!-- pllava eval: results end -->"
SECTION = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}\n?", re.DOTALL)
LIMITS = "## Limits and bias"  # in our cards, the section after the how-to and all that is said of the model
MAX_OPEN_ROWS = 8  # of a table; longer ones are folded
SETTINGS = {  # in model-index.yaml, and how they are called in the card
    "num_frames": "{} frames",
    "pooling": "{}",
    "alpha": "alpha {}",
    "dtype": "{}",
    "quantization": "quantised ({})",
    "model_revision": "model `{}`",
    "adapter_revision": "adapter `{}`",
    "judge_temperature": "judge's temperature {}",
    "chance": "chance level {}",
    "limit": "only the first {} samples of each task",
}


def read_card(file: Path) -> ModelCard:
    """
    Read a model's card from a file. In contrast to `ModelCard.load`, its results keep all their digits when the card
    is written again.

    Raises:
        ValueError: if its metadata are invalid.
    """
    text = file.read_text(encoding="utf-8")
    metadata = REGEX_YAML_BLOCK.search(text)
    try:
        card = ModelCard(text if metadata else f"---\n{{}}\n---\n{text}")
        if card.data.eval_results:
            index = load_exact_yaml(metadata[2])["model-index"]
            card.data.eval_results = model_index_to_eval_results(index)[1]
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file.name} has invalid metadata ({reason}): mend it, then run this again") from error
    return card


def add_results(card: ModelCard, results: list[BenchmarkResults], predictions_repo: str) -> ModelCard:
    """
    Put results into a card: into its metadata, and into a section that takes the place of an earlier one, or comes
    before the limits, or last. Results of other datasets and from other sources are kept.

    Args:
        card: It is changed; if it gets its first results, its metadata need a `model_name`.
        predictions_repo: The dataset on the Hub with the predictions.

    Returns:
        The same card.
    """
    new = [_with_source(result, predictions_repo) for each in results for result in each.eval_results]
    datasets = {(result.dataset_type, result.dataset_config) for result in new}
    metrics = {(result.dataset_type, result.metric_type, result.metric_name) for result in new}

    def is_replaced(old: EvalResult) -> bool:
        same_metric = (old.dataset_type, old.metric_type, old.metric_name) in metrics
        unnamed = old.dataset_config is None and old.source_url is None
        return (old.dataset_type, old.dataset_config) in datasets or (same_metric and unnamed)

    kept = [old for old in card.data.eval_results or [] if not is_replaced(old)]
    card.data.eval_results = [*kept, *new] or None
    card.text = _insert(results_section(results, predictions_repo), SIGNATURE.sub("", card.text))
    return card


def keep_results(card: ModelCard, published: ModelCard) -> None:
    """
    Put the results of the card that is on the Hub into one that takes its place. They name the revision of the model
    that was evaluated.
    """
    if section := SECTION.search(published.text):
        known = {(each.dataset_type, each.metric_name) for each in card.data.eval_results or []}
        results = [each for each in published.data.eval_results or [] if each.source_url]
        kept = [each for each in results if (each.dataset_type, each.metric_name) not in known]
        card.data.eval_results = [*(card.data.eval_results or []), *kept] or None
        card.data.model_name = card.data.model_name or published.data.model_name
        card.text = _insert(section[0], card.text)


def _insert(section: str, text: str) -> str:
    """Put a section in the place of an earlier one, or before the limits, or last."""
    if earlier := SECTION.search(text):
        before, after = text[: earlier.start()], text[earlier.end() :]
    else:
        before, limits, after = text.partition(f"\n{LIMITS}")
        before, after = f"{before.rstrip()}\n\n", limits + after
    return f"{before}{section}{after}".rstrip() + "\n"


def results_section(results: list[BenchmarkResults], predictions_repo: str) -> str:
    """Return the section of a card in Markdown, between comments by which the next one finds and replaces it."""
    plain = {each.title: each.metrics for each in results if each.metrics}
    problems = {title: format_problems(metrics) for title, metrics in plain.items()}
    section = render(
        "results.md",
        begin=BEGIN,
        end=END,
        table=_measures_table(results),
        judged=any("judge" in metrics for metrics in plain.values()),
        legacy=any("accuracy_legacy" in metrics for metrics in plain.values()),
        problems=[f"{title}: {', '.join(counts)}." for title, counts in problems.items() if counts],
        unscored=[title for title, metrics in plain.items() if main_measure(metrics) is None],
        alphas=_alphas_table(results),
        details=[detail for each in results if (detail := _details(each))],
        predictions_repo=predictions_repo,
        predictions_url=dataset_url(predictions_repo),
    )
    return re.sub(r"\n{3,}", "\n\n", section) + "\n"


def dataset_url(repo_id: str) -> str:
    """Return the address of a dataset on the Hub, for cards, whose readers may use another endpoint."""
    return f"{constants.HUGGINGFACE_CO_URL_HOME}datasets/{repo_id}"


def _with_source(result: EvalResult, predictions_repo: str) -> EvalResult:
    return EvalResult(**{**vars(result), "source_name": "predictions", "source_url": dataset_url(predictions_repo)})


def _measures_table(results: list[BenchmarkResults]) -> str | None:
    """All measures of the plain runs; what holds for all measures of a benchmark is beside the first."""
    heads = ["benchmark", "measure", "value [95 % interval]", "coverage", "judge", "prompts"]
    rows = []
    for each in results:
        for number, result in enumerate(each.eval_results):
            settings, interval = result.dataset_args or {}, (result.metric_args or {}).get("interval_95")
            about = ["", "", "", ""]
            if number == 0:
                coverage = f"{settings['coverage_percent']:.1f}% of {settings['expected']}"
                about = [each.title, coverage, settings.get("judge", ""), f"`{settings['prompt_hash']}`"]
            value = _format(result, result.metric_value, interval)
            rows.append([about[0], result.metric_name, value, *about[1:]])
    return markdown_table(heads, rows, text_columns=(0, 1, 4, 5)) if rows else None


def _format(result: EvalResult, value: Any, interval: list[Any] | None = None) -> str:
    """Return a value of the metadata rounded: to one digit in per cent, to two in other units."""
    digits = 1 if result.metric_name.endswith("(%)") else 2
    ends = f" [{', '.join(f'{end:.{digits}f}' for end in interval)}]" if interval else ""
    return f"{value:.{digits}f}{ends}".replace(" ", "\N{NO-BREAK SPACE}")


def _details(results: BenchmarkResults) -> dict[str, Any] | None:
    """What is shown of one benchmark besides its measures; tables as (title, table, whether to fold it)."""
    tables, gains = [], None
    metrics = results.metrics
    measure = metrics and main_measure(metrics)
    if measure and (len(metrics["per_task"]) > 1 or results.controls):
        tables.append((f"{measure_title(measure)} by task", _task_table(metrics, results.controls, measure)))
        gains = format_gains(metrics, results.controls, measure) if results.controls else None
    for setting, points in results.sweeps.items():
        swept = measure_title(main_measure(points[0][1]))
        tables.append((f"{swept} by {setting}", format_sweep(setting, points)))
    settings = _settings_text(results)
    if not tables and not settings:
        return None
    folded = [(title, table, table.count("\n") - 1 > MAX_OPEN_ROWS) for title, table in tables]
    return {"title": results.title, "settings": settings, "tables": folded, "gains": gains}


def _task_table(metrics: Metrics, controls: dict[str, Metrics], measure: str) -> str:
    """A measure by task, of the run and of its controls; those without intervals, for which a card is too narrow."""
    rows = []
    for title, task in [*((task, task) for task in sorted_tasks(metrics, measure)), ("**all**", None)]:
        run, *others = (each["per_task"].get(task, {}) if task else each for each in (metrics, *controls.values()))
        values = [format_value(measure, each[measure]) if measure in each else "" for each in others]
        rows.append([title, str(run["expected"]), format_mean(run, measure), *values])
    return markdown_table(["task", "samples", f"{run_name(metrics['run'])} [95 % interval]", *controls], rows)


def _settings_text(results: BenchmarkResults) -> str | None:
    if not results.eval_results:
        return None
    result = results.eval_results[0]
    settings, details = dict(result.dataset_args or {}), result.metric_args or {}
    if pooling := settings.get("pooling"):
        settings["pooling"] = describe_pooling(parse_pooling(pooling))
    settings |= {name: f"{float(settings[name]):g}" for name in ("alpha", "judge_temperature") if name in settings}
    if "chance" in details:
        settings["chance"] = _format(result, details["chance"])
    parts = [text.format(settings[name]) for name, text in SETTINGS.items() if name in settings]
    share = f" of the first of {settings['processes']} processes" if settings["processes"] > 1 else ""
    time = f"{settings['answered']} answers{share} took {settings['seconds']:.1f} s on {settings['hardware']}"
    return f"{', '.join(parts)}. The {time}."


def _alphas_table(results: list[BenchmarkResults]) -> str | None:
    """The best alpha of each benchmark, and what the others that were tried gave."""
    sweeps = {each.title: each.sweeps["alpha"] for each in results if each.best_alpha}
    rows = []
    for title, (alpha, best) in recommended_alphas(results).items():
        measure = main_measure(best)
        others = [_point(value, metrics, measure) for value, metrics in sweeps[title] if value != alpha]
        rows.append([title, measure_title(measure), f"**{alpha:g}**", format_mean(best, measure), ", ".join(others)])
    heads = ["benchmark", "measure", "best alpha", "value [95 % interval]", "other alphas"]
    return markdown_table(heads, rows, text_columns=(0, 1, 4)) if rows else None


def _point(alpha: float, metrics: Metrics, measure: str) -> str:
    return f"{alpha:g}: {format_value(measure, metrics[measure])}"
