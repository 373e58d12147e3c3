"""Publishing results: the predictions as a dataset, and the figures in the card of the model."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml
from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoUrl, eval_result_entries_to_yaml, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from ..files import replace_file
from ..model_card_pllava import is_generated, sign
from ..result_files.reading import BenchmarkResults, read_results
from .cards.results_section import add_results, dataset_url, read_card
from .predictions import stage_predictions
from .uploading import commit_on_newest, explaining_errors, upload

MESSAGE = "Results of pllava eval"


def push_results(results: Path, repo_id: str) -> tuple[str, str]:
    """
    Publish results: predictions as the dataset `<repo_id>-results`, then figures in the card of the model or adapter
    `repo_id`, and for leaderboards of the Hub in its `.eval_results`. What is published of other benchmarks is kept.

    Args:
        results: The `--out` of runs, or one benchmark's folder in it.

    Returns:
        The addresses of the model and of the dataset.

    Raises:
        OSError: if the Hub cannot be reached or refuses: the message says what to do.
        ValueError: if there is no such model, or the results are not complete or another model's.
    """
    check_model_exists(repo_id)
    dataset, published = push_predictions(results, repo_id)

    def commit() -> CommitInfo:
        parent = _newest(repo_id, "model")
        with tempfile.TemporaryDirectory() as folder, explaining_errors(repo_id):
            stage = Path(folder)
            try:
                file = HfApi().hf_hub_download(repo_id, "README.md", revision=parent)
                shutil.copyfile(file, stage / "README.md")
            except EntryNotFoundError:
                ModelCard(f"---\n{{}}\n---\n\n# {repo_id.split('/')[-1]}\n").save(stage / "README.md")
            stage_results(stage, published, dataset.repo_id, repo_id)
            return upload(stage, repo_id, commit_message=MESSAGE, parent_commit=parent)

    return str(commit_on_newest(commit).repo_url), str(dataset)


def push_predictions(
    results: Path, repo_id: str, private: bool | None = None
) -> tuple[RepoUrl, list[BenchmarkResults]]:
    """
    Publish predictions as the dataset `<repo_id>-results`, in one commit. Benchmarks and variants that are in it
    already are kept, unless these results replace them.

    Args:
        repo_id: The model or adapter.
        private: Whether a new dataset is private; by default it is if the model is.

    Returns:
        The dataset's address, which has its `repo_id`, and all results that are now in it.

    Raises:
        OSError, ValueError: as [`push_results`].
    """
    api, dataset = HfApi(), f"{repo_id}-results"

    def commit() -> CommitInfo:
        parent = _newest(dataset, "dataset")
        with tempfile.TemporaryDirectory() as folder:
            stage = Path(folder)
            if parent is not None:
                with explaining_errors(dataset):
                    snapshot_download(dataset, repo_type="dataset", revision=parent, local_dir=stage)
            stage_predictions(results, stage, dataset, repo_id)
            published[:] = read_results(stage)
            return upload(stage, dataset, "dataset", MESSAGE, private=private and parent is None, parent_commit=parent)

    published: list[BenchmarkResults] = []
    if private is None:
        with explaining_errors(repo_id):
            private = bool(api.model_info(repo_id).private)
    return commit_on_newest(commit).repo_url, published


def stage_results(folder: Path, results: list[BenchmarkResults], predictions_repo: str, repo_id: str) -> None:
    """
    Put results into a folder that will be uploaded to the repository of a model: into its README.md, and into
    `.eval_results` for leaderboards of the Hub.

    Args:
        folder: Has a README.md.
        predictions_repo: The dataset with the predictions.
        repo_id: The model, which gives a card without a name its name.
    """
    file = folder / "README.md"
    generated, card = is_generated(file.read_text(encoding="utf-8")), read_card(file)
    card.data.model_name = card.data.model_name or repo_id.split("/")[-1]
    text = str(add_results(card, results, predictions_repo))
    replace_file(file, sign(text) if generated else text)
    for each in results:
        if each.leaderboard:
            source = {"source_name": "predictions", "source_url": dataset_url(predictions_repo)}
            file = folder / ".eval_results" / f"{each.name}.yaml"
            file.parent.mkdir(exist_ok=True)
            entries = eval_result_entries_to_yaml([replace(entry, **source) for entry in each.leaderboard])
            replace_file(file, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))


def check_model_exists(repo_id: str) -> None:
    """
    Raises:
        OSError: if the Hub cannot be reached.
        ValueError: if there is no such model or adapter on the Hub.
    """
    with explaining_errors(repo_id):
        if not HfApi().repo_exists(repo_id):
            raise ValueError(f"{repo_id}: there is no such model on the Hub; publish it first with `pllava push`")


def _newest(repo_id: str, repo_type: str) -> str | None:
    """Return the newest commit of a repository; None if there is no repository."""
    with explaining_errors(repo_id):
        exists = HfApi().repo_exists(repo_id, repo_type=repo_type)
        return HfApi().repo_info(repo_id, repo_type=repo_type).sha if exists else None
