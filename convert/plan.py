"""What a conversion is going to write, planned from headers and configs, and checked before anything is written."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerFast

from ..adapters import lora_config
from ..checkpoint_files import reading_config
from ..configuration_pllava import PllavaConfig
from ..modeling_pllava import PllavaForConditionalGeneration
from .sources import Kind, Source, StoredTensor, adapter_tensors, first_with, pllava_name, read_source

if TYPE_CHECKING:
    from peft import LoraConfig

ALPHA = 4.0  # of all the original's evaluation scripts
MODEL_CONFIG = (
    "text_config",
    "vision_config",
    "projector_hidden_act",
    "multimodal_projector_bias",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "num_frames",
    "pooling_shape",
)
# What may differ between a base and what was trained on it
NOT_ARCHITECTURE = {"dtype", "transformers_version", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
VOCABULARY = ("model.language_model.embed_tokens.weight", "lm_head.weight")  # grow with the tokenizer


@dataclass
class Plan:
    """
    What a conversion writes, checked: every weight is there and fits, and none is left over.

    Args:
        checkpoint: What was asked for.
        model: Where the model's weights are: the same, or a training output's base.
        trained: The LoRA, and the projector if it was trained with it.
        config: The model's; its vocabulary has grown where the tokenizer's placeholders need it.
        skeleton: The model as it was, on the meta device.
    """

    checkpoint: Source
    model: Source
    trained: Source
    alpha: float
    keep_adapter: bool
    tokenizer: PreTrainedTokenizerFast
    config: PllavaConfig
    skeleton: PllavaForConditionalGeneration

    def adapter_config(self) -> LoraConfig:
        """Of the LoRA: its own config where PEFT wrote one, else the original's, read off its weights."""
        if self.trained.kind is Kind.ADAPTER:
            from peft import LoraConfig

            config = LoraConfig.from_pretrained(self.trained.directory)
            config.lora_alpha = self.alpha
            return config
        targets = "|".join(sorted({name.split(".")[-2] for name in self.trained.lora}))
        config = lora_config(self.trained.rank, self.alpha, targets=targets)
        config.modules_to_save = config.modules_to_save if self.trained.weights else None
        return config


