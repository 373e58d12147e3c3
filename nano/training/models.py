"""nano's models before any training: their configs, their processor, and how stage 1's becomes one of videos."""

import random
from copy import copy
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, CLIPImageProcessor, PreTrainedModel
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from ...configuration_pllava import PllavaConfig
from ...processing_pllava import PllavaProcessor
from ...video_processing_pllava import PllavaVideoProcessor
from ..world import questions, scenes
from ..world.rendering import read_questions
from .recipe import ImageStage, VideoStage
from .tokenizer import train_tokenizer

IMAGE_SIZE, PATCH_SIZE, LAYERS, HEADS = 48, 8, 4, 4
INITIALIZER_RANGE = 0.06  # the usual 0.02 is for wider models: at this width, training would take twice the steps
ATTENTION = "eager"  # for such short sequences, faster than the CPU's fused kernel in bfloat16

# What differs between backbones: values of the model's config, and how the processors normalise colours
BACKBONES: dict[str, dict[str, Any]] = {
    "clip-llama": {
        "vision_config": {
            "model_type": "clip_vision_model",
            "num_hidden_layers": LAYERS,
            "initializer_range": INITIALIZER_RANGE,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {"model_type": "llama", "num_key_value_heads": HEADS},
        "colours": {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD},
    },
    "siglip-qwen3": {
        "vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": LAYERS - 1},
        "vision_feature_layer": -1,  # as in LLaVA-OneVision
        "vision_feature_select_strategy": "full",
        "text_config": {
            "model_type": "qwen3",
            "num_key_value_heads": HEADS // 2,
            "tie_word_embeddings": True,
        },
        "colours": {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD},
    },
}


def build_processor(data: Path, colours: dict[str, list[float]], stage: VideoStage, seed: int) -> PllavaProcessor:
    """Build the processor, and train its tokenizer on questions and answers about clips and single frames."""
    texts = [f"USER: {row['question']} ASSISTANT: {row['answer']}" for row in read_questions(data)[:20000]]
    rng = random.Random(seed)
    for _ in range(2000):
        scene = scenes.sample_scene(rng)
        rows = [*questions.image_questions(scene, 0, rng), questions.image_listing(scene, 0)]
        texts += [f" {row['question']} {row['answer']}" for row in rows]
    pixels = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "do_center_crop": False, **colours}
    return PllavaProcessor(
        CLIPImageProcessor(**pixels),
        train_tokenizer(texts),
        PllavaVideoProcessor(num_frames=stage.num_frames, **pixels),
        pooling_shape=stage.pooling_shape,
    )


def image_processor(processor: PllavaProcessor, stage: ImageStage) -> PllavaProcessor:
    """Return the processor with the pooling of stage 1."""
    processor = copy(processor)
    processor.pooling_shape = stage.pooling_shape
    return processor


def build_config(processor: PllavaProcessor, backbone: dict[str, Any], width: int) -> PllavaConfig:
    """Return the config of a model that reads one frame, with the processor's pooling."""
    tokenizer = processor.tokenizer
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": HEADS,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "head_dim": width // HEADS,
        "max_position_embeddings": 1024,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return PllavaConfig(
        vision_config=vision | backbone["vision_config"],
        vision_feature_layer=backbone["vision_feature_layer"],
        vision_feature_select_strategy=backbone["vision_feature_select_strategy"],
        text_config=text | backbone["text_config"],
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        num_frames=1,
        pooling_shape=processor.pooling_shape,
    )


def load_for_video(image_model: Path, stage: VideoStage) -> PreTrainedModel:
    """Load the result of stage 1 as a model of videos."""
    return AutoModelForImageTextToText.from_pretrained(
        image_model, num_frames=stage.num_frames, pooling_shape=stage.pooling_shape, attn_implementation=ATTENTION
    )
