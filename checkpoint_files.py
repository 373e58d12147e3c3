"""Reading a checkpoint's files, which may be untrusted: download, shard index, weights, configs and a fingerprint."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import tqdm
from safetensors import SafetensorError, safe_open

from .files import read_object

BAR_DELAY = 2  # seconds
FINGERPRINT_BLOCKS, BLOCK_SIZE = 64, 1 << 16  # enough to see a training step, which changes every trained tensor


class DelayedBar(tqdm):
    """A progress bar that appears after two seconds: most downloads are in the cache already."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"delay": BAR_DELAY, **kwargs})


def fetch(
    name: str, allow_patterns: list[str] | None = None, revision: str | None = None, repo_type: str = "model"
) -> Path:
    """Return the directory `name`, or that of a downloaded snapshot of the Hub repository `name`."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{name}: a file; give the directory that it is in")
    return download(name, allow_patterns, revision, repo_type)


def download(
    name: str, allow_patterns: list[str] | None = None, revision: str | None = None, repo_type: str = "model"
) -> Path:
    """Return the directory of a downloaded snapshot of the Hub repository `name`."""
    try:
        return Path(
            snapshot_download(
                name, repo_type=repo_type, revision=revision, allow_patterns=allow_patterns, tqdm_class=DelayedBar
            )
        )
    except (OSError, ValueError) as error:  # no such repository, no access, no network, not a repository id
        place = name if revision is None else f"{name}@{revision}"
        raise ValueError(f"{place}: not a directory, and the Hub does not provide it ({error})") from error


def read_shard_index(file: Path) -> list[str]:
    """Return the names of the shards in an index, which must be safetensors files inside the directory."""
    index = read_object(file)
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
    """Open a safetensors file to read tensors of torch; a broken one is a `ValueError`."""
    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except SafetensorError as error:
        raise ValueError(f"{file}: truncated, or not a safetensors file ({error}); download it again") from error


@contextmanager
def reading_config(name: str) -> Iterator[None]:
    """Wrap code that reads the config of `name`: errors of transformers and PEFT become a `ValueError`."""
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
