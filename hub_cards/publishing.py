"""Publishing a model, an adapter or a processor: weights, code, processor and card in one commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from transformers.utils import ADAPTER_CONFIG_NAME

from ..files import read_object
from ..origins import CARD, ModelSource
from . import staging
from .model_card import ADAPTER_FOLDER, adapter_base
from .uploading import explaining_errors, upload


def push(
    source: str | os.PathLike | Sequence[Any],
    repo_id: str,
    base_model: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    report: Callable[[str], None] = print,
) -> CommitInfo:
    """
    Publish a model, an adapter or a processor with its code, processor and card, in one commit.

    Args:
        source: A folder, or objects with `save_pretrained`: `(model, processor)`.
        repo_id: `USER/NAME`; the repository is created if there is none.
        base_model: The Hub id of the model that an adapter was trained on, or that a model was made from, if that was
            a local folder.
        private: Create the repository as a private one.
        revision: The branch; it is created if there is none.
        create_pr: Open a pull request.
        report: Called with lines of text: what is left out, and which card is kept.

    Raises:
        ValueError: if the folder is incomplete or has pickled weights only, the metadata of its card are invalid, or
            an adapter's base is a local folder and `base_model` is not given.
        OSError: if the Hub cannot be reached or refuses. The local files are as they were.
    """
    with staged(source, repo_id, base_model, revision, report) as (folder, card):
        with explaining_errors(repo_id):
            card.validate()  # before weights are uploaded
        return upload(folder, repo_id, "model", f"Upload {repo_id.split('/')[-1]}", private, revision, create_pr)


@contextmanager
def staged(
    source: str | os.PathLike | Sequence[Any],
    repo_id: str | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    report: Callable[[str], None] = print,
) -> Iterator[tuple[Path, ModelCard]]:
    """Yield a folder with the files that [`push`] uploads, and the card; see there for the arguments and errors."""
    with TemporaryDirectory() as saved, TemporaryDirectory() as temporary:
        directory, folder = Path(saved), Path(temporary)
        if isinstance(source, (str, os.PathLike)):
            directory = Path(source)
        else:
            for each in source:
                each.save_pretrained(directory)
        repo_id = repo_id or directory.name
        staging.check_complete(directory)
        with explaining_errors(repo_id):
            base = find_base(directory, base_model)
            staging.stage_files(directory, folder, report)
            if (folder / ADAPTER_CONFIG_NAME).exists():
                staging.stage_adapter_config(folder, base, {})
            if (folder / ADAPTER_FOLDER).exists():
                staging.stage_adapter_config(folder / ADAPTER_FOLDER, ModelSource(repo_id, None, None), {})
            card = staging.stage_card(folder, repo_id, base, revision, report)
        staging.write(folder / CARD, str(card))
        yield folder, card


def find_base(directory: Path, base_model: str | None) -> ModelSource | None:
    """
    Return the base model of an adapter, with its commit; of a model or processor only what `base_model` names.

    Raises:
        ValueError: if an adapter's base is a local folder, and `base_model` is not given.
    """
    is_adapter = (directory / ADAPTER_CONFIG_NAME).exists()
    if base_model is not None:
        with explaining_errors(base_model):
            revision = (
                HfApi().model_info(base_model).sha
            )  # pinned: a later change of the base does not change the adapter
        return ModelSource.of(base_model, revision)
    base = adapter_base(directory) if is_adapter else None
    if base is not None and base.repo_id is None:
        name = read_object(directory / ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
        raise ValueError(
            f"{directory}: its base model is {name!r}, a folder of this machine, so the adapter would load nowhere "
            "else: publish the base (`pllava push`), and pass its id on the Hub (--base-model)"
        )
    return base
