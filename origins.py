"""Where a checkpoint comes from: its repository on the Hub, the commit, and a fingerprint of the files."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash
from yaml import YAMLError

from .checkpoint_files import fingerprint
from .configuration_pllava import ONE_WORD, check_origin
from .files import read_object

CARD = "README.md"
CONVERTED = ("official", "image")  # kinds of an `origin` whose weights are those of the source, in another format


@dataclass(frozen=True)
class ModelSource:
    """
    A model or an adapter from which another one was made.

    Args:
        repo_id: Its id on the Hub; None for a local folder.
        revision: The commit on the Hub.
        fingerprint: A hash of the weights and configs that were read, see [`fingerprint`].
        license: As its card states it.
        origin: Of a local folder: `origin` in its config.json.
    """

    repo_id: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    license: str | None = None
    origin: dict[str, Any] | None = None

    @classmethod
    def of(cls, name: str | os.PathLike, revision: str | None = None) -> ModelSource:
        """
        Describe a checkpoint.

        Args:
            name: A folder, which may be a snapshot in the Hub's cache, or a Hub id.
            revision: The commit, for a Hub id; by default the newest.
        """
        directory = Path(name)
        if not directory.is_dir():
            quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
            try:
                config, card = (cached_file(name, file, revision=revision, **quiet) for file in (CONFIG_NAME, CARD))
            except OSError:  # not on the Hub, or not yet
                return cls(os.fspath(name), revision)
            revision = extract_commit_hash(config, revision)
            return cls(os.fspath(name), revision, license=card and read_license(Path(card)))
        repo_id, revision = hub_repository(directory) or (None, None)
        origin = read_origin(directory) if repo_id is None else None
        return cls(repo_id, revision, fingerprint(directory), read_license(directory / CARD), origin)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def hub_repository(path: str | os.PathLike) -> tuple[str, str] | None:
    """Return the id and the commit of a snapshot in the Hub's cache, or of a folder in one; None for other paths."""
    path = Path(os.path.abspath(path))
    for snapshot in (path, *path.parents):
        kind, *name = snapshot.parent.parent.name.split("--")
        if snapshot.parent.name == "snapshots" and kind == "models":
            return "/".join(name), snapshot.name
    return None


def directory_revision(directory: str | os.PathLike) -> str | None:
    """Return the commit of a folder in the Hub's cache, and the [`fingerprint`] of another one."""
    repository = hub_repository(directory)
    return repository[1] if repository else fingerprint(directory)


def read_origin(directory: Path) -> dict[str, Any] | None:
    """Return `origin` of the config in a folder, if it has one; one of another form is a `ValueError`."""
    config = directory / CONFIG_NAME
    origin = read_object(config).get("origin") if config.exists() else None
    check_origin(origin)
    return origin


def read_license(card: Path) -> str | None:
    """Return the license in the metadata of a card, if it states one there."""
    if not card.exists():
        return None
    try:
        license = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    except (ValueError, YAMLError):  # somebody else's card, of which nothing else is used
        return None
    return license if isinstance(license, str) and ONE_WORD.fullmatch(license) else None


def published_name(name: str) -> str:
    """
    Return the name of a model or an adapter for others to read, without folders of this machine: a Hub id as it is; of
    a folder, the id of the repository that is in it or that was converted to it, and else the folder's name. A folder
    `checkpoint` or `checkpoint-100` is named by the one that it is in.
    """
    folder = Path(os.path.abspath(name))
    if not folder.is_dir() and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        return name
    if cached := hub_repository(folder):
        return cached[0]
    origin = read_origin(folder)
    if origin and origin["kind"] in CONVERTED and "repo_id" in origin["source"]:
        return origin["source"]["repo_id"]
    return folder.parent.name if re.fullmatch(r"checkpoint(-\d+)?", folder.name) else folder.name
