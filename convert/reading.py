"""Reading the checkpoint to convert: its kind, and the headers of its tensors and LoRA under PLLaVA's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from ..checkpoint_files import fetch, open_weights, read_shard_index
from ..files import read_object
from .weight_names import ADAPTER_PREFIX, LORA, UNUSED, lora_names, pllava_name

FILE_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "README.md"]
PICKLE_PATTERNS = ["*.bin", "*.pt", "*.pth", "*.ckpt"]
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Kind(Enum):
    """The kinds of checkpoints; the values are for messages."""

    OFFICIAL = "an official PLLaVA checkpoint (all weights and LoRA)"
    TRAINING = "an output of the original's training script (LoRA and projector only)"
    IMAGE = "a LLaVA image checkpoint"
    PLLAVA = "a PLLaVA checkpoint of this project"
    ADAPTER = "a PEFT adapter"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; `meta` has its shape and dtype."""

    file: Path
    key: str
    meta: torch.Tensor

    def read(self) -> torch.Tensor:
        """Return the tensor, mapped from its file: pages are read when used, and freed with the tensor."""
        with open_weights(self.file) as weights:
            return weights.get_tensor(self.key)


@dataclass
class StoredCheckpoint:
    """
    A checkpoint on disk.

    Args:
        weights: Its tensors, by their names in PLLaVA's state dict.
        lora: The LoRA matrices (A, B), by the name of the weight that they change.
        unused: What PLLaVA does not read.
    """

    directory: Path
    kind: Kind
    config: dict[str, Any]
    weights: dict[str, StoredTensor]
    lora: dict[str, tuple[StoredTensor, StoredTensor]]
    unused: set[str] = field(default_factory=set)

    def adapter_tensors(self) -> dict[str, StoredTensor]:
        """Return the LoRA, and the weights beside it, by their names in a PEFT adapter's file."""
        tensors = {f"{ADAPTER_PREFIX}{name}": tensor for name, tensor in self.weights.items()}
        for name, pair in self.lora.items():
            tensors |= zip(lora_names(name), pair, strict=True)
        return tensors


def read_checkpoint(name: str, revision: str | None = None) -> StoredCheckpoint:
    """Read the checkpoint `name`, a directory or Hub id; a `ValueError` if it is of no known kind or broken."""
    directory = fetch(name, FILE_PATTERNS, revision)
    adapter = directory / ADAPTER_CONFIG_NAME
    config_file = adapter if adapter.exists() else directory / "config.json"
    if not config_file.exists():
        raise ValueError(f"{name}: not a checkpoint, it has no config.json")
    config = read_object(config_file)
    weights, halves, unused = {}, {}, set()
    for tensor in _stored_tensors(name, directory):
        if UNUSED.search(tensor.key):
            unused.add(tensor.key)
        elif match := LORA.fullmatch(tensor.key):
            halves.setdefault(pllava_name(f"{match[1]}.weight"), {})[match[2]] = tensor
        else:
            weights[pllava_name(tensor.key)] = tensor
    if incomplete := [f"{weight} (only lora_{min(pair)})" for weight, pair in halves.items() if len(pair) == 1]:
        raise ValueError(f"{name}: a LoRA has two matrices, A and B; one is missing for {incomplete}")
    lora = {weight: (pair["A"], pair["B"]) for weight, pair in halves.items()}
    return StoredCheckpoint(directory, _recognise(name, config, weights, lora), config, weights, lora, unused)


def directory_with(file: str, *checkpoints: StoredCheckpoint) -> Path | None:
    """Return the directory of the first checkpoint that has the file."""
    return next((each.directory for each in checkpoints if (each.directory / file).exists()), None)


def _recognise(name: str, config: dict[str, Any], weights: dict, lora: dict) -> Kind:
    parts = {weight.split(".")[1] for weight in weights}
    if "peft_type" in config:
        is_lora = config["peft_type"] == "LORA" and lora and parts <= {"multi_modal_projector"}
        special = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias") if config.get(key)]
        if not is_lora or special:
            raise ValueError(
                f"{name}: only plain LoRA, with or without the projector, can be merged shard by shard (got "
                f"{config['peft_type']}, {special or sorted(parts)}); merge others with PEFT's `merge_and_unload()`"
            )
        return Kind.ADAPTER
    if config.get("model_type") == "pllava":
        return Kind.PLLAVA
    if config.get("model_type") not in ("llava", "llava_next"):
        raise ValueError(f"{name}: neither PLLaVA nor LLaVA, but {config.get('model_type')!r} (config.json)")
    if lora:
        return Kind.OFFICIAL if "language_model" in parts else Kind.TRAINING
    return Kind.IMAGE


def _stored_tensors(name: str, directory: Path) -> Iterator[StoredTensor]:
    for file in _weight_files(name, directory):
        with open_weights(file) as weights:
            for key in weights.keys():  # noqa: SIM118, not a dict
                header = weights.get_slice(key)
                dtype = DTYPES.get(header.get_dtype())
                if dtype is None and not UNUSED.search(key):
                    raise ValueError(
                        f"{file}: {key} has the dtype {header.get_dtype()}, not one of {', '.join(DTYPES)}: "
                        "convert the checkpoint before it was quantised"
                    )
                yield StoredTensor(file, key, torch.empty(header.get_shape(), dtype=dtype, device="meta"))


def _weight_files(name: str, directory: Path) -> list[Path]:
    for single in (ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_NAME):
        if (directory / single).exists():
            return [directory / single]
    index = directory / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        pickles = sorted(file.name for pattern in PICKLE_PATTERNS for file in directory.glob(pattern))
        reason = f", only pickles ({', '.join(pickles)}), which can run any code when loaded" if pickles else ""
        raise ValueError(f"{name}: no safetensors weights{reason}; save them as safetensors first")
    files = [directory / shard for shard in read_shard_index(index)]
    if missing := [file.name for file in files if not file.exists()]:
        raise ValueError(f"{name}: shards in {index.name} are missing: {', '.join(missing)}")
    return files
