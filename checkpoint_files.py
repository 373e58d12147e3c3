"""A checkpoint's files, which a stranger may have written: its index and weights, and a name for what they hold."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

BLOCKS, BLOCK = 64, 1 << 16  # of a file are read: a training step changes every tensor that it trains


def read_json(file: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: if the file holds no JSON object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{file}: no valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file}: no JSON object, but a {type(value).__name__}; fetch it again")
    return value


def read_shard_index(file: Path) -> list[str]:
    """
    The names of a checkpoint's shards, from its `model.safetensors.index.json`.

    Raises:
        ValueError: if this is no index, or names a file that is no safetensors file or lies outside its directory.
    """
    index = read_json(file)
    weight_map = index.get("weight_map")
    if not isinstance(index.get("metadata"), dict) or not isinstance(weight_map, dict):
        raise ValueError(f"{file}: an index of shards has a `metadata` and a `weight_map`, both JSON objects")
    for weight, shard in weight_map.items():
        path = PurePosixPath(shard) if isinstance(shard, str) else None
        if path is None or path.suffix != ".safetensors":
            raise ValueError(f"{file}: {weight} is to be in {shard!r}, and weights are read from .safetensors only")
        if path.is_absolute() or ".." in path.parts or "\\" in shard:
            raise ValueError(f"{file}: {weight} is to be in {shard!r}, outside the checkpoint's directory")
    return sorted(set(weight_map.values()))


@contextmanager
def open_weights(file: Path) -> Iterator[safe_open]:
    """
    `safe_open`, as tensors of torch.

    Raises:
        ValueError: if the file is broken.
    """
    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except SafetensorError as error:
        raise ValueError(f"{file}: truncated, or no safetensors file ({error}); fetch it again") from error


@contextmanager
def reading_config(name: str) -> Iterator[None]:
    """
    Around reading a config, of the checkpoint or adapter `name`.

    Raises:
        ValueError: if transformers or PEFT can make none of what it holds.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, StrictDataclassError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())  # in one line
        raise ValueError(f"{name}: its config cannot be used ({reason})") from error


def fingerprint(directory: str | os.PathLike) -> str | None:
    """
    A name for the weights and configs in a local directory, which have no commit of the Hub; None for what is none. Of
    large files it reads blocks at equal distances, so that 60 GB take a moment.
    """
    folder = Path(directory)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for block in range(BLOCKS):
                content.seek(block * size // BLOCKS)
                digest.update(content.read(BLOCK))
    return digest.hexdigest()[:16]


def fetch(
    name: str, allow_patterns: list[str] | None = None, revision: str | None = None, repo_type: str = "model"
) -> Path:
    """
    The directory `name`, or a repository on the Hub as one, with the files that the patterns allow, by default all.

    Raises:
        ValueError: if there is neither.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{name}: a file; give the directory that it is in")
    try:
        return Path(snapshot_download(name, repo_type=repo_type, revision=revision, allow_patterns=allow_patterns))
    except (OSError, ValueError) as error:  # no such repository, no access, no network, not an id
        raise ValueError(f"{name}: no directory, and no repository that the Hub gives ({error})") from error
