"""A PLLaVA without an image model: all weights are trained from random ones, with as many operations."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import IterableDataset
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, PreTrainedModel

from ...processing_pllava import PllavaProcessor
from ...train import VideoChatCollator, build_trainer
from ..training.conversations import image_conversations, video_conversations
from ..training.models import ATTENTION, build_config, image_processor
from ..training.recipe import ImageStage, Recipe, VideoStage
from ..training.tower import PatchLabels
from ..training.train import training_args, video_adapter


def train_from_nothing(
    backbone: dict[str, Any],
    width: int,
    recipe: Recipe,
    output: Path,
    processor: PllavaProcessor,
    data: Path,
    stage: VideoStage,
    seed: int,
) -> tuple[PreTrainedModel, float]:
    """
    Train all weights of a PLLaVA from random ones, on clips only, with as many operations as all stages need.

    Args:
        recipe: Has the stages of an image model.
        stage: Stage 2, with the steps that follow an image model.

    Returns:
        The trained model and the training's seconds.
    """
    torch.manual_seed(seed)
    of_image_stage = image_processor(processor, recipe.image_stage)
    images, model = (
        AutoModelForImageTextToText.from_config(build_config(each, backbone, width), attn_implementation=ATTENTION)
        for each in (of_image_stage, processor)
    )
    model.config.num_frames = stage.num_frames
    conversations = partial(video_conversations, data)
    clip_batches = make_batches(processor, conversations, stage)
    operations = count_image_operations(images, of_image_stage, recipe)
    operations += stage.steps * count_operations(with_adapter(model, stage), clip_batches)
    steps = round(operations / count_operations(model, clip_batches))
    stage = replace(stage, steps=steps)
    args = training_args(output, stage, seed, workers=0)
    trainer = build_trainer(model, processor, conversations(stage, seed), args, shuffle_buffer_size=1)
    return model, trainer.train().metrics["train_runtime"]


def count_image_operations(model: PreTrainedModel, processor: PllavaProcessor, recipe: Recipe) -> float:
    """Return the number of operations of stages 0 and 1."""
    config, stage = model.config, recipe.tower_stage
    pixels = torch.zeros(stage.batch_size, 3, config.vision_config.image_size, config.vision_config.image_size)
    labels = torch.zeros(stage.batch_size, config.patch_grid**2, 4, dtype=torch.int64)
    of_tower = count_operations(PatchLabels(model.model), [{"pixel_values": pixels, "labels": labels}])
    model.model.vision_tower.requires_grad_(False)
    of_images = count_operations(model, make_batches(processor, image_conversations, recipe.image_stage))
    return stage.steps * of_tower + recipe.image_stage.steps * of_images


def with_adapter(model: PreTrainedModel, stage: VideoStage) -> PeftModel:
    """Return a copy of the model with stage 2's adapter and a frozen tower."""
    adapted = get_peft_model(deepcopy(model), video_adapter(stage))
    adapted.model.model.vision_tower.requires_grad_(False)
    return adapted


def make_batches(
    processor: PllavaProcessor,
    conversations: Callable[[ImageStage, int], IterableDataset],
    stage: ImageStage,
    count: int = 8,
) -> list[dict[str, Any]]:
    """Return some batches of a stage's mean mixture."""
    mix = {kind: [fmean(weights)] * 2 for kind, weights in stage.mix.items()}
    rows = list(conversations(replace(stage, mix=mix), 0).take(count * stage.batch_size))
    collate = VideoChatCollator(processor)
    return [collate(rows[start : start + stage.batch_size]) for start in range(0, len(rows), stage.batch_size)]


def count_operations(model: nn.Module, batches: Sequence[dict[str, Any]]) -> float:
    """Return the mean number of operations of a training step."""
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            model(**batch)["loss"].backward()
    model.zero_grad()
    return counter.get_total_flops() / len(batches)
