"""The paper's LoRA adapter: its config, its strength alpha, loading it, and the check that model and adapter work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub.errors import HfUriError, HFValidationError
from huggingface_hub.utils import parse_hf_uri, validate_repo_id
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME, cached_file

from .checkpoint_files import download, fetch, open_weights, reading_config
from .modeling_pllava import PllavaForConditionalGeneration

if TYPE_CHECKING:  # peft takes a second to import: the functions import it when they run
    from peft import LoraConfig, PeftConfig, PeftModel

ALPHA_FILE = "alpha.json"  # beside an adapter: alpha in training, and the best one of each sweep
ADAPTER_FILES = ["adapter_*", ALPHA_FILE]
# The paper's targets, query and value, by their names in text models: apart as in Llama, Mistral, Qwen and Gemma, or
# in one layer with the key as in Phi-3 and GPT-NeoX
LORA_TARGETS = ("q_proj", "v_proj", "qkv_proj", "query_key_value")
CHECKED_TOKENS = 8  # visual tokens per video in `check_model`, to keep it fast


def lora_config(
    r: int = 128, lora_alpha: float = 32, lora_dropout: float = 0.05, targets: str = "|".join(LORA_TARGETS)
) -> LoraConfig:
    """
    Return the paper's adapter config: LoRA on the text model's query and value projections, the projector in full.

    Args:
        targets (`str`): Names of the text model's linear layers to adapt, as a regular expression; by default those of
            `LORA_TARGETS` that it has.
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
    Set the strength of the active LoRA adapters of a loaded model. Equation 3 of the paper:

    $$W = W_0 + \frac{\alpha}{r} B A$$

    Training uses alpha = 32. A lower alpha afterwards blends the image model's text weights back in: in the paper,
    captions are best near 4 and multiple choice near 20. At 0 the text weights are those of the image model, while the
    projector stays the trained one.

    Args:
        model: A model wrapped by PEFT. Saving and merging use the new alpha.
        alpha: LoRA's `lora_alpha`.

    Raises:
        ValueError: if the model has no LoRA layers, or they are merged into the weights.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise ValueError(f"Alpha is the strength of a LoRA adapter, but this {type(model).__name__} has none")
    if any(layer.merged for layer in layers):
        raise ValueError("The adapter is merged into the weights: call `model.unmerge_adapter()` before setting alpha")
    for name in model.active_adapters:
        for layer in layers:
            if name in layer.lora_alpha:
                layer.lora_alpha[name] = alpha
                layer.set_scale(name, 1.0)  # times alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA
        model.peft_config[name].lora_alpha = alpha
        model.peft_config[name].alpha_pattern = {}  # saved with the adapter: alpha is the same for all layers


# --- loading an adapter ----------------------------------------------------------------------------------------------


def fetch_adapter(adapter: str | os.PathLike) -> Path:
    """
    Return the local directory of a PEFT adapter with safetensors weights.

    Args:
        adapter: A directory, or its place on the Hub in the notation of `hf://` URIs:
            `ORGANISATION/NAME[@REVISION][/FOLDER]`.

    Raises:
        ValueError: if there is none, or it has no safetensors weights.
    """
    name = os.fspath(adapter)
    if os.path.exists(name):
        directory = fetch(name)
    else:
        try:
            uri = parse_hf_uri(f"hf://models/{name}")
        except HfUriError as error:
            raise ValueError(
                f"{name}: neither a directory nor ORGANISATION/NAME[@REVISION][/FOLDER] of an adapter on the Hub"
            ) from error
        folder = f"{uri.path_in_repo}/" if uri.path_in_repo else ""
        files = [f"{folder}{file}" for file in ADAPTER_FILES]
        directory = download(uri.id, files, uri.revision) / folder
    if not (directory / ADAPTER_SAFE_WEIGHTS_NAME).exists():
        raise ValueError(f"{adapter} has no {ADAPTER_SAFE_WEIGHTS_NAME}: it is not a PEFT adapter, or it is pickled")
    return directory


def read_adapter_config(directory: Path) -> PeftConfig:
    """Read an adapter's config; a broken one is a `ValueError`."""
    from peft import PeftConfig

    with reading_config(str(directory)):
        return PeftConfig.from_pretrained(directory)


