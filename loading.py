"""
Loading: LoRA adapters and their strength alpha, quantisation, and a check that what was loaded is alive.

peft takes a second to import: the functions import it when they run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from .adapters import _adapter_config, _adapter_directory, _with_adapter, check_model, set_alpha
from .checkpoint_files import fingerprint, open_weights, read_shard_index, reading_config
from .configuration_pllava import PllavaConfig
from .modeling_pllava import PllavaForConditionalGeneration
from .processing_pllava import HUB_OPTIONS

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

WEIGHTS_PER_BYTE = 2  # of the densest format, with four bits a weight


def quantization_config(bits: int) -> BitsAndBytesConfig:
    """
    bitsandbytes quantisation of the text model to 4 (NF4) or 8 bits, for `from_pretrained` or [`load_model`]. The
    vision tower and the projector, a few per cent of the weights, stay as they are: the projector is trained in full.
    """
    if bits not in (4, 8):
        raise ValueError(f"bitsandbytes quantises to 4 or 8 bits; got {bits}")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )


def load_config(name: str, **kwargs: Any) -> PllavaConfig:
    """
    The config of a PLLaVA.

    Raises:
        ValueError: if the model is none, or its config cannot be used.
    """
    with reading_config(name):
        config = AutoConfig.from_pretrained(name, **kwargs)
    if config.model_type != "pllava":
        raise ValueError(
            f"{name!r} is a {config.model_type!r}, no PLLaVA yet: `pllava convert {name} DIRECTORY` makes it one"
        )
    return config


def load_model(
    pretrained_model_name_or_path: str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    alpha: float | None = None,
    check: bool = True,
    is_trainable: bool = False,
    **kwargs: Any,
) -> PllavaForConditionalGeneration | PeftModel:
    """
    A PLLaVA, with an adapter where one is named, checked to read its videos and to use the adapter.

    Args:
        pretrained_model_name_or_path: Directory or Hub id; by default the model that the adapter names as its base.
        adapter: Directory or Hub id of a PEFT adapter.
        alpha: The adapter's strength (see [`set_alpha`]); its own by default.
        check: Whether to run [`check_model`].
        is_trainable: Whether the adapter is to be trained on.
        kwargs: For `from_pretrained`: `dtype`, `device_map="auto"`, `quantization_config`, `revision`, ...; there is
            no `variant`.

    Raises:
        ValueError: if the model is no PLLaVA, a file of it is broken or names one elsewhere, the adapter does not fit
            it, or the check finds one of them dead.
        OSError: if there is no such model, or none whose weights are safetensors.
    """
    if adapter is None and alpha is not None:
        raise ValueError("alpha is the strength of an adapter: name one, or convert the model with another alpha")
    adapter = adapter and _adapter_directory(adapter)
    if pretrained_model_name_or_path is None:
        if adapter is None:
            raise ValueError("Name a model or an adapter")
        pretrained_model_name_or_path = _adapter_config(adapter).base_model_name_or_path
    if kwargs.get("variant"):
        raise ValueError(f"Weights are read from {SAFE_WEIGHTS_NAME}, without a variant; got {kwargs['variant']!r}")
    name = os.fspath(pretrained_model_name_or_path)
    model = _load_without_adapter(name, **kwargs)
    if adapter is not None:
        model = _with_adapter(model, adapter, is_trainable)
        if alpha is not None:
            set_alpha(model, alpha)
    if check:
        check_model(model)
    return model


def _load_without_adapter(name: str, **kwargs: Any) -> PllavaForConditionalGeneration:
    find = partial(cached_file, name, **{key: kwargs[key] for key in HUB_OPTIONS & kwargs.keys()})
    config = load_config(name, **find.keywords)
    vocabulary = config.text_config.vocab_size
    for placeholder in ("image_token_index", "video_token_index"):
        if not 0 <= (token := getattr(config, placeholder)) < vocabulary:
            raise ValueError(f"`{placeholder}` is {token}, and the text model's vocabulary ends at {vocabulary - 1}")
    _check_weight_files(name, config, find)
    return PllavaForConditionalGeneration.from_pretrained(name, use_safetensors=True, **kwargs)


def _check_weight_files(name: str, config: PllavaConfig, find: Callable[..., str | None]) -> None:
    """
    Raises a `ValueError` if a file of weights, which `find` gives, is broken, lies elsewhere, or is too small to hold
    what the config describes: before memory is taken for it.
    """
    if weights_name := getattr(config, "transformers_weights", None):
        raise ValueError(
            f"{name}: its config has its weights in {weights_name!r}, and they are read from {SAFE_WEIGHTS_NAME}, or "
            f"the shards in {SAFE_WEIGHTS_INDEX_NAME}, only: remove `transformers_weights`"
        )
    optional = {"_raise_exceptions_for_missing_entries": False}
    if file := find(SAFE_WEIGHTS_NAME, **optional):
        files = [Path(file)]
    elif index := find(SAFE_WEIGHTS_INDEX_NAME, **optional):
        files = [Path(find(shard)) for shard in read_shard_index(Path(index))]
    else:
        return  # transformers says what is missing
    for file in files:
        with open_weights(file):  # reads where its tensors lie
            pass
    if is_deepspeed_zero3_enabled():  # which makes no model without its weights
        return
    with reading_config(name), torch.device("meta"):
        described = PllavaForConditionalGeneration(config).num_parameters()
    stored = sum(file.stat().st_size for file in files)
    if described > stored * WEIGHTS_PER_BYTE:
        raise ValueError(
            f"{name}: its config describes {described:,} weights, too many for the {stored:,} bytes of its files"
        )


def describe_model(
    name: str | None = None,
    adapter: str | None = None,
    alpha: float | None = None,
    dtype: str = "auto",
    quantization_config: QuantizationConfigMixin | None = None,
) -> dict[str, str | float | None]:
    """
    Which model [`load_model`] gives for the same arguments, told from configs, without loading weights: "model",
    "revision", "adapter", "adapter_revision", "alpha", "dtype" and "quantization". A revision is a commit of the Hub,
    or a [`fingerprint`].

    Raises:
        OSError, ValueError: if there is no such model or adapter.
    """
    directory = adapter and _adapter_directory(adapter)
    lora = directory and _adapter_config(directory)
    name = name or lora.base_model_name_or_path
    config = load_config(name)
    return {
        "model": name,
        "revision": getattr(config, "_commit_hash", None) or fingerprint(name),
        "adapter": adapter,
        "adapter_revision": directory and fingerprint(directory),
        "alpha": lora.lora_alpha if lora and alpha is None else alpha,
        "dtype": str(config.dtype).removeprefix("torch.") if dtype == "auto" else dtype,
        "quantization": name_quantization(getattr(config, "quantization_config", quantization_config)),
    }


def name_quantization(found: QuantizationConfigMixin | dict[str, Any] | None) -> str | None:
    """What a model's `quantization_config` makes of its weights, such as "nf4", "llm_int8" or "gptq", if anything."""
    from transformers.quantizers import AutoQuantizationConfig

    if isinstance(found, dict):  # as a checkpoint has it
        found = AutoQuantizationConfig.from_dict(found)
    if isinstance(found, BitsAndBytesConfig):
        return found.quantization_method()
    return found and found.quant_method.value
