"""Reading the checkpoint to convert: its kind and family, and the headers of its tensors under PLLaVA's names."""

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

from ..checkpoint_files import fetch, open_weights, read_shard_index, reading_config
from ..files import read_object
from .families import Family, find_family
from .model_values import model_values, vision_values
from .weight_names import ADAPTER_PREFIX, LORA, UNUSED, VISION_TOWER, lora_names, pllava_name, tower_name

CONFIG_PATTERNS = ["*.json", "README.md"]
FILE_PATTERNS = [*CONFIG_PATTERNS, "*.safetensors", "*.jinja"]
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
    """A tensor in a safetensors file; `meta` has its shape, and the dtype in which it is read."""

    file: Path
    key: str
    meta: torch.Tensor

    def read(self) -> torch.Tensor:
        """Return the tensor, mapped from its file: pages are read when used, and freed with the tensor."""
        with open_weights(self.file) as weights:
            return weights.get_tensor(self.key).to(self.meta.dtype)


@dataclass
class StoredCheckpoint:
    """
    A checkpoint on disk.

    Args:
        config: Its config.json, or adapter_config.json.
        weights: Its tensors, by their names in PLLaVA's state dict.
        lora: The LoRA matrices (A, B), by the name of the weight that they change.
        family: None for an adapter.
        values: What its config says, as arguments of PLLaVA's config.
        tower: Where the vision tower was read from, if it is not in `directory` with all its files.
        unused: What PLLaVA does not read.
        differences: What the model does otherwise than PLLaVA.
    """

    directory: Path
    kind: Kind
    config: dict[str, Any]
    weights: dict[str, StoredTensor]
    lora: dict[str, tuple[StoredTensor, StoredTensor]]
    family: Family | None = None
    values: dict[str, Any] = field(default_factory=dict)
    tower: Path | None = None
    unused: set[str] = field(default_factory=set)
    differences: list[str] = field(default_factory=list)

    def adapter_tensors(self) -> dict[str, StoredTensor]:
        """Return the LoRA, and the weights beside it, by their names in a PEFT adapter's file."""
        tensors = {f"{ADAPTER_PREFIX}{name}": tensor for name, tensor in self.weights.items()}
        for name, pair in self.lora.items():
            tensors |= zip(lora_names(name), pair, strict=True)
        return tensors


def read_checkpoint(name: str, revision: str | None = None, vision_tower: str | None = None) -> StoredCheckpoint:
    """
    Read the headers of a checkpoint.

    Args:
        name: A directory or Hub id.
        revision: Of `name` on the Hub.
        vision_tower: Directory or Hub id of its vision tower, instead of the one that its config names.

    Raises:
        ValueError: if it is of no known kind or broken, or its vision tower is inside it and another one is given.
    """
    directory = fetch(name, FILE_PATTERNS, revision)
    adapter = directory / ADAPTER_CONFIG_NAME
    config_file = adapter if adapter.exists() else directory / "config.json"
    if not config_file.exists():
        raise ValueError(f"{name}: not a checkpoint, it has no config.json")
    config = read_object(config_file)
    with reading_config(name):
        family = None if "peft_type" in config else find_family(name, config)
    if vision_tower is not None and (family is None or family.layout.tower is None):
        raise ValueError(f"{name} has its vision tower inside it: it takes no other (vision_tower, --vision-tower)")
    weights, halves, unused = {}, {}, set()
    for tensor in _stored_tensors(name, directory):
        if UNUSED.search(tensor.key):
            unused.add(tensor.key)
        elif match := LORA.fullmatch(tensor.key):
            halves.setdefault(pllava_name(f"{match[1]}.weight"), {})[match[2]] = tensor
        else:
            weights[pllava_name(tensor.key, family.layout.renames if family else ())] = tensor
    if incomplete := [f"{weight} (only lora_{min(pair)})" for weight, pair in halves.items() if len(pair) == 1]:
        raise ValueError(f"{name}: a LoRA has two matrices, A and B; one is missing for {incomplete}")
    lora = {weight: (pair["A"], pair["B"]) for weight, pair in halves.items()}
    kind = _recognise(name, config, family, weights, lora)
    checkpoint = StoredCheckpoint(directory, kind, config, weights, lora, family, unused=unused)
    if family is not None:
        vision_config = _add_tower(checkpoint, vision_tower) if family.layout.tower else None
        with reading_config(name):
            checkpoint.values, checkpoint.differences = model_values(family, config, vision_config)
    return checkpoint


def _add_tower(checkpoint: StoredCheckpoint, vision_tower: str | None) -> dict[str, Any] | None:
    """
    Add what the checkpoint lacks of its vision tower: the weights, or only the config and the image processor.

    Returns:
        The tower's config; None if the checkpoint has everything.
    """
    layout, config = checkpoint.family.layout, checkpoint.config
    has_weights = any(name.startswith(VISION_TOWER) for name in checkpoint.weights)
    has_config = "vision_config" in config and not layout.flat  # beside a flat config, it is of a conversion
    if vision_tower is None and has_weights and has_config and has_image_processor(checkpoint.directory):
        return None
    named = vision_tower or config.get(layout.tower)
    if not isinstance(named, str) or not named:
        raise ValueError(
            f"{checkpoint.directory}: its config does not name its vision tower (`{layout.tower}`); pass the tower's "
            "directory or Hub id (vision_tower, --vision-tower)"
        )
    try:
        name = named if vision_tower else named.split(":")[-1]  # TinyLLaVA may write "siglip:" before it
        directory = fetch(name, CONFIG_PATTERNS if has_weights else FILE_PATTERNS)
        tensors = [] if has_weights else list(_stored_tensors(named, directory))
        with reading_config(named):
            vision_config = vision_values(read_object(directory / "config.json"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{error}\n{named} is the vision tower; pass the directory or Hub id of one with safetensors "
            "(vision_tower, --vision-tower)"
        ) from error
    checkpoint.tower = directory
    dtype = next((each.meta.dtype for each in checkpoint.weights.values()), None)  # of the text model
    for tensor in tensors:
        if name := tower_name(tensor.key):
            meta = tensor.meta.to(dtype or tensor.meta.dtype)
            checkpoint.weights[name] = StoredTensor(tensor.file, tensor.key, meta)
    return None if has_config else vision_config


def directory_with(file: str, *checkpoints: StoredCheckpoint) -> Path | None:
    """Return the directory of the first checkpoint that has the file."""
    return next((each.directory for each in checkpoints if (each.directory / file).exists()), None)


def has_image_processor(directory: Path) -> bool:
    """Whether a directory says how images are prepared: in the file of the image processor, or of the processor."""
    file = directory / "processor_config.json"
    return (directory / "preprocessor_config.json").exists() or (
        file.exists() and "image_processor" in read_object(file)
    )


def _recognise(name: str, config: dict[str, Any], family: Family | None, weights: dict, lora: dict) -> Kind:
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
    if family.is_pllava:
        return Kind.PLLAVA
    if lora and not family.base_of_original:
        raise ValueError(
            f"{name}: its weights have a LoRA beside them; merge it with PEFT's `merge_and_unload()` first"
        )
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
