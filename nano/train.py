"""
Trains nano from nothing, the paper's recipe in small, with the project's own trainer.

Stage 1 is an image LLaVA: vision tower, projector and language model learn to describe single frames. Stage 2 makes it
a PLLaVA: it reads 16 frames, the tower is frozen, the projector and LoRA on the language model learn what happens
between the frames, and the adapter is merged for shipping.
"""

import json
import os
import random
import shutil
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedModel,
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
NUM_FRAMES, POOLING_SHAPE = 16, (16, 3, 3)
INITIALIZER_RANGE = 0.06  # the usual 0.02 suits wider models: at this width it takes twice the steps


def train(output: Path, work: Path, clips: int, image_steps: int, video_steps: int, seed: int) -> None:
    """
    Renders `clips` training videos to `work/data`, trains both stages in `work` and writes the merged checkpoint to
    `output`. What an earlier run has finished in `work` is kept: the clips, and stage 1.

    Args:
        image_steps: Steps of stage 1, 64 images each.
        video_steps: Steps of stage 2, 16 videos each.
    """
    if not (work / "data" / "questions.jsonl").exists():
        render(work / "data", clips, seed, exercises=True)
    processor = build_processor(work / "data", seed)
    image_stage = work / "image-stage"
    if not (image_stage / "seconds.json").exists():
        train_images(image_stage, processor, image_steps, seed)
    trained = work / "checkpoint"
    video_seconds = train_videos(image_stage, trained, processor, work / "data", video_steps, seed)
    image_seconds = json.loads((image_stage / "seconds.json").read_text(encoding="utf-8"))
    facts = {"clips": clips, "image_steps": image_steps, "video_steps": video_steps, "seed": seed}
    facts |= {"image_minutes": round(image_seconds / 60), "video_minutes": round(video_seconds / 60)}
    facts |= {"cores": os.cpu_count()}
    (trained / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    output.mkdir(parents=True, exist_ok=True)
    for file in trained.iterdir():
        if not (output / file.name).is_symlink():  # the code files of the checkpoint in the repository are links
            shutil.copyfile(file, output / file.name)


def train_images(image_stage: Path, processor: PllavaProcessor, steps: int, seed: int) -> None:
    """
    Stage 1: an image LLaVA from random weights, all of it trained. In the first half of the steps each patch is a
    token, which teaches shapes soonest. In the second half an image is what it is to a PLLaVA, a still video: where
    something is must now be told by what a pooled token holds, for its place in the text says little.
    """
    torch.manual_seed(seed)
    patches = IMAGE_SIZE // PATCH_SIZE
    processor.pooling_shape = [1, patches, patches]
    model = AutoModelForImageTextToText.from_config(build_config(processor), attn_implementation=ATTENTION)
    seconds = _train_images(model, processor, image_stage, steps // 2, 1.5e-3, seed)
    processor.pooling_shape = list(POOLING_SHAPE)
    model = load(image_stage)
    seconds += _train_images(model, processor, image_stage, steps - steps // 2, 1e-3, seed + 1)
    (image_stage / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def _train_images(
    model: PreTrainedModel, processor: PllavaProcessor, output: Path, steps: int, learning_rate: float, seed: int
) -> float:
    args = training_args(output, steps, batch_size=64, learning_rate=learning_rate, seed=seed)
    metrics = build_trainer(model, processor, image_conversations(seed), args).train().metrics
    model.save_pretrained(output)
    return metrics["train_runtime"]


def load(checkpoint: Path) -> PreTrainedModel:
    """The model in `checkpoint`, as one that reads videos."""
    return AutoModelForImageTextToText.from_pretrained(
        checkpoint, num_frames=NUM_FRAMES, pooling_shape=list(POOLING_SHAPE), attn_implementation=ATTENTION
    )


def train_videos(start: Path, output: Path, processor: PllavaProcessor, data: Path, steps: int, seed: int) -> float:
    """
    Stage 2: the weights in `start` read 16 frames; adapter and projector are trained, merged, and saved to `output`.
    Returns the seconds that training took.
    """
    adapter = lora_config(r=64, lora_alpha=64, lora_dropout=0.0, targets=r"\w+_proj")
    args = training_args(output, steps, batch_size=16, learning_rate=1.5e-3, seed=seed)
    trainer = build_trainer(load(start), processor, video_conversations(data, seed), args, adapter)
    metrics = trainer.train().metrics
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(output)
    processor.save_pretrained(output)
    return metrics["train_runtime"]


# For sequences this short, plain matrix products in bfloat16 beat the fused attention kernel of the CPU.
ATTENTION = "eager"


def build_processor(data: Path, seed: int) -> PllavaProcessor:
    """The processor, its tokenizer trained on what is said about the clips and about single frames."""
    texts = [f"USER: {row['question']} ASSISTANT: {row['answer']}" for row in read_questions(data)[:20000]]
    rng = random.Random(seed)
    for _ in range(2000):
        scene = world.sample_scene(rng)
        texts += [f" {row['question']} {row['answer']}" for row in questions.image_questions(scene, 0, rng)]
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return PllavaProcessor(
        CLIPImageProcessor(size=size, do_center_crop=False),
        train_tokenizer(texts),
        PllavaVideoProcessor(size=size, do_center_crop=False, num_frames=NUM_FRAMES),
        pooling_shape=POOLING_SHAPE,
    )


def build_config(processor: PllavaProcessor) -> PllavaConfig:
    """A model of random weights that reads one frame, with the processor's pooling."""
    tokenizer = processor.tokenizer
    return PllavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            initializer_range=INITIALIZER_RANGE,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=1024,
            initializer_range=INITIALIZER_RANGE,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        num_frames=1,
        pooling_shape=processor.pooling_shape,
    )


def training_args(output_dir: Path, steps: int, batch_size: int, learning_rate: float, seed: int) -> SFTConfig:
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
