"""Cards of datasets: training data that `pllava data push` publishes."""

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
            size_categories=[next((name for size, name in SIZES.items() if samples < size), "n>10M")],
            tags=["pllava", "video"],
            configs=[{"config_name": "default", "data_files": data_files}],
        ),
        template_path=str(TEMPLATES / "training_data.md"),
        repo_id=repo_id,
        splits=splits,
        preferences="chosen" in next(iter(splits.values()))["columns"],
    )


def _license_id(licenses: set[str | None]) -> str | None:
    """Return the Hub's id if all splits have the same known license, "other" if not, None if no license is given."""
    if licenses == {None}:
        return None
    license, *others = licenses
    return license.lower() if not others and license.lower() in LICENSE_IDS else "other"
