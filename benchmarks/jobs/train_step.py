"""
The forward and backward pass of a training step: LoRA of rank 128 on q and v and a trained projector, with a frozen
tower. An example is a clip of 16 frames and 64 tokens of text, the last 20 of them labelled.
"""

from functools import partial
from typing import Any

import torch
from measuring import OURS, Contender, Job, Setting, Step, left_out
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

import pllava
from jobs.models import DIFFERS, FRAMES, SHAPES, SMALL, build_ours, build_stand_in, make_inputs

LABELLED = 20
STAND_IN = "original's graph (stand-in)"
CACHED, QLORA, ZERO = "ours, cached features", "ours, QLoRA", "ours, ZeRO"


def training_inputs(setting: Setting) -> dict[str, Any]:
    """Return random inputs in the collator's shapes."""
    inputs = make_inputs(setting)
    labels = inputs["input_ids"].clone()
    labels[:, :-LABELLED] = -100
    return {**inputs, "labels": labels}


def prepare_stand_in(checkpointing: bool, setting: Setting) -> Step:
    model, inputs = build_stand_in(setting), training_inputs(setting)
    # As `pllava.lora_config()` without the projector: the original gives PEFT the text model only
    lora = LoraConfig(
        r=128, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model.language_model = get_peft_model(model.language_model, lora)
    if checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()

    def run() -> None:
        model.zero_grad()
        loss, logits = model(**inputs, use_cache=False)  # as in the training loop, which keeps the logits
        loss.backward()

    return Step(run)


def prepare_ours(name: str, checkpointing: bool, setting: Setting) -> Step:
    model, inputs = build_ours(setting), training_inputs(setting)
    model.model.vision_tower.requires_grad_(False)
    if name == QLORA:
        model = quantized(model)
    model = trained(model, checkpointing)
    features = setting.cache / "features.safetensors"
    if name == CACHED:
        shape = SHAPES[setting.size]
        setting.cache.mkdir(parents=True, exist_ok=True)
        del inputs["pixel_values_videos"]
        save_file({"features": torch.randn(FRAMES, shape.grid**2, shape.tower[0])}, features)

    def run() -> None:
        model.zero_grad()
        cached = load_file(features, setting.device)["features"] if name == CACHED else None
        loss(model, inputs, cached).backward()

    return Step(run)


def trained(model: nn.Module, checkpointing: bool) -> PeftModel:
    """Prepare a model as `PllavaSFTTrainer` does."""
    from trl.trainer.utils import add_fused_lm_head

    from pllava.train.trainer import LabelledPositions

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as SFTTrainer does
    model.labelled = LabelledPositions(model.model)
    model = get_peft_model(model, pllava.lora_config())
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def loss(model: PeftModel, inputs: dict[str, Any], features: torch.Tensor | None = None) -> torch.Tensor:
    """The loss of `PllavaSFTTrainer`."""
    base, inputs = model.get_base_model(), dict(inputs)
    if features is not None:
        tokens = BaseModelOutputWithPooling(pooler_output=torch.stack(base.model.pool([features])))
        inputs["mm_encoder_outputs"] = {"video": tokens}
    inputs["shift_labels"] = base.labelled.select(inputs["labels"])
    return model(**inputs, use_cache=False, fused_lm_head=True).loss


def quantized(model: nn.Module) -> nn.Module:
    """Quantize the matrices of the text model's layers to 4 bits."""
    import bitsandbytes as bnb

    device = model.device
    for module in list(model.model.language_model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                linear = bnb.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=child.weight.dtype,
                    quant_type="nf4",
                )
                linear.weight = bnb.nn.Params4bit(child.weight.data.cpu(), requires_grad=False, quant_type="nf4")
                setattr(module, name, linear.to(device))
    return model


def cases(setting: Setting) -> dict[str, dict[str, Contender]]:
    return {
        "checkpointing" if checkpointing else "no checkpointing": {
            OURS: partial(prepare_ours, OURS, checkpointing),
            STAND_IN: partial(prepare_stand_in, checkpointing),
            **{name: partial(prepare_ours, name, checkpointing) for name in (CACHED, QLORA)},
            ZERO: partial(left_out, "it splits a model among processes, and this is one; docs/memory.md computes it"),
        }
        for checkpointing in (False, True)
    }


JOB = Job(
    "Training step: forward and backward pass of one clip, LoRA of rank 128 on q and v, a trained projector, a frozen "
    "tower. The limit is the matrix products that each makes, at the rate of a large one.",
    "matmul",
    cases,
    {STAND_IN: DIFFERS[STAND_IN], CACHED: "reads the tower's features from a file, as from a feature cache"},
    {OURS: SMALL},
)
