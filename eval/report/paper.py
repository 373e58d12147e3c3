"""A run beside the paper's results: its table, and whether the prompts and the judge are the paper's."""

import json
from pathlib import Path

from ...result_files.folders import Metrics
from ...result_files.formatting import format_value, markdown_table
from ..benchmarks.benchmark import Benchmark, digest, load_prompts

PAPER = json.loads(Path(__file__).with_name("paper_results.json").read_text(encoding="utf-8"))


def paper_table(benchmark: Benchmark, metrics: Metrics) -> str | None:
    """Return a table of the run and the paper's models with notes, or None if the paper has no such benchmark."""
    if benchmark.paper is None:
        return None
    results = dict(PAPER[benchmark.paper])
    titles = results.pop("columns")
    own = _values_by_column(benchmark, metrics)
    columns = [index for index, title in enumerate(titles) if title in own]
    if not columns:
        return None
    rows = [["**this run**", *(own[titles[index]] for index in columns)]]
    rows += [[model, *(str(values[index]) for index in columns)] for model, values in results.items()]
    notes = ["The other rows are the paper's (arXiv 2404.16994)."]
    if metrics.get("judge"):
        notes.append(
            f"The paper's judge was {PAPER['judge']}, this run's is {metrics['judge']['model']}: scores of different "
            "judges, or of one judge with different prompts, cannot be compared."
        )
    if "score_over_grades" in metrics:
        notes.append(
            "The paper's average is close to the mean over all grades, in which the three aspects of the generic "
            "questions weigh more; the average of this run is therefore that mean."
        )
    return markdown_table(["", *(titles[index] for index in columns)], rows) + "\n\n" + " ".join(notes)


def _values_by_column(benchmark: Benchmark, metrics: Metrics) -> dict[str, str]:
    """The run's values by the titles of the paper's columns."""
    if "aspects" in metrics and "score_over_grades" in metrics:
        values = {name: format_value("score", aspect["score"]) for name, aspect in metrics["aspects"].items()}
        return {**values, "average": format_value("score", metrics["score_over_grades"])}
    values = {}
    for task, result in metrics["per_task"].items():
        short = benchmark.tasks[task].get("short")
        if "score" in result:
            values[f"{short}_score"] = format_value("score", result["score"])
        if "accuracy" in result:
            values[short] = values[f"{short}_acc"] = format_value("accuracy", result["accuracy"])
    if "accuracy" in metrics:
        values["Avg"] = format_value("accuracy", metrics["accuracy"])
    return values


def paper_values(benchmark: Benchmark, measure: str) -> dict[str, dict[str, float]]:
    """
    Return the paper's values of a measure by the name of a task or of a judge's aspect, and by model. Those over all
    samples have the name "all". Values are in the units that people read.
    """
    if benchmark.paper is None:
        return {}
    table = dict(PAPER[benchmark.paper])
    titles, names = table.pop("columns"), {}  # the names by the titles of the paper's columns
    for task, declared in benchmark.tasks.items():
        short = declared.get("short")
        if measure == "accuracy":
            names |= {short: task, f"{short}_acc": task, "Avg": "all"}
        elif measure == "score":
            names |= {f"{short}_score": task, "average": "all"} | {aspect: aspect for aspect in declared["judge"]}
    values = {
        names[title]: {model: row[index] for model, row in table.items()}
        for index, title in enumerate(titles)
        if title in names
    }
    if len(benchmark.tasks) == 1 and values:
        values.setdefault("all", next(iter(values.values())))
    return values


def wording_and_judge(benchmark: Benchmark, metrics: Metrics) -> dict[str, str]:
    """Return whether the questions' wording and the judge are the paper's, as columns of a table."""
    if benchmark.paper is None:
        return {}
    texts = ["".join(benchmark.wording.get(name, "").split()) for name in ("system", "question")]
    if digest(texts) in PAPER["wording"].get(benchmark.prompts, []):
        columns = {"wording": "the paper's"}
    elif benchmark.wording == load_prompts().get(benchmark.prompts, {}):
        columns = {"wording": "ours, not the paper's"}
    else:
        columns = {"wording": "from `--prompts`, not the paper's"}
    if "judge" in metrics:
        judge = metrics["judge"]["model"]
        whose = "the paper's" if judge == PAPER["judge"] else f"not the paper's {PAPER['judge']}"
        columns["judge"] = f"{judge}, {whose}"
    return columns
