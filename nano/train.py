"""
Train nano from scratch: the paper's recipe at a small scale, with this project's own trainer.

Stage 1 trains an image LLaVA: vision tower, projector and language model learn to describe single frames. Stage 2
makes a PLLaVA of it: the model reads 16 frames, the tower is frozen, and the projector and LoRA on the language model
learn what happens between the frames. The adapter is merged at the end.
"""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, CLIPImageProcessor, PreTrainedModel
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from trl import SFTConfig

from ..adapters import lora_config
from ..configuration_pllava import PllavaConfig
from ..processing_pllava import PllavaProcessor
from ..train import build_trainer
from ..video_processing_pllava import PllavaVideoProcessor
from . import questions, world
from .data import image_conversations, read_questions, render, video_conversations
from .tokenizer import train_tokenizer

IMAGE_SIZE, PATCH_SIZE, WIDTH, LAYERS, HEADS = 48, 8, 128, 4, 4
NUM_FRAMES, POOLING_SHAPE = 16, [16, 3, 3]
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
            "head_dim": WIDTH // HEADS,
            "tie_word_embeddings": True,
        },
        "colours": {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD},
    },
}


def train(output: Path, work: Path, backbone: str, clips: int, image_steps: int, video_steps: int, seed: int) -> None:
    """
    Render `clips` training videos to `work/data`, train both stages in a folder for the backbone, and write the merged
    checkpoint to `output`. Finished results of an earlier run in `work` are reused: the clips, and stage 1.

    Args:
        backbone: A name in `BACKBONES`.
        image_steps: Steps of stage 1, with 64 images each.
        video_steps: Steps of stage 2, with 16 videos each.

    Raises:
        ValueError: if there is no such backbone.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"There is no backbone {backbone!r}: nano's are {', '.join(BACKBONES)}")
    if not (work / "data" / "questions.jsonl").exists():
        render(work / "data", clips, seed, exercises=True)
    processor = _build_processor(work / "data", BACKBONES[backbone]["colours"], seed)
    image_stage, video_stage = work / backbone / "image-stage", work / backbone / "checkpoint"
    if not (image_stage / "seconds.json").exists():
        _train_image_stage(image_stage, processor, BACKBONES[backbone], image_steps, seed)
    video_seconds = _train_video_stage(image_stage, video_stage, processor, work / "data", video_steps, seed)
    image_seconds = json.loads((image_stage / "seconds.json").read_text(encoding="utf-8"))
    facts = {
        "backbone": backbone,
        "clips": clips,
        "image_steps": image_steps,
        "video_steps": video_steps,
        "seed": seed,
    }
    facts |= {"image_minutes": round(image_seconds / 60), "video_minutes": round(video_seconds / 60)}
    facts |= {"cores": os.cpu_count()}
    (video_stage / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    output.mkdir(parents=True, exist_ok=True)
    for file in video_stage.iterdir():
        if not (output / file.name).is_symlink():  # the code files of the checkpoint in the repository are links
            shutil.copyfile(file, output / file.name)


def _train_image_stage(
    output: Path, processor: PllavaProcessor, backbone: dict[str, Any], steps: int, seed: int
) -> None:
    """
    Train all weights of an image LLaVA from random ones. In the first half of the steps each patch is a token, so that
    the model learns shapes quickly. In the second half an image is processed as in PLLaVA, as a still video: the model
    learns to read positions from the content of pooled tokens.
    """
    torch.manual_seed(seed)
    patches = IMAGE_SIZE // PATCH_SIZE
    processor.pooling_shape = [1, patches, patches]
    config = build_config(processor, backbone)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=ATTENTION)
    half = output / "half"
    seconds = _train_images(model, processor, half, steps // 2, 1.5e-3, seed)
    processor.pooling_shape = POOLING_SHAPE
    seconds += _train_images(_load_for_video(half), processor, output, steps - steps // 2, 1e-3, seed + 1)
    (output / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def _train_images(
    model: PreTrainedModel, processor: PllavaProcessor, output: Path, steps: int, learning_rate: float, seed: int
) -> float:
    args = _training_args(output, steps, batch_size=64, learning_rate=learning_rate, seed=seed)
    metrics = build_trainer(model, processor, image_conversations(seed), args).train().metrics
    model.save_pretrained(output)
    return metrics["train_runtime"]


def _train_video_stage(
    start: Path, output: Path, processor: PllavaProcessor, data: Path, steps: int, seed: int
) -> float:
    """Train projector and adapter from the weights in `start`, merge and save them. Returns the training's seconds."""
    adapter = lora_config(r=64, lora_alpha=64, lora_dropout=0.0, targets=r"\w+_proj")
    args = _training_args(output, steps, batch_size=16, learning_rate=1.5e-3, seed=seed)
    trainer = build_trainer(_load_for_video(start), processor, video_conversations(data, seed), args, adapter)
    metrics = trainer.train().metrics
    trainer.model.merge_and_unload().save_pretrained(output)
    processor.save_pretrained(output)
    return metrics["train_runtime"]


def _load_for_video(checkpoint: Path) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(
        checkpoint, num_frames=NUM_FRAMES, pooling_shape=POOLING_SHAPE, attn_implementation=ATTENTION
    )


def _build_processor(data: Path, colours: dict[str, list[float]], seed: int) -> PllavaProcessor:
    """Build the processor, and train its tokenizer on questions and answers about clips and single frames."""
    texts = [f"USER: {row['question']} ASSISTANT: {row['answer']}" for row in read_questions(data)[:20000]]
    rng = random.Random(seed)
    for _ in range(2000):
        scene = world.sample_scene(rng)
        texts += [f" {row['question']} {row['answer']}" for row in questions.image_questions(scene, 0, rng)]
    pixels = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "do_center_crop": False, **colours}
    return PllavaProcessor(
        CLIPImageProcessor(**pixels),
        train_tokenizer(texts),
        PllavaVideoProcessor(num_frames=NUM_FRAMES, **pixels),
        pooling_shape=POOLING_SHAPE,
    )


def build_config(processor: PllavaProcessor, backbone: dict[str, Any]) -> PllavaConfig:
    """Return the config of a model that reads one frame, with the processor's pooling."""
    tokenizer = processor.tokenizer
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": HEADS,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
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


def _training_args(output_dir: Path, steps: int, batch_size: int, learning_rate: float, seed: int) -> SFTConfig:
    return SFTConfig(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=min(200, steps // 10),
        weight_decay=0.01,
        adam_beta2=0.98,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        dataloader_num_workers=1,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
