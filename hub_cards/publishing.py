"""Publishing a model, an adapter or a processor: weights, code, processor and card in one commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoUrl
from safetensors import SafetensorError
from transformers.utils import ADAPTER_CONFIG_NAME

from ..files import is_disk_full, read_object
from ..origins import CARD, ModelSource
from ..result_files.reading import read_results, recommended_alphas
from . import staging
from .cards.model_card import ADAPTER_FOLDER, adapter_base
from .results_publishing import push_predictions, stage_results
from .space import write_space
from .uploading import create_repository, explaining_errors, upload


@dataclass(frozen=True)
class Pushed:
    """The commit to the model's repository, and the addresses of it, of its results and of its Space."""

    model: CommitInfo
    results: RepoUrl | None = None
    space: RepoUrl | None = None

    @property
    def addresses(self) -> list[RepoUrl]:
        return [each for each in (self.model.repo_url, self.results, self.space) if each is not None]


def push(
    source: str | os.PathLike | Sequence[Any],
    repo_id: str,
    base_model: str | None = None,
    results: str | os.PathLike | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    space: bool = False,
    collection: str | None = None,
    report: Callable[[str], None] = print,
) -> Pushed:
    """
    Publish a model, an adapter or a processor with its code, processor and card, in one commit.

    Args:
        source: A folder, or objects with `save_pretrained`: `(model, processor)`.
        repo_id: `USER/NAME`; the repository is created if there is none.
        base_model: The Hub id of the model that an adapter was trained on, or that a model was made from, if that was
            a local folder.
        results: A folder of results of `pllava eval`: its figures go into the card, and its predictions into the
            dataset `<repo_id>-results`.
        private: Create the repository as a private one.
        revision: The branch; it is created if there is none.
        create_pr: Open a pull request.
        space: Also publish a Space with the same id, where the model can be tried. It loads this commit.
        collection: The slug of a collection on the Hub that the model is added to, and what is published with it.
        report: Called with lines of text: what is left out, and which card is kept.

    Raises:
        ValueError: if the folder is incomplete or has pickled weights only, the metadata of its card are invalid, or
            an adapter's base is a local folder and `base_model` is not given.
        OSError: if the Hub cannot be reached or refuses. The local files are as they were.
    """
    with staged(source, repo_id, base_model, results, revision, report) as folder:
        with explaining_errors(repo_id):
            ModelCard.load(folder / CARD, ignore_metadata_errors=True).validate()  # before weights are uploaded
        dataset = None
        if results is not None:
            with explaining_errors(repo_id):
                repo_id = create_repository(repo_id, private=private)
            dataset, published = push_predictions(Path(results), repo_id)
            stage_results(folder, published, dataset.repo_id, repo_id)
        message = f"Upload {repo_id.split('/')[-1]}"
        commit = upload(folder, repo_id, "model", message, private, revision, create_pr)
        repo_id, adapter = commit.repo_url.repo_id, folder / ADAPTER_CONFIG_NAME
        base = read_object(adapter)["base_model_name_or_path"] if adapter.exists() else None
    pushed = Pushed(commit, dataset, push_space(repo_id, commit.oid, base, private) if space else None)
    if collection is not None:
        add_to_collection(collection, pushed.addresses)
    return pushed


def push_space(repo_id: str, revision: str, base_model: str | None, private: bool) -> RepoUrl:
    """Publish the Space of a model or an adapter, under the same id. See [`write_space`]."""
    with TemporaryDirectory() as folder:
        write_space(Path(folder), repo_id, revision, base_model)
        return upload(Path(folder), repo_id, "space", "Upload the demo", private).repo_url


def add_to_collection(slug: str, repositories: list[RepoUrl]) -> None:
    """Add repositories to a collection; what is in it stays there once."""
    with explaining_errors(slug):
        for repository in repositories:
            HfApi().add_collection_item(slug, repository.repo_id, repository.repo_type, exists_ok=True)


@contextmanager
def staged(
    source: str | os.PathLike | Sequence[Any],
    repo_id: str | None = None,
    base_model: str | None = None,
    results: str | os.PathLike | None = None,
    revision: str | None = None,
    report: Callable[[str], None] = print,
) -> Iterator[Path]:
    """Yield a folder with the files that [`push`] uploads; see there for the arguments and errors."""
    with _naming_full_disk(), TemporaryDirectory() as saved, TemporaryDirectory() as temporary:
        directory, folder = Path(saved), Path(temporary)
        if isinstance(source, (str, os.PathLike)):
            directory = Path(source)
        else:
            for each in source:
                each.save_pretrained(directory)
        repo_id = repo_id or directory.name
        evaluated = [] if results is None else read_results(Path(results))
        staging.check_complete(directory)
        with explaining_errors(repo_id):
            base = find_base(directory, base_model)
            staging.stage_files(directory, folder, report)
            if (folder / ADAPTER_CONFIG_NAME).exists():
                alphas = {title: alpha for title, (alpha, _) in recommended_alphas(evaluated).items()}
                staging.stage_adapter_config(folder, base, alphas)
            if (folder / ADAPTER_FOLDER).exists():
                staging.stage_adapter_config(folder / ADAPTER_FOLDER, ModelSource(repo_id), {})
            card = staging.stage_card(folder, repo_id, base, revision, report)
        staging.write(folder / CARD, card)
        if evaluated:
            stage_results(folder, evaluated, f"{repo_id}-results", repo_id)
        yield folder


@contextmanager
def _naming_full_disk() -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise OSError(
            f"The disk is full: nothing was published. Free some space in {gettempdir()}, or set TMPDIR to a folder "
            "on another disk, and run this again"
        ) from error


def find_base(directory: Path, base_model: str | None) -> ModelSource | None:
    """
    Return the base model of an adapter, with its commit; of a model or processor only what `base_model` names.

    Raises:
        ValueError: if an adapter's base is a local folder, and `base_model` is not given.
    """
    is_adapter = (directory / ADAPTER_CONFIG_NAME).exists()
    if base_model is not None:
        with explaining_errors(base_model):
            revision = HfApi().model_info(base_model).sha  # so that a later change of the base has no effect
        return ModelSource.of(base_model, revision)
    base = adapter_base(directory) if is_adapter else None
    if base is not None and base.repo_id is None:
        name = read_object(directory / ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
        raise ValueError(
            f"{directory}: its base model is {name!r}, a folder of this machine, so the adapter would load nowhere "
            "else: publish the base (`pllava push`), and pass its id on the Hub (--base-model)"
        )
    return base
