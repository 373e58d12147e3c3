"""Cards of datasets: training data of `pllava data push`, and captions of `pllava caption --push`."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from .rendering import TEMPLATES

LICENSE_IDS = {"apache-2.0", "mit", "cc0-1.0", "odbl", "odc-by"} | {  # that the Hub knows
    f"cc-by{terms}-{version}.0" for terms in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd") for version in (3, 4)
}
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


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
        frames: The captions for each choice of frames and lengths: frames, sampling, pooling shape, longest answer.
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
        shape = tuple(row["pooling_shape"] or ())
        self.frames[row["num_frames"], row["sampling"], shape, row["max_new_tokens"]] += 1

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
