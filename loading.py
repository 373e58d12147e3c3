"""Loading a model, with an adapter or quantised, and naming it from its configs before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoProcessor, BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from .adapters import add_adapter, check_model, fetch_adapter, find_base_model, read_adapter_config, set_alpha
from .checkpoint_files import fingerprint, open_weights, read_shard_index, reading_config
from .configuration_pllava import PllavaConfig
from .model_pooling import choose_pooling
from .modeling_pllava import PllavaForConditionalGeneration
from .origins import directory_revision
from .processing_pllava import HUB_OPTIONS, PllavaProcessor

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

WEIGHTS_PER_BYTE = 2  # in the densest format, with four bits per weight


def load_model(
    pretrained_model_name_or_path: str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    alpha: float | None = None,
    check: bool = True,
    is_trainable: bool = False,
    **kwargs: Any,
) -> PllavaForConditionalGeneration | PeftModel:
    """
    Load a PLLaVA, with a PEFT adapter if one is given, and check that its answers depend on video and adapter.

    Args:
        pretrained_model_name_or_path: Directory or Hub id; by default the adapter's base model, at the revision in the
            adapter's config.
        adapter: Directory of a PEFT adapter, or its place on the Hub: `ORGANISATION/NAME[@REVISION][/FOLDER]`.
        alpha: The adapter's strength (see [`set_alpha`]); by default the one in its config.
        check: Whether to run [`check_model`].
        is_trainable: Whether to train the adapter further.
        kwargs: For `from_pretrained`: `dtype` (by default [`auto_dtype`]), `device_map="auto"`, `quantization_config`,
            `revision` (the model's), ...; `variant` is not supported.

    Raises:
        ValueError: if the model is not a PLLaVA, one of its files is broken or refers to a file elsewhere, the adapter
            does not fit it, or the check fails.
        OSError: if there is no such model, or no safetensors weights.
    """
    if adapter is None and alpha is not None:
        raise ValueError("alpha is the strength of an adapter: pass an adapter, or convert the model with that alpha")
    adapter = adapter and fetch_adapter(adapter)
    if pretrained_model_name_or_path is None:
        if adapter is None:
            raise ValueError("Pass a model or an adapter")
        pretrained_model_name_or_path, revision = find_base_model(adapter)
        kwargs["revision"] = kwargs.get("revision") or revision
    if kwargs.get("variant"):
        raise ValueError(f"Weights are read from {SAFE_WEIGHTS_NAME}, without a variant; got {kwargs['variant']!r}")
    model = _load_base_model(os.fspath(pretrained_model_name_or_path), **kwargs)
    if adapter is not None:
        model = add_adapter(model, adapter, is_trainable)
        if alpha is not None:
            set_alpha(model, alpha)
    if check:
        check_model(model)
    return model


def load_processor(model: PllavaForConditionalGeneration | PeftModel) -> PllavaProcessor:
    """Load the processor of a model that [`load_model`] returned, from the same directory or commit."""
    config = model.config
    return AutoProcessor.from_pretrained(config.name_or_path, revision=getattr(config, "_commit_hash", None))


def load_config(name: str, **kwargs: Any) -> PllavaConfig:
    """Load the config of a PLLaVA; a `ValueError` if it is another model's or an adapter, or cannot be used."""
    try:
        with reading_config(name):
            config = AutoConfig.from_pretrained(name, **kwargs)
    except ValueError as error:
        if find_adapter_config_file(name, **kwargs):
            raise ValueError(f"{name!r} is an adapter, not a model: pass it as the adapter (--adapter)") from error
        raise
    if not os.path.isdir(name):  # transformers 5.24 does not set it
        config._commit_hash = extract_commit_hash(cached_file(name, CONFIG_NAME, **kwargs), None)
    if config.model_type != "pllava":
        raise ValueError(
            f"{name!r} is a {config.model_type!r}, not a PLLaVA: convert it with `pllava convert {name} DIRECTORY`"
        )
    return config


def auto_dtype(config: PllavaConfig) -> str:
    """
    Return the dtype in which a model is loaded unless another one is asked for: that of its saved weights; without a
    GPU bfloat16 instead of float16, whose matrix products take a CPU several times longer.
    """
    saved = str(config.dtype or "auto").removeprefix("torch.")
    return "bfloat16" if saved == "float16" and not torch.accelerator.is_available() else saved


def _load_base_model(name: str, **kwargs: Any) -> PllavaForConditionalGeneration:
    find = partial(cached_file, name, **{key: kwargs[key] for key in HUB_OPTIONS & kwargs.keys()})
    config = load_config(name, **find.keywords)
    vocab_size = config.text_config.vocab_size
    for placeholder in ("image_token_index", "video_token_index"):
        if not 0 <= (token := getattr(config, placeholder)) < vocab_size:
            raise ValueError(f"`{placeholder}` is {token}, but the text model's vocabulary ends at {vocab_size - 1}")
    _check_weight_files(name, config, find)
    commit = getattr(config, "_commit_hash", None)
    if commit is not None:
        kwargs["revision"] = commit
    if kwargs.get("dtype", "auto") == "auto":
        kwargs["dtype"] = auto_dtype(config)
    model = PllavaForConditionalGeneration.from_pretrained(name, use_safetensors=True, **kwargs)
    model.config._commit_hash = commit
    return model


def _check_weight_files(name: str, config: PllavaConfig, find: Callable[..., str | None]) -> None:
    """
    Raise a `ValueError` if a weight file is broken, outside the checkpoint, or too small for the model that the config
    describes: before memory is allocated for it. `find` returns the path of a file of the checkpoint.
    """
    if weights_name := getattr(config, "transformers_weights", None):
        raise ValueError(
            f"{name}: its config has its weights in {weights_name!r}, but they are read only from "
            f"{SAFE_WEIGHTS_NAME} or the shards in {SAFE_WEIGHTS_INDEX_NAME}: remove `transformers_weights`"
        )
    optional = {"_raise_exceptions_for_missing_entries": False}
    if file := find(SAFE_WEIGHTS_NAME, **optional):
        files = [Path(file)]
    elif index := find(SAFE_WEIGHTS_INDEX_NAME, **optional):
        files = [Path(find(shard)) for shard in read_shard_index(Path(index))]
    else:
        return  # transformers raises an error
    for file in files:
        with open_weights(file):  # checks the header
            pass
    if is_deepspeed_zero3_enabled():  # which cannot build a model on the meta device
        return
    with reading_config(name), torch.device("meta"):
        described = PllavaForConditionalGeneration(config).num_parameters()
    stored = sum(file.stat().st_size for file in files)
    if described > stored * WEIGHTS_PER_BYTE:
        raise ValueError(
            f"{name}: its config describes {described:,} weights, too many for the {stored:,} bytes of its files"
        )


# --- quantisation ----------------------------------------------------------------------------------------------------


def quantization_config(bits: int) -> BitsAndBytesConfig:
    """
    Return a bitsandbytes config that quantises the text model to 4 (NF4) or 8 bits, for `from_pretrained` or
    [`load_model`]. The vision tower and the projector, a few per cent of the weights, keep their precision: the
    projector is trained in full.
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


# --- which model this is ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """
    Which model answers: its weights, and how they are used. [`Checkpoint.read`] finds out without loading weights.

    Args:
        model: Directory or Hub id.
        revision: The commit on the Hub, or the directory's `fingerprint`.
        adapter, adapter_revision: The same of the adapter, if there is one.
        alpha: The adapter's strength.
        pooling: In the notation of `parse_pooling`, such as "average-16x12x12".
        dtype: Such as "bfloat16".
        quantization: Such as "nf4", if the model is quantised.
    """

    model: str
    revision: str | None
    adapter: str | None
    adapter_revision: str | None
    alpha: float | None
    pooling: str
    dtype: str
    quantization: str | None

    @classmethod
    def read(
        cls,
        model: str | None,
        adapter: str | None = None,
        alpha: float | None = None,
        dtype: str = "auto",
        quantization_config: QuantizationConfigMixin | None = None,
        revision: str | None = None,
        pooling: str | None = None,
        num_frames: int | None = None,
    ) -> Checkpoint:
        """
        Read from configs which model [`load_model`] returns for the same arguments.

        Args:
            pooling, num_frames: A pooling that the model is given, see [`choose_pooling`].

        Raises:
            OSError, ValueError: if there is no such model or adapter, or the model is not a PLLaVA or cannot have this
                pooling.
        """
        directory = adapter and fetch_adapter(adapter)
        lora = directory and read_adapter_config(directory)
        if model is None:
            model, base_revision = find_base_model(directory)
            revision = revision or base_revision
        config = load_config(model, revision=revision)
        if pooling is not None:
            config.video_pooling = choose_pooling(config, pooling, num_frames)
        config.quantization_config = getattr(config, "quantization_config", quantization_config)
        dtype = auto_dtype(config) if dtype == "auto" else dtype
        return cls.of(config, dtype, adapter, lora.lora_alpha if lora and alpha is None else alpha)

    @classmethod
    def of(
        cls, config: PllavaConfig, dtype: str, adapter: str | None = None, alpha: float | None = None
    ) -> Checkpoint:
        """Describe a model that has this config, and the PEFT `adapter` if one is given."""
        return cls(
            config.name_or_path,
            getattr(config, "_commit_hash", None) or fingerprint(config.name_or_path),
            adapter,
            adapter and directory_revision(fetch_adapter(adapter)),
            alpha,
            str(config.video_pooling),
            dtype,
            _quantization_name(getattr(config, "quantization_config", None)),
        )


def _quantization_name(config: QuantizationConfigMixin | dict[str, Any] | None) -> str | None:
    """Return the name of a quantisation, such as "nf4", "llm_int8" or "gptq"; None without one."""
    from transformers.quantizers import AutoQuantizationConfig

    if isinstance(config, dict):  # read from a checkpoint's config.json
        config = AutoQuantizationConfig.from_dict(config)
    if isinstance(config, BitsAndBytesConfig):
        return config.quantization_method()
    return config and config.quant_method.value