def find_base_model(directory: Path) -> tuple[str, str | None]:
    """
    Return the name of the model that an adapter was trained on, and its revision if the adapter's config has one.

    Raises:
        ValueError: if it is neither a directory nor a model that the Hub provides.
    """
    config = read_adapter_config(directory)
    name, revision = config.base_model_name_or_path, config.revision
    if not name:
        raise ValueError(f"{directory}: its config names no base model: pass the model (--model)")
    if os.path.isdir(name):
        return name, None
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"The adapter's base model is {name!r}, a folder of the machine on which it was trained: pass the model "
            "(--model)"
        ) from error
    try:
        cached_file(name, CONFIG_NAME, revision=revision)
    except OSError as error:
        place = name if revision is None else f"{name}@{revision}"
        raise ValueError(
            f"The adapter's base model {place!r} is neither a folder here nor a model that the Hub provides: pass the "
            f"model (--model). {error}"
        ) from error
    return name, revision


def add_adapter(model: PreTrainedModel, directory: Path, is_trainable: bool) -> PeftModel:
    """Wrap a model in PEFT with an adapter, whose weights must be exactly those that its config describes for it."""
    from peft import PeftModel, get_peft_model_state_dict

    with open_weights(directory / ADAPTER_SAFE_WEIGHTS_NAME) as weights:
        keys = set(weights.keys())
    has_projector = any("multi_modal_projector" in key for key in keys)
    if has_projector and type(model.model.multi_modal_projector.linear_1) is not nn.Linear:
        raise ValueError(
            "The adapter contains a projector, which cannot replace a quantised one: exclude "
            "`model.multi_modal_projector` from the quantisation, as `pllava.quantization_config(4)` does"
        )
    mismatch = f"The adapter {str(directory)!r} does not fit this model"
    try:
        model = PeftModel.from_pretrained(model, directory, is_trainable=is_trainable)
    except (KeyError, RuntimeError) as error:  # a projector or a shape that does not fit
        raise ValueError(f"{mismatch}: {error}") from error
    if difference := keys ^ set(get_peft_model_state_dict(model)):  # PEFT only warns, or says nothing
        raise ValueError(f"{mismatch}: only one of the two has {sorted(difference)}")
    return model if is_trainable else model.eval()


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model inside PEFT's, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def input_device(model: PllavaForConditionalGeneration | PeftModel) -> torch.device:
    """Return the device of a model's inputs. Those of an offloaded model are moved by accelerate."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


# --- checking what was loaded ----------------------------------------------------------------------------------------


@torch.no_grad()
def check_model(model: PllavaForConditionalGeneration | PeftModel) -> None:
    """
    Check that the video, and the adapter if there is one, changes the answer: compare the logits after a blank frame,
    after a noisy frame, and without the adapter. This takes far less time than loading the model.

    Raises:
        ValueError: if the logits are equal or not finite.
    """
    size = model.config.image_size
    noise = torch.randn(1, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    frames = torch.cat([torch.zeros_like(noise), noise]).to(input_device(model))
    logits = _logits_after_videos(model, frames)
    if not logits.isfinite().all():
        raise ValueError("The logits are not finite: the weights are broken, or too large for the dtype")
    if torch.equal(*logits):
        raise ValueError(
            "A blank video and a noisy one give the same logits: the model does not see its videos. The vision tower, "
            "the projector or the placeholder's id is not the one that it was trained with. (`check=False` or "
            "`--no-check` skips this check.)"
        )
    if hasattr(model, "disable_adapter") and _should_change_logits(model):
        with model.disable_adapter():
            base_logits = _logits_after_videos(model, frames)
        if torch.equal(logits, base_logits):
            raise ValueError(
                "The adapter does not change the logits: it was never trained, or belongs to another model. "
                "(`check=False` or `--no-check` skips this check.)"
            )


def _logits_after_videos(model: PllavaForConditionalGeneration | PeftModel, frames: torch.Tensor) -> torch.Tensor:
    """`(videos, 1, 3, height, width)` -> logits after a few visual tokens of each video, `(videos, vocab_size)`."""
    pllava = plain_model(model)
    tokens = pllava.get_video_features(frames).pooler_output[:, :CHECKED_TOKENS]
    ids = torch.full(tokens.shape[:2], model.config.video_token_id, device=tokens.device)
    encoded = {"video": BaseModelOutputWithPooling(pooler_output=tokens)}
    return pllava(input_ids=ids, mm_encoder_outputs=encoded).logits[:, -1]


def _should_change_logits(model: PeftModel) -> bool:
    """Whether the adapter must change the logits: not before it is trained, nor at alpha = 0."""
    if not model.active_peft_config.inference_mode:
        return False
    scalings = [module.scaling for module in model.modules() if hasattr(module, "lora_A")]
    return not scalings or any(any(scaling.values()) for scaling in scalings)
