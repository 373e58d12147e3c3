"""The paper's LoRA adapter: its config, its strength alpha, loading it, and the check that it has an effect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
)

from .checkpoint_files import fetch, open_weights, reading_config
from .modeling_pllava import PllavaForConditionalGeneration

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel


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
