"""Tiny image models of every family, saved by transformers' own classes, with random weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from layouts import IMAGE_BASE
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

IMAGE_ID = 500  # of `<image>` in the tokenizer of the recordings
PATCH = 14
TEXT = {
    **{"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
TOWER = {
    **{"patch_size": PATCH, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4},
    "num_attention_heads": 4,
}
IM_START = ("<|im_start|>", "<|im_end|>")


def clip(grid: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(**TOWER, image_size=grid * PATCH)


def siglip(grid: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(**TOWER, image_size=grid * PATCH, vision_use_head=False)


def siglip_384() -> SiglipVisionConfig:
    """With the published size, which is no multiple of the patches' size."""
    return SiglipVisionConfig(**TOWER, image_size=384, vision_use_head=False)


@dataclass
class TinyModel:
    """
    An image model to convert, and what its conversion must have.

    Args:
        options: More values of its config.
        tokens: Added to the tokenizer, from 502 on.
        template: The chat template.
        ends: The tokens that end an answer.
    """

    model_class: type[PreTrainedModel]
    config_class: type[PretrainedConfig]
    vision: PretrainedConfig
    text: PretrainedConfig
    image_processor: type = CLIPImageProcessor
    options: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    template: str = "plain"
    ends: tuple[int, ...] = (2,)

    @property
    def grid(self) -> int:
        return self.vision.image_size // PATCH

    @property
    def tiles(self) -> list[list[int]]:
        """The resolutions in which tiles of an image are read beside the whole image."""
        side = self.vision.image_size
        return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


LLAVA = LlavaForConditionalGeneration, LlavaConfig
NEXT = LlavaNextForConditionalGeneration, LlavaNextConfig
NEXT_VIDEO = LlavaNextVideoForConditionalGeneration, LlavaNextVideoConfig
ONEVISION = LlavaOnevisionForConditionalGeneration, LlavaOnevisionConfig
FULL = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
QWEN = {"tokens": IM_START, "template": "chatml", "ends": (2, 503)}
VIP_LAYERS = next(key for key in VipLlavaConfig().to_dict() if key.startswith("vision_feature_layer"))  # or "_layers"
LLAMA_3_ROPE = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    **{"original_max_position_embeddings": 256, "rope_theta": 500000.0},
}
FAMILIES = {
    "vicuna": TinyModel(*LLAVA, clip(4), LlamaConfig(**TEXT)),
    "bakllava": TinyModel(*LLAVA, clip(5), MistralConfig(**TEXT, sliding_window=7)),
    "interleave": TinyModel(
        *LLAVA, siglip(5), Qwen2Config(**TEXT, tie_word_embeddings=True), SiglipImageProcessor, FULL, **QWEN
    ),
    "next-vicuna": TinyModel(
        *NEXT, clip(5), LlamaConfig(**TEXT, rope_scaling={"type": "linear", "factor": 2.0}), LlavaNextImageProcessor
    ),
    "next-mistral": TinyModel(*NEXT, clip(4), MistralConfig(**TEXT), LlavaNextImageProcessor, template="mistral"),
    "next-llama-3": TinyModel(
        *NEXT,
        clip(4),
        LlamaConfig(**TEXT, rope_parameters=LLAMA_3_ROPE),
        LlavaNextImageProcessor,
        tokens=("<|start_header_id|>", "<|eot_id|>"),
        template="llama_3",
        ends=(2, 503),
    ),
    "next-yi": TinyModel(
        *NEXT,
        clip(4),
        LlamaConfig(**TEXT, rope_theta=5000000.0),
        LlavaNextImageProcessor,
        tokens=IM_START,
        template="eval_vcg_llavanext",
        ends=(2, 503),
    ),
    "next-qwen": TinyModel(*NEXT, clip(4), Qwen2Config(**TEXT), LlavaNextImageProcessor, **QWEN),
    "next-video": TinyModel(*NEXT_VIDEO, clip(4), LlamaConfig(**TEXT, attention_bias=True), LlavaNextImageProcessor),
    "onevision": TinyModel(
        *ONEVISION, siglip(5), Qwen2Config(**TEXT, tie_word_embeddings=True), LlavaOnevisionImageProcessor, **QWEN
    ),
    "onevision-qwen3": TinyModel(
        *ONEVISION, siglip(4), Qwen3Config(**TEXT, head_dim=8), LlavaOnevisionImageProcessor, **QWEN
    ),
    "vip": TinyModel(
        VipLlavaForConditionalGeneration,
        VipLlavaConfig,
        clip(4),
        LlamaConfig(**TEXT),
        options={VIP_LAYERS: [-1, -2, 1]},
    ),
}


def write_llava(directory: Path, family: str) -> PreTrainedModel:
    """Write the model of a family, and return it."""
    return write_model(directory, FAMILIES[family])


def write_model(directory: Path, tiny: TinyModel) -> PreTrainedModel:
    torch.manual_seed(0)
    tiles = {} if tiny.config_class in (LlavaConfig, VipLlavaConfig) else {"image_grid_pinpoints": tiny.tiles}
    config = tiny.config_class(
        vision_config=tiny.vision, text_config=tiny.text, image_token_index=IMAGE_ID, **tiles, **tiny.options
    )
    model = tiny.model_class(config).eval()
    for parameter in model.parameters():  # biases are 0 and norms are 1 in a new model
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and bool(parameter.all())), std=0.2)
    model.save_pretrained(directory)
    write_processing_files(directory, tiny)
    return model


def write_processing_files(directory: Path, tiny: TinyModel) -> None:
    """Write the tokenizer, and the image processor of the family."""
    tokenizer = AutoTokenizer.from_pretrained(IMAGE_BASE)
    tokenizer.add_tokens(list(tiny.tokens), special_tokens=True)
    tokenizer.save_pretrained(directory)
    write_image_processor(directory, tiny)


def write_image_processor(directory: Path, tiny: TinyModel) -> None:
    side, crops = tiny.vision.image_size, tiny.image_processor in (CLIPImageProcessor, LlavaNextImageProcessor)
    size = {"shortest_edge": side} if crops else {"height": side, "width": side}
    tiles = {"image_grid_pinpoints": tiny.tiles} if hasattr(tiny.image_processor, "image_grid_pinpoints") else {}
    crop = {"crop_size": {"height": side, "width": side}} if crops else {}
    tiny.image_processor(size=size, **crop, **tiles).save_pretrained(directory)


def rewrite_weights(directory: Path, rename: Callable[[str], str | None]) -> None:
    """Give the weights other names; those for which `rename` returns None are left out."""
    file = directory / "model.safetensors"
    weights = {rename(name): tensor for name, tensor in load_file(file).items()}
    weights.pop(None, None)
    save_file(weights, file, metadata={"format": "pt"})


def edit_config(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace the config by what `change` makes of it."""
    file = directory / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
