"""
Train nano from scratch: the paper's recipe at a small scale, with this project's own trainer.

Stage 0 trains the vision tower, which is frozen after it. Stage 1 makes an image LLaVA: projector and language model
learn to describe single frames. Stage 2 makes a PLLaVA of it: the model reads 16 frames, and the projector and LoRA on
the language model learn what happens between the frames. The adapter is merged at the end.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForImageTextToText, PreTrainedModel
from trl import SFTConfig

from ...adapters import lora_config
from ...eval.benchmarks.samples import digest
from ...files import read_object, replace_file
from ...processing_pllava import PllavaProcessor
from ...train import build_trainer
from ..world.rendering import render
from .conversations import image_conversations, video_conversations
from .models import ATTENTION, BACKBONES, build_config, build_processor, image_processor, load_for_video
from .recipe import Recipe, Stage, VideoStage
from .tower import train_tower


def train(output: Path, work: Path, backbone: str, recipe: Recipe, seed: int) -> None:
    """
    Render training videos to `work`, train all stages there, and write the merged checkpoint to `output`. Folders of
    clips and of image LLaVAs are named by what they were made from: what an earlier run finished with the same values
    is used again.

    Args:
        backbone: A name in `BACKBONES`.

    Raises:
        ValueError: if there is no such backbone.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"There is no backbone {backbone!r}: nano's are {', '.join(BACKBONES)}")
    stage, width = recipe.video_stage, recipe.widths["nano"]
    data = training_clips(work / "clips", stage.clips, stage.most_shapes, seed)
    image_model = work / backbone / "image-models" / digest(image_model_facts(recipe, width, stage.clips, seed))
    processor = build_processor(data, BACKBONES[backbone]["colours"], stage, seed)
    if not (image_model / "seconds.json").exists():
        train_image_model(image_model, processor, BACKBONES[backbone], width, recipe, seed)
    start, features = load_for_video(image_model, stage), work / backbone / "features"
    model, video_seconds = train_video_stage(
        start, work / backbone / "video-stage", processor, data, stage, seed, features
    )
    merged = work / backbone / "checkpoint"
    model.merge_and_unload().save_pretrained(merged)
    processor.save_pretrained(merged)
    seconds = read_object(image_model / "seconds.json") | {"video": video_seconds}
    facts = {
        "backbone": backbone,
        "tower_stage": asdict(recipe.tower_stage),
        "image_stage": asdict(recipe.image_stage),
        "video_stage": asdict(stage),
        "seed": seed,
        "minutes": {name: round(value / 60, 1) for name, value in seconds.items()},
        "cores": os.cpu_count(),
        "bf16": is_bfloat16_fast(),
    }
    replace_file(merged / "training.json", json.dumps(facts, indent=2) + "\n")
    output.mkdir(parents=True, exist_ok=True)
    for file in merged.iterdir():
        if not (output / file.name).is_symlink():  # the code files of the checkpoint in the repository are links
            shutil.copyfile(file, output / file.name)


def training_clips(folder: Path, clips: int, most_shapes: int, seed: int) -> Path:
    """Return the directory of training clips in `folder`. They are rendered unless they are there."""
    directory = folder / f"{seed}-{clips}-{most_shapes}"
    if not (directory / "questions.jsonl").exists():
        render(directory, clips, seed, most_shapes, listings=True)
    return directory


def image_model_facts(recipe: Recipe, width: int, clips: int, seed: int) -> list[Any]:
    """
    Return all that the weights of an image model depend on, but for its backbone.

    Args:
        clips: Training clips of stage 2, of whose texts the tokenizer is made.
    """
    stages = [asdict(stage) for stage in (recipe.tower_stage, recipe.image_stage)]
    return [seed, clips, recipe.video_stage.most_shapes, width, *stages]


def train_image_model(
    output: Path,
    processor: PllavaProcessor,
    backbone: dict[str, Any],
    width: int,
    recipe: Recipe,
    seed: int,
    workers: int = 1,
) -> None:
    """
    Train an image LLaVA from random weights (stages 0 and 1), and save it with the seconds of both stages.

    Args:
        workers: Processes that make batches; with 0, this one does.
    """
    torch.manual_seed(seed)
    tower_stage, stage = recipe.tower_stage, recipe.image_stage
    processor = image_processor(processor, stage)
    config = build_config(processor, backbone, width)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=ATTENTION)
    args = training_args(output / "tower", tower_stage, seed, workers)
    tower_seconds = train_tower(model, processor.image_processor, args, tower_stage.most_shapes, seed)
    model.model.vision_tower.requires_grad_(False)
    args = training_args(output, stage, seed, workers)
    trainer = build_trainer(model, processor, image_conversations(stage, seed), args, shuffle_buffer_size=1)
    image_seconds = trainer.train().metrics["train_runtime"]
    model.save_pretrained(output)
    seconds = {"tower": tower_seconds, "image": image_seconds}
    replace_file(output / "seconds.json", json.dumps(seconds))


def video_adapter(stage: VideoStage) -> LoraConfig:
    return lora_config(r=stage.lora_r, lora_alpha=stage.lora_r, lora_dropout=0.0, targets=r"\w+_proj")


def train_video_stage(
    model: PreTrainedModel,
    output: Path,
    processor: PllavaProcessor,
    data: Path,
    stage: VideoStage,
    seed: int,
    features: Path,
    workers: int = 1,
) -> tuple[PeftModel, float]:
    """
    Train projector and adapter.

    Args:
        model: From [`load_for_video`].
        features: Directory for the tower's features of each clip, so that it is encoded once.
        workers: Processes that make batches; with 0, this one does.

    Returns:
        The trained model and the training's seconds.
    """
    trainer = build_trainer(
        model,
        processor,
        video_conversations(data, stage, seed),
        training_args(output, stage, seed, workers),
        video_adapter(stage),
        shuffle_buffer_size=1,
        feature_cache=str(features),
    )
    return trainer.model, trainer.train().metrics["train_runtime"]


def is_bfloat16_fast() -> bool:
    """Whether the processor multiplies in bfloat16. Others emulate it, several times slower than float32."""
    instructions = torch.cpu.get_capabilities()
    return torch.cuda.is_available() or any(instructions.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def training_args(output_dir: Path, stage: Stage, seed: int, workers: int) -> SFTConfig:
    return SFTConfig(
        output_dir=str(output_dir),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=min(200, stage.steps // 10),
        weight_decay=0.01,
        adam_beta2=0.98,
        bf16=is_bfloat16_fast(),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        dataloader_num_workers=workers,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
