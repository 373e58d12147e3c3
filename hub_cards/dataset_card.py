"""The card of a dataset that `pllava data push` writes."""

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

TEMPLATE = Path(__file__).with_name("dataset_card.md")


LICENSES = {"apache-2.0", "mit", "cc0-1.0", "odbl", "odc-by"} | {  # that the Hub knows by these names
    f"cc-by{terms}-{version}.0" for terms in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd") for version in (3, 4)
}


SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


def build_card(repo_id: str, splits: dict[str, dict[str, Any]]) -> DatasetCard:
    """The card of a dataset with these splits, each the fields of a [`Split`]."""
    samples = sum(split["samples"] for split in splits.values())
    data_files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    return DatasetCard.from_template(
        card_data=DatasetCardData(
            license=_license_id({split["license"] for split in splits.values()}),
            task_categories=["video-text-to-text"],
            size_categories=[next((name for size, name in SIZES.items() if samples < size), "n>10M")],
            tags=["pllava", "video"],
            configs=[{"config_name": "default", "data_files": data_files}],
        ),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        splits=splits,
        preferences="chosen" in next(iter(splits.values()))["columns"],
    )


def _license_id(notes: set[str | None]) -> str | None:
    """The notes as the Hub's metadata want it: one of its names, "other", or nothing where nothing is known."""
    if notes == {None}:
        return None
    (note, *more) = notes
    return note.lower() if not more and note.lower() in LICENSES else "other"
