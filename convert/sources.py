"""
What a checkpoint directory holds: which kind it is, its tensors by PLLaVA's names, and its LoRA. Reads the headers of
the safetensors files only; tensors are read one by one, when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import torch
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from ..checkpoint_files import fetch, open_weights, read_json, read_shard_index

FILES = ["*.json", "*.safetensors", "*.jinja"]
PICKLES = ["*.bin", "*.pt", "*.pth", "*.ckpt"]

# The names that PLLaVA's parts have had -> `language_model`, `vision_tower`, `multi_modal_projector` and `lm_head`.
RENAMES = [
    (r"^base_model\.model\.", ""),  # PEFT around the whole model
    (r"^model\.", ""),
    (r"^language_model\.base_model\.model\.", "language_model."),  # the original's PEFT, around the text model
    (r"\.base_layer\.", "."),
    (r"^language_model\.model\.", "language_model."),  # transformers before 4.52
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
]
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LORA = re.compile(r"(.*)\.lora_(A|B)(?:\.default)?\.weight")
# What checkpoints hold and PLLaVA has no use for; the vision layers above the one that is read come on top.
UNUSED = re.compile(r"(^|\.)(image_newline|rotary_emb\.inv_freq|position_ids)$")


class Kind(Enum):
    """The kinds of checkpoints, in words for people."""

    OFFICIAL = "an official PLLaVA checkpoint (all weights, LoRA beside them)"
    TRAINING = "an output of the original's training script (LoRA and projector only)"
    IMAGE = "a LLaVA image checkpoint"
    OURS = "a PLLaVA checkpoint as this project writes them"
    ADAPTER = "a PEFT adapter"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; `meta` has its shape and dtype."""

    file: Path
    key: str
    meta: torch.Tensor

    def read(self) -> torch.Tensor:
        """The tensor, mapped from its file: its pages are read when they are used, and dropped with it."""
        with open_weights(self.file) as weights:
            return weights.get_tensor(self.key)


@dataclass
class Source:
    """
    A checkpoint.

    Args:
        weights: Its tensors by the names that PLLaVA's state dict has.
        lora: The pairs (A, B) by the name of the weight that they change.
        unused: What of it nothing reads.
    """

    directory: Path
    kind: Kind
    config: dict
    weights: dict[str, StoredTensor]
    lora: dict[str, tuple[StoredTensor, StoredTensor]]
    unused: set[str] = field(default_factory=set)

    @property
    def rank(self) -> int:
        """LoRA's r."""
        return next(iter(self.lora.values()))[0].meta.shape[0]

    @property
    def largest_file(self) -> int:
        """Bytes."""
        return max(file.stat().st_size for file in {tensor.file for tensor in self.weights.values()})


def read_source(name: str, revision: str | None = None) -> Source:
    """
    Reads what `name`, a directory or Hub id, holds.

    Raises:
        ValueError: if it cannot be had, is none of the kinds above, or a file of it is missing or broken.
    """
    directory = fetch(name, FILES, revision)
    adapter = directory / ADAPTER_CONFIG_NAME
    config_file = adapter if adapter.exists() else directory / "config.json"
    if not config_file.exists():
        raise ValueError(f"{name}: there is no config.json, so this is no checkpoint")
    config = read_json(config_file)
    weights, lora, unused = {}, {}, set()
    for tensor in _stored_tensors(name, directory):
        if UNUSED.search(tensor.key):
            unused.add(tensor.key)
        elif pair := LORA.fullmatch(tensor.key):
            lora.setdefault(pllava_name(f"{pair[1]}.weight"), {})[pair[2]] = tensor
        else:
            weights[pllava_name(tensor.key)] = tensor
    halves = [f"{weight} (only lora_{half})" for weight, pair in lora.items() if len(pair) == 1 for half in pair]
    if halves:
        raise ValueError(f"{name}: a LoRA has two matrices, A and B; missing for {halves}")
    pairs = {weight: (pair["A"], pair["B"]) for weight, pair in lora.items()}
    return Source(directory, _kind(name, config, weights, pairs), config, weights, pairs, unused)


def first_with(file: str, *sources: Source) -> Path | None:
    """The directory of the first of these that has the file."""
    return next((source.directory for source in sources if (source.directory / file).exists()), None)


def pllava_name(key: str) -> str:
    """The name that a tensor called `key` in any of the layouts has in PLLaVA's state dict."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key if key.startswith("lm_head.") else f"model.{key}"


def adapter_tensors(source: Source) -> dict[str, StoredTensor]:
    """The LoRA, and the weights beside it, by their names in a PEFT adapter's file."""
    tensors = {f"base_model.model.{name}": tensor for name, tensor in source.weights.items()}
    for name, pair in source.lora.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{module}.lora_{half}.weight": tensor for half, tensor in zip("AB", pair, strict=True)}
    return tensors


def _kind(name: str, config: dict, weights: dict, lora: dict) -> Kind:
    parts = {weight.split(".")[1] for weight in weights}
    if "peft_type" in config:
        plain = config["peft_type"] == "LORA" and lora and parts <= {"multi_modal_projector"}
        special = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias") if config.get(key)]
        if not plain or special:
            raise ValueError(
                f"{name}: only plain LoRA, with the projector beside it at most, can be merged shard by shard "
                f"(got {config['peft_type']}, {special or sorted(parts)}); `merge_and_unload()` of PEFT merges others"
            )
        return Kind.ADAPTER
    if config.get("model_type") == "pllava":
        return Kind.OURS
    if config.get("model_type") not in ("llava", "llava_next"):
        raise ValueError(f"{name}: neither PLLaVA nor LLaVA, but {config.get('model_type')!r} (config.json)")
    if lora:
        return Kind.TRAINING if "language_model" not in parts else Kind.OFFICIAL
    return Kind.IMAGE


def _stored_tensors(name: str, directory: Path) -> Iterator[StoredTensor]:
    for file in _weight_files(name, directory):
        with open_weights(file) as weights:
            for key in weights.keys():  # noqa: SIM118, it is no dict
                header = weights.get_slice(key)
                dtype = DTYPES.get(header.get_dtype())
                if dtype is None and not UNUSED.search(key):
                    raise ValueError(
                        f"{file}: {key} is of the type {header.get_dtype()}, not one of {', '.join(DTYPES)}: "
                        "convert the checkpoint that it was quantised from"
                    )
                yield StoredTensor(file, key, torch.empty(header.get_shape(), dtype=dtype, device="meta"))


def _weight_files(name: str, directory: Path) -> list[Path]:
    for single in (ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_NAME):
        if (directory / single).exists():
            return [directory / single]
    index = directory / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
        reason = f"only pickles ({', '.join(pickles)}), and loading these can run any code" if pickles else "none"
        raise ValueError(f"{name}: no safetensors weights ({reason}); have them saved as safetensors")
    shards = read_shard_index(index)
    missing = [shard for shard in shards if not (directory / shard).exists()]
    if missing:
        raise ValueError(f"{name}: {index.name} names shards that are not there: {', '.join(missing)}")
    return [directory / shard for shard in shards]
