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
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from .checkpoint_files import fingerprint, open_weights, read_shard_index, reading_config
from .configuration_pllava import PllavaConfig
from .modeling_pllava import PllavaForConditionalGeneration
from .processing_pllava import HUB_OPTIONS

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

WEIGHTS_PER_BYTE = 2  # of the densest format, with four bits a weight
CHECKED_TOKENS = 8  # of a video: enough to see whether any of it arrives, and no work for a model of any size


def lora_config(
    r: int = 128, lora_alpha: float = 32, lora_dropout: float = 0.05, targets: str = "q_proj|v_proj"
) -> LoraConfig:
    """
    The paper's adapter: LoRA on the query and value projections of the text model, and the projector in full.

    Args:
        targets (`str`): The text model's linear layers to adapt, as alternatives of a regular expression.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=rf".*language_model.*\.({targets})",
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )


def set_alpha(model: PeftModel, alpha: float) -> None:
    r"""
    Sets the strength of the active LoRA adapters, without loading anything anew. Equation 3 of the paper:

    $$W = W_0 + \frac{\alpha}{r} B A$$

    Training takes alpha = 32. Afterwards a lower one blends the image model's text weights back in: the paper finds
    captions best near 4 and multiple choice near 20. 0 is the image model's text weights with the trained projector.

    Args:
        model: A model that PEFT has wrapped; saving or merging it takes the new alpha.
        alpha: LoRA's `lora_alpha`.

    Raises:
        ValueError: if the model has no LoRA layers, or they are merged into the weights already.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise ValueError(f"Alpha is the strength of a LoRA adapter, and this {type(model).__name__} has none")
    if any(layer.merged for layer in layers):
        raise ValueError("The adapter is merged into the weights: unmerge it (`model.unmerge_adapter()`) to set alpha")
    for name in model.active_adapters:
        for layer in layers:
            if name in layer.lora_alpha:
                layer.lora_alpha[name] = alpha
                layer.set_scale(name, 1.0)  # times alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA
        model.peft_config[name].lora_alpha = alpha
        model.peft_config[name].alpha_pattern = {}  # one for all layers, also where it is saved


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


@torch.no_grad()
def check_model(model: PllavaForConditionalGeneration | PeftModel) -> None:
    """
    Asserts that the video reaches the answer, and the adapter, if there is one: the logits of a noisy frame, of a
    blank frame, and without the adapter must differ. One frame and a few tokens: no matter beside loading the model.

    Raises:
        ValueError: if they do not differ, or are no numbers.
    """
    size = model.config.vision_config.image_size
    noise = torch.randn(1, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    device = "cpu" if model.device.type == "meta" else model.device  # offloaded: brought together as it runs
    frames = torch.cat([torch.zeros_like(noise), noise]).to(device)
    blank, noisy = _check_logits(model, frames)
    if not (blank.isfinite().all() and noisy.isfinite().all()):
        raise ValueError("The logits are not finite: the weights are broken, or too large for the dtype")
    if torch.equal(blank, noisy):
        raise ValueError(
            "A blank video and a noisy one give the same logits: the model does not see its videos. The vision tower, "
            "the projector or the placeholder's id are not those it was trained with. (`check=False` or `--no-check` "
            "loads it all the same.)"
        )
    if hasattr(model, "disable_adapter") and _must_have_an_effect(model):
        with model.disable_adapter():
            without = _check_logits(model, frames)
        if torch.equal(torch.stack([blank, noisy]), without):
            raise ValueError(
                "The adapter does not change the logits: it was never trained, or is for another model. "
                "(`check=False` or `--no-check` loads it all the same.)"
            )


def _check_logits(model: PllavaForConditionalGeneration | PeftModel, frames: torch.Tensor) -> torch.Tensor:
    """`(videos, 1, 3, height, width)` -> the logits behind some of each video's tokens, `(videos, vocab_size)`."""
    pllava = model.get_base_model() if hasattr(model, "get_base_model") else model
    tokens = pllava.get_video_features(frames).pooler_output[:, :CHECKED_TOKENS]
    ids = torch.full(tokens.shape[:2], model.config.video_token_id, device=tokens.device)
    encoded = {"video": BaseModelOutputWithPooling(pooler_output=tokens)}
    return pllava(input_ids=ids, mm_encoder_outputs=encoded).logits[:, -1]


def _must_have_an_effect(model: PeftModel) -> bool:
    """Whether the adapter must have an effect: at alpha = 0, or before it is trained, it rightly may have none."""
    if not model.active_peft_config.inference_mode:
        return False
    scalings = [module.scaling for module in model.modules() if hasattr(module, "lora_A")]
    return not scalings or any(any(scaling.values()) for scaling in scalings)


def _with_adapter(model: PreTrainedModel, directory: Path, is_trainable: bool) -> PeftModel:
    from peft import PeftModel, get_peft_model_state_dict

    with open_weights(directory / ADAPTER_SAFE_WEIGHTS_NAME) as weights:
        keys = set(weights.keys())
    brings_projector = any("multi_modal_projector" in key for key in keys)
    if brings_projector and type(model.model.multi_modal_projector.linear_1) is not nn.Linear:
        raise ValueError(
            "The adapter brings a projector of its own, which cannot go into a quantised one: leave "
            "`model.multi_modal_projector` out of the quantisation, as `pllava.quantization_config(4)` does"
        )
    name = str(directory)
    try:
        model = PeftModel.from_pretrained(model, directory, is_trainable=is_trainable)
    except (KeyError, RuntimeError) as error:  # of the projector, or of a shape
        raise ValueError(f"The adapter {name!r} is not for this model: {error}") from error
    if difference := keys ^ set(get_peft_model_state_dict(model)):
        raise ValueError(f"The adapter {name!r} is not for this model: only one of them has {sorted(difference)}")
    return model.eval() if not is_trainable else model


def _adapter_directory(adapter: str | os.PathLike) -> Path:
    name = os.fspath(adapter)
    directory = fetch(name, allow_patterns=["adapter_*"])
    if not (directory / ADAPTER_SAFE_WEIGHTS_NAME).exists():
        raise ValueError(f"{name!r} holds no {ADAPTER_SAFE_WEIGHTS_NAME}: it is no PEFT adapter, or a pickled one")
    return directory


def _adapter_config(directory: Path) -> PeftConfig:
    from peft import PeftConfig

    with reading_config(str(directory)):
        return PeftConfig.from_pretrained(directory)


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
