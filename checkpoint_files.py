"""Reading a checkpoint's files, which may be untrusted: download, shard index, weights, configs and a fingerprint."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from .files import read_object

FINGERPRINT_BLOCKS, BLOCK_SIZE = 64, 1 << 16  # enough to see a training step, which changes every trained tensor


def fetch(
    name: str, allow_patterns: list[str] | None = None, revision: str | None = None, repo_type: str = "model"
) -> Path:
    """
    Return the local directory `name`, or that of a downloaded snapshot of the Hub repository `name`: with the files
    that match the patterns, by default all.

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
    except (OSError, ValueError) as error:  # no such repository, no access, no network, not a repository id
        raise ValueError(f"{name}: not a directory, and the Hub does not provide it ({error})") from error


def read_json(file: Path) -> dict[str, Any]:
    """
    Read the object of a checkpoint's JSON file.

    Raises:
        ValueError: if the file does not contain a JSON object.
    """
    try:
        return read_object(file)
    except ValueError as error:
        raise ValueError(f"{error}; download it again") from error


def read_shard_index(file: Path) -> list[str]:
    """
    Return the names of a checkpoint's shards from its `model.safetensors.index.json`.

    Raises:
        ValueError: if it is not an index, or a shard is not a safetensors file inside the checkpoint's directory.
    """
    index = read_json(file)
    weight_map = index.get("weight_map")
    if not isinstance(index.get("metadata"), dict) or not isinstance(weight_map, dict):
        raise ValueError(f"{file}: a shard index must have `metadata` and `weight_map`, both JSON objects")
    for weight, shard in weight_map.items():
        path = PurePosixPath(shard) if isinstance(shard, str) else None
        if path is None or path.suffix != ".safetensors":
            raise ValueError(f"{file}: {weight} is mapped to {shard!r}, but weights are read from .safetensors only")
        if path.is_absolute() or ".." in path.parts or "\\" in shard:
            raise ValueError(f"{file}: {weight} is mapped to {shard!r}, outside the checkpoint's directory")
    return sorted(set(weight_map.values()))


@contextmanager
def open_weights(file: Path) -> Iterator[safe_open]:
    """
    Open a safetensors file, to read its tensors for torch.

    Raises:
        ValueError: if the file is broken.
    """
    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except SafetensorError as error:
        raise ValueError(f"{file}: truncated, or not a safetensors file ({error}); download it again") from error


@contextmanager
def reading_config(name: str) -> Iterator[None]:
    """
    Wrap code that reads the config of the checkpoint or adapter `name`.

    Raises:
        ValueError: if transformers or PEFT fails on a value in it.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, StrictDataclassError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())  # in one line
        raise ValueError(f"{name}: its config cannot be used ({reason})") from error


def fingerprint(directory: str | os.PathLike) -> str | None:
    """
    Return a hash of the weights and configs in a local directory, which has no commit hash; None if it is not a
    directory. Of each file it reads evenly spaced blocks only, so that 60 GB take a moment.
    """
    folder = Path(directory)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for block in range(FINGERPRINT_BLOCKS):
                content.seek(block * size // FINGERPRINT_BLOCKS)
                digest.update(content.read(BLOCK_SIZE))
    return digest.hexdigest()[:16]
