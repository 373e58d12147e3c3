"""A PLLaVA without an image model: all weights are trained from random ones, with as many operations."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import IterableDataset
from peft import PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, PreTrainedModel

from ...processing_pllava import PllavaProcessor
from ...train import VideoChatCollator, build_trainer
from ..training.conversations import image_conversations, video_conversations
from ..training.models import ATTENTION, build_config, image_processor
from ..training.recipe import Stage, VideoStage
from ..training.train import training_args, video_adapter


def train_from_nothing(
    backbone: dict[str, Any],
    width: int,
    image_stage: Stage,
    output: Path,
    processor: PllavaProcessor,
    data: Path,
    stage: VideoStage,
    seed: int,
) -> tuple[PreTrainedModel, float]:
    """
    Train all weights of a PLLaVA from random ones, on clips only, with as many operations as both stages need.

    Returns:
        The trained model and the training's seconds.
    """
    torch.manual_seed(seed)
    of_image_stage = image_processor(processor, image_stage)
    images, model = (
        AutoModelForImageTextToText.from_config(build_config(each, backbone, width), attn_implementation=ATTENTION)
        for each in (of_image_stage, processor)
    )
    model.config.num_frames = stage.num_frames
    of_images = count_operations(images, of_image_stage, image_conversations, image_stage)
    conversations = partial(video_conversations, data)
    of_all_weights = count_operations(model, processor, conversations, stage)
    adapted = get_peft_model(deepcopy(model), video_adapter(stage))
    adapted.model.model.vision_tower.requires_grad_(False)
    of_adapter = count_operations(adapted, processor, conversations, stage)
    steps = round((image_stage.steps * of_images + stage.steps * of_adapter) / of_all_weights)
    stage = replace(stage, steps=steps)
    args = training_args(output, stage, seed, workers=0)
    trainer = build_trainer(model, processor, conversations(stage, seed), args, shuffle_buffer_size=1)
    return model, trainer.train().metrics["train_runtime"]


def count_operations(
    model: PreTrainedModel | PeftModel,
    processor: PllavaProcessor,
    conversations: Callable[[Stage, int], IterableDataset],
    stage: Stage,
    batches: int = 8,
) -> float:
    """Return the mean number of operations of a stage's steps, from some batches of its mean mixture."""
    mix = {kind: [fmean(weights)] * 2 for kind, weights in stage.mix.items()}
    rows = list(conversations(replace(stage, mix=mix), 0).take(batches * stage.batch_size))
    collate = VideoChatCollator(processor)
    with FlopCounterMode(display=False) as counter:
        for start in range(0, len(rows), stage.batch_size):
            model(**collate(rows[start : start + stage.batch_size])).loss.backward()
    model.zero_grad()
    return counter.get_total_flops() / batches
