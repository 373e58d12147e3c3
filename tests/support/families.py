"""
Tiny models of three families, with random weights. Each has what the others have not: a CLS token; an odd grid, a
frame that is not a whole number of patches, and tied embeddings; a tower that takes patches, and norms of queries and
keys. All make 36 tokens of 4 frames.
"""

from dataclasses import dataclass

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Siglip2VisionConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
)
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

import pllava
from pllava.nano.training.tokenizer import train_tokenizer

TEXTS = [
    "USER: What happens in the video? ASSISTANT: A red circle moves from left to right.",
    "USER: How often does it bounce? ASSISTANT: It bounces twice, then it leaves.",
    "USER: Which of the two is larger? ASSISTANT: The second one is, and it is blue.",
]
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # or all logits are close to zero, and greedy search a toss-up
}
FRAMES, POOLING_SHAPE = 4, (4, 3, 3)


@dataclass(frozen=True)
class Family:
    vision: PretrainedConfig
    text: type[PretrainedConfig]
    options: dict  # of the text model
    layer: int  # of the vision tower, which is read
    crops: bool  # whether a frame is cropped to a square, or stretched to one

    @property
    def reading(self) -> dict:
        """How the vision tower is read, as in LLaVA's config."""
        strategy = "default" if self.vision.model_type == "clip_vision_model" else "full"
        return {"vision_feature_layer": self.layer, "vision_feature_select_strategy": strategy}


FAMILIES = {
    "clip-llama": Family(CLIPVisionConfig(**VISION, image_size=48, patch_size=8), LlamaConfig, {}, -2, True),
    # 5 x 5 patches and 4 more pixels, as SigLIP's 384 pixels are 27 x 27 patches and 6 more
    "siglip-qwen2": Family(
        SiglipVisionConfig(**VISION, image_size=44, patch_size=8),
        Qwen2Config,
        {"tie_word_embeddings": True, "initializer_range": 0.3},  # or it repeats the last token, whatever it sees
        -1,
        False,
    ),
    # Heads of 16 values, twice those that the hidden size gives
    "siglip2-qwen3": Family(
        Siglip2VisionConfig(**VISION, num_patches=49, patch_size=8), Qwen3Config, {"head_dim": 16}, -2, False
    ),
}


def make_processor(family: Family) -> pllava.PllavaProcessor:
    """4 frames, pooled to 4 x 3 x 3 = 36 tokens."""
    vision = family.vision
    side = getattr(vision, "image_size", None) or round(vision.num_patches**0.5) * vision.patch_size
    if family.crops:
        size = {"shortest_edge": side}
        images, videos = CLIPImageProcessor(size=size, crop_size=side), {"size": size}
    else:
        size, half = {"height": side, "width": side}, [0.5, 0.5, 0.5]
        images = SiglipImageProcessor(size=size)
        videos = {"size": size, "do_center_crop": False, "image_mean": half, "image_std": half}
    videos = pllava.PllavaVideoProcessor(**videos, num_frames=FRAMES)
    return pllava.PllavaProcessor(images, train_tokenizer(TEXTS), videos, pooling_shape=POOLING_SHAPE)


def make_config(
    family: Family, processor: pllava.PllavaProcessor, text: dict | None = None, **options
) -> pllava.PllavaConfig:
    """`text` and `options` change values of the text model's config, and of PLLaVA's."""
    tokenizer = processor.tokenizer
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tied = {name: value for name, value in family.options.items() if name == "tie_word_embeddings"}
    return pllava.PllavaConfig(
        vision_config=family.vision.to_dict(),
        text_config=family.text(vocab_size=len(tokenizer), **{**TEXT, **ids, **family.options, **(text or {})}),
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        **{"num_frames": FRAMES, "pooling_shape": POOLING_SHAPE, **family.reading, **tied, **options},
    )


def hidden_state(tower: PreTrainedModel, frames: torch.Tensor, layer: int) -> torch.Tensor:
    """A hidden state of a whole tower for `(frames, 3, height, width)`: `(frames, patches, C)`, without CLS."""
    inputs = {"pixel_values": frames}
    if tower.config.model_type == "siglip2_vision_model":
        size = tower.config.patch_size
        patches = torch.stack([convert_image_to_patches(frame, size) for frame in frames])
        grid = [frames.shape[2] // size, frames.shape[3] // size]
        inputs = {"pixel_values": patches, "spatial_shapes": torch.tensor([grid] * len(frames))}
        inputs["pixel_attention_mask"] = torch.ones(patches.shape[:2])
    state = tower(**inputs, output_hidden_states=True).hidden_states[layer]
    return state[:, 1:] if tower.config.model_type == "clip_vision_model" else state