def plan_conversion(
    source: str | os.PathLike,
    base: str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    alpha: float | None = None,
    keep_adapter: bool = False,
    revision: str | None = None,
) -> Plan:
    """Reads headers and configs, and compares. See [`convert`] for the arguments and the errors raised."""
    source = os.fspath(source)
    checkpoint = read_source(source, revision)
    model, trained = _take_apart(checkpoint, source, base, adapter)
    if not trained.lora and (alpha is not None or keep_adapter):
        raise ValueError(f"{source} is {checkpoint.kind.value}: no LoRA, so no alpha to set and no adapter to keep")
    if alpha is None:
        alpha = trained.config.get("lora_alpha", ALPHA)
    tokenizer = _tokenizer(checkpoint, model)
    with reading_config(source), torch.device("meta"):
        config = _config(checkpoint, model, tokenizer)
        skeleton = PllavaForConditionalGeneration(config)
    plan = Plan(checkpoint, model, trained, alpha, keep_adapter, tokenizer, config, skeleton)
    _drop_vision_layers_that_are_not_read(model, config)
    expected = {pllava_name(name): weight for name, weight in skeleton.state_dict().items()}
    problems = [*_problems(model.weights, expected), *_adapter_problems(plan)]
    if problems:
        raise ValueError("\n".join([f"{source} cannot be converted:", *problems]))
    if max(tokenizer.get_vocab().values()) >= config.text_config.vocab_size:
        config.text_config.vocab_size = -(len(tokenizer) // -64) * 64  # matrix products like multiples of 64
    config.text_config.pad_token_id = tokenizer.pad_token_id
    return plan


def _take_apart(
    checkpoint: Source, name: str, base: str | os.PathLike | None, adapter: str | os.PathLike | None
) -> tuple[Source, Source]:
    """The model without its LoRA, and what was trained: the LoRA, and the projector if it is apart."""
    if (base is not None) != (checkpoint.kind is Kind.TRAINING):
        origin = checkpoint.config.get("_name_or_path")
        hint = f"name the image model that was trained (base, --base){f'; it says {origin!r}' if origin else ''}"
        raise ValueError(f"{name} is {checkpoint.kind.value}: {hint if base is None else 'it takes no base'}")
    if (adapter is not None) != (checkpoint.kind is Kind.OURS):
        hint = "name the adapter to merge (adapter, --adapter); by itself it needs no conversion"
        raise ValueError(f"{name} is {checkpoint.kind.value}: {hint if adapter is None else 'it takes no adapter'}")
    if checkpoint.kind is Kind.TRAINING:
        model = read_source(os.fspath(base))
        if model.kind not in (Kind.IMAGE, Kind.OURS):
            raise ValueError(f"{base} is {model.kind.value}: no base for {name}")
        _compare_architectures(checkpoint, model)
        return model, checkpoint
    if checkpoint.kind is Kind.OURS:
        trained = read_source(os.fspath(adapter))
        if trained.kind is not Kind.ADAPTER:
            raise ValueError(f"{adapter} is {trained.kind.value}: no adapter for {name}")
        return checkpoint, trained
    if checkpoint.kind is Kind.ADAPTER:
        raise ValueError(f"{name} is {checkpoint.kind.value}: give the model as the source, and this as its adapter")
    trained = Source(checkpoint.directory, checkpoint.kind, {}, {}, checkpoint.lora)
    if checkpoint.lora:  # the projector of an official checkpoint was trained, too: a kept adapter goes with it
        trained.weights = {key: value for key, value in checkpoint.weights.items() if "multi_modal_projector" in key}
    return checkpoint, trained


def _compare_architectures(trained: Source, base: Source) -> None:
    """Raises a `ValueError` if a training output says in its config that it was trained on another model."""
    differences = []
    with reading_config(f"{trained.directory} or {base.directory}"):
        ours, theirs = (PllavaConfig(**_model_config(source.config)) for source in (trained, base))
    for part in ("text_config", "vision_config"):
        ours_part, theirs_part = getattr(ours, part), getattr(theirs, part)
        for key in sorted(type(ours_part)().to_dict().keys() - NOT_ARCHITECTURE):
            values = getattr(ours_part, key, None), getattr(theirs_part, key, None)
            if values[0] != values[1]:
                differences.append(f"{part}.{key}: {values[0]} was trained, {values[1]} in the base")
    if differences:
        raise ValueError("\n".join([f"{base.directory} is not the model that was trained:", *differences]))


# --- configuration and tokenizer -------------------------------------------------------------------------------------


def _model_config(config: dict) -> dict:
    return {key: config[key] for key in MODEL_CONFIG if key in config}


def _config(checkpoint: Source, model: Source, tokenizer: PreTrainedTokenizerFast) -> PllavaConfig:
    config = PllavaConfig(
        # Of a training output, the model's parts are the base's, and the frames and the pooling its own
        **(_model_config(checkpoint.config) | _model_config(model.config) | _pooling(checkpoint.config)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    config.architectures = [PllavaForConditionalGeneration.__name__]
    config.dtype = model.weights[VOCABULARY[0]].meta.dtype if VOCABULARY[0] in model.weights else None
    return config


def _pooling(config: dict) -> dict:
    return {key: config[key] for key in ("num_frames", "pooling_shape") if key in config}


def _tokenizer(checkpoint: Source, model: Source) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer, exactly as its tokenizer.json says, with the placeholders in its vocabulary."""
    directory = first_with("tokenizer.json", checkpoint, model)
    if directory is None:
        raise ValueError(f"{checkpoint.directory} holds no tokenizer.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    new = [token for token in ("<image>", "<video>") if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.padding_side = "left"
    tokenizer.chat_template = None  # the processor's is the one
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


# --- checks ----------------------------------------------------------------------------------------------------------


def _drop_vision_layers_that_are_not_read(model: Source, config: PllavaConfig) -> None:
    prefix = "model.vision_tower.encoder.layers."
    for name in [name for name in model.weights if name.startswith(prefix)]:
        layer = int(name.removeprefix(prefix).split(".")[0])
        if layer >= config.num_vision_layers:
            del model.weights[name]
            model.unused.add(f"vision layer {layer}")


def _problems(found: dict[str, StoredTensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """What is missing, left over or of the wrong shape."""
    problems = [f"missing: {name} {tuple(expected[name].shape)}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"left over: {found[name].key}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        shapes = tuple(found[name].meta.shape), tuple(expected[name].shape)
        if shapes[0] != shapes[1]:
            problems.append(f"wrong shape: {name} is {shapes[0]}, and not {shapes[1]}")
    return problems


def _adapter_problems(plan: Plan) -> list[str]:
    """The same of what was trained: PEFT says, on the meta device, what its config asks for."""
    if not plan.trained.lora:
        return []
    from peft import get_peft_model, get_peft_model_state_dict

    adapted = get_peft_model(copy.deepcopy(plan.skeleton), plan.adapter_config(), low_cpu_mem_usage=True)
    problems = _problems(adapter_tensors(plan.trained), get_peft_model_state_dict(adapted))
    if not any(b.read().any() for _, b in plan.trained.lora.values()):
        problems.append("without effect: every B of the LoRA is zero, so it was never trained")
    return problems
