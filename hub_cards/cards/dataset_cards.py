"""Cards of datasets: of `pllava data push`, of `pllava caption --push`, and predictions of `pllava eval --push`."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, constants

from ...result_files.folders import CONTROLS, Metrics
from ...result_files.formatting import format_mean, main_measure, markdown_table, measure_title
from .rendering import TEMPLATES

LICENSE_IDS = {"apache-2.0", "mit", "cc0-1.0", "odbl", "odc-by"} | {  # that the Hub knows
    f"cc-by{terms}-{version}.0" for terms in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd") for version in (3, 4)
}
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}

PREDICTION_COLUMNS = {
    "id": "the sample's name, unique in its benchmark",
    "task": "the task that it counts towards",
    "video": "the clip's file, from the folder of all clips on",
    "start": "where the clip starts in the file, in seconds",
    "end": "where it ends",
    "question": "the question; two of them where answers are compared for consistency",
    "options": "the options of a multiple choice question",
    "reference": "the right answer",
    "prediction": "the model's answer, or its two answers",
    "error": "why there is no answer",
    "damaged": "what was wrong with a clip that could be read in part",
    "truncated": "whether the answer was cut off at the length limit",
    "correct": "whether the answer is right",
    "legacy_correct": "whether the original PLLaVA's matcher, which makes mistakes, takes it as right",
    "score": "its score, from 0 to 5",
    "scores": "a judge's score of each aspect",
    "judge": "the judge: its model, temperature and a hash of its prompts",
    "reasons": "why the judge gave a score, by aspect",
    "judge_errors": "why a judge gave no grade",
    "cider": "CIDEr of a caption, from 0 to 10",
    "rouge_l": "ROUGE-L of a caption, from 0 to 1",
    "words": "the number of words of a caption",
}


def build_dataset_card(repo_id: str, splits: dict[str, dict[str, Any]]) -> DatasetCard:
    """Build the card of a dataset from its splits, by name: the fields of [`pllava.data.publishing.Split`]."""
    samples = sum(split["samples"] for split in splits.values())
    data_files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    return DatasetCard.from_template(
        card_data=DatasetCardData(
            license=_license_id({split["license"] for split in splits.values()}),
            task_categories=["video-text-to-text"],
            size_categories=[_size_category(samples)],
            tags=["pllava", "video"],
            configs=[{"config_name": "default", "data_files": data_files}],
        ),
        template_path=str(TEMPLATES / "training_data.md"),
        repo_id=repo_id,
        splits=splits,
        preferences="chosen" in next(iter(splits.values()))["columns"],
    )


def build_predictions_card(
    repo_id: str, model_id: str, configs: dict[str, tuple[str, list[dict[str, str]], Metrics]]
) -> DatasetCard:
    """
    Build the card of a model's predictions.

    Args:
        configs: The file, the columns and the metrics of each run, by the name under which `load_dataset` finds it.
    """
    samples = sum(metrics["expected"] for _, _, metrics in configs.values())
    seeds = {metrics["seed"] for _, _, metrics in configs.values()}
    columns = {column["name"] for _, features, _ in configs.values() for column in features}
    rows = []
    for config, (_, _, metrics) in configs.items():
        measure = main_measure(metrics)
        value = f"{measure_title(measure)} {format_mean(metrics, measure)}" if measure else "no scores"
        variant = CONTROLS.get(metrics["variant"], metrics["variant"]) or "the plain run"
        coverage = f"{metrics['coverage']:.1%} of {metrics['expected']}"
        rows.append([f"`{config}`", metrics.get("title", metrics["benchmark"]), variant, coverage, value])
    heads = ["configuration", "benchmark", "variant", "coverage", "main measure [95 % interval]"]
    return DatasetCard.from_template(
        card_data=DatasetCardData(
            license="other",
            task_categories=["video-text-to-text"],
            size_categories=[_size_category(samples)],
            tags=["pllava", "video", "evaluation"],
            configs=[
                {"config_name": config, "data_files": [{"split": "test", "path": file}]}
                for config, (file, _, _) in configs.items()
            ],
            dataset_info=[
                {"config_name": config, "features": features} for config, (_, features, _) in configs.items()
            ],
        ),
        template_path=str(TEMPLATES / "predictions.md"),
        repo_id=repo_id,
        model_id=model_id,
        model_url=f"{constants.HUGGINGFACE_CO_URL_HOME}{model_id}",
        table=markdown_table(heads, rows, text_columns=(0, 1, 2, 4)),
        first=next(iter(configs)),
        columns=[(name, text) for name, text in PREDICTION_COLUMNS.items() if name in columns],
        seed=seeds.pop() if len(seeds) == 1 else 0,
    )


@dataclass
class CaptionSummary:
    """
    What a dataset of captions holds, counted row by row.

    Args:
        captions, words: Their numbers.
        clips: The hash of each clip, or its name if there is none.
        names: The names of clips.
        named_clips: The pairs of both.
        models: The captions of each model: its name, revision, adapter, alpha and precision.
        prompts: The captions for each prompt.
        frames: The captions for each choice of frames and lengths: frames, sampling, pooling, longest answer.
    """

    captions: int = 0
    words: int = 0
    clips: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    named_clips: set[tuple[str, str]] = field(default_factory=set)
    models: Counter[tuple] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    frames: Counter[tuple] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        """Count a row with the columns of the dataset, whose `video` is a name."""
        clip = row["sha256"] or row["video"]
        self.captions += 1
        self.words += len(row["caption"].split())
        self.clips.add(clip)
        self.names.add(row["video"])
        self.named_clips.add((row["video"], clip))
        precision = row["quantization"] or row["dtype"]
        self.models[row["model"], row["revision"], row["adapter"], row["alpha"], precision] += 1
        self.prompts[row["prompt"]] += 1
        self.frames[row["num_frames"], row["sampling"], row["pooling"], row["max_new_tokens"]] += 1

    @property
    def ambiguous(self) -> int:
        """How many clips have the name of another clip."""
        return len(self.named_clips) - len(self.names)


def build_captions_card(repo_id: str, summary: CaptionSummary, embedded: bool, license: str | None) -> DatasetCard:
    """
    Build the card of a dataset of captions.

    Args:
        embedded: Whether rows hold the clips' files. Else they name them.
        license: The license of the videos, if it is known.
    """
    license_id = _license_id({license})
    return DatasetCard.from_template(
        card_data=DatasetCardData(
            language="en",
            license=license_id,
            license_name=license if license_id == "other" else None,
            task_categories=["video-text-to-text"],
            size_categories=[_size_category(summary.captions)],
            tags=["pllava", "video", "synthetic", "captions"],
            configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        ),
        template_path=str(TEMPLATES / "captions.md"),
        repo_id=repo_id,
        summary=summary,
        embedded=embedded,
        license=license,
        cell=_cell,
    )


def _cell(text: str) -> str:
    """Return a text for a cell of a table: in one line, without characters that Markdown reads as markup."""
    return re.sub(r"([\\`*_|<>\[\]&])", r"\\\1", " ".join(text.split()))


def _size_category(rows: int) -> str:
    return next((name for size, name in SIZES.items() if rows < size), "n>10M")


def _license_id(licenses: set[str | None]) -> str | None:
    """Return the Hub's id if all splits have the same known license, "other" if not, None if no license is given."""
    if licenses == {None}:
        return None
    license, *others = licenses
    return license.lower() if not others and license.lower() in LICENSE_IDS else "other"
