"""Choosing the pooling of a model: any of `pooling_pllava.py` works on unchanged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from .adapters import plain_model
from .configuration_pllava import PllavaConfig
from .pooling_pllava import Pooling, parse_pooling
from .processing_pllava import PllavaProcessor

logger = logging.get_logger(__name__)

TEXT_TOKENS = 512  # that the context must have room for beside a video: the paper's limit of a training text


def choose_pooling(config: PllavaConfig, name: str, num_frames: int | None = None) -> Pooling:
    """
    Return the pooling of that name for a model: "slowfast", or with its shape "slowfast-4x12x24+16x4x4".

    Args:
        num_frames: Frames of a clip, by default as many as the model was trained with.

    Raises:
        ValueError: if there is no such pooling, or its shape is too large for the model.
    """
    pooling = parse_pooling(name, config.num_frames if num_frames is None else num_frames, config.patch_grid)
    limits = pooling.num_frames, config.patch_grid, config.patch_grid
    if any(size > limit for shape in pooling.shapes for size, limit in zip(shape, limits, strict=True)):
        raise ValueError(
            f"The pooling {pooling} does not fit: it may have 1 to {limits[0]} frames (as many as are sampled), and 1 "
            f"to {limits[1]} rows and columns"
        )
    text, rope = config.text_config, fitting_rope(config, pooling)
    if rope != text.rope_parameters:
        logger.warning_once(
            f"{pooling.num_tokens:,} tokens of a video and {TEXT_TOKENS} of text do not fit the context of "
            f"{text.max_position_embeddings:,} tokens: RoPE is scaled by {rope['factor']:g}"
        )
    return pooling


def set_pooling(model: PreTrainedModel, processor: PllavaProcessor, pooling: Pooling) -> None:
    """
    Set the pooling of a loaded model and of its processor. Where its tokens do not fit the text model's context, RoPE
    is scaled, and stays so: for a shorter pooling after a longer one, load the model again.

    Args:
        model: A PLLaVA, or PEFT's wrapper around one.
        pooling: From [`choose_pooling`].
    """
    config = plain_model(model).config
    _set_rope(plain_model(model), fitting_rope(config, pooling))
    config.video_pooling = processor.video_pooling = pooling
    config.num_frames = processor.video_processor.num_frames = pooling.num_frames


@contextmanager
def pooled(model: PreTrainedModel, pooling: Pooling) -> Iterator[None]:
    """Give a loaded model another pooling for a while."""
    config = plain_model(model).config
    own, rope = config.video_pooling, config.text_config.rope_parameters
    _set_rope(plain_model(model), fitting_rope(config, pooling))
    config.video_pooling, config.num_frames = pooling, pooling.num_frames
    try:
        yield
    finally:
        config.video_pooling, config.num_frames = own, own.num_frames
        _set_rope(plain_model(model), rope)


def fitting_rope(config: PllavaConfig, pooling: Pooling) -> dict[str, Any]:
    """Return [`extended_rope`]; for the pooling in the config, its own parameters, with which it was trained."""
    is_own = (pooling.name, pooling.shape) == (config.pooling, config.pooling_shape)
    return dict(config.text_config.rope_parameters) if is_own else extended_rope(config, pooling)


def extended_rope(config: PllavaConfig, pooling: Pooling) -> dict[str, Any]:
    """
    Return the text model's RoPE parameters with which a video of this pooling fits the context: its own, or with a
    linear factor (position interpolation, arXiv 2306.15595), as SlowFast-LLaVA has it for Vicuna.

    Raises:
        ValueError: if the context is too short, and its RoPE is scaled in another way already.
    """
    text, rope = config.text_config, dict(config.text_config.rope_parameters)
    factor = math.ceil((pooling.num_tokens + TEXT_TOKENS) / text.max_position_embeddings)
    if factor <= _linear_factor(rope):
        return rope
    kind = rope.get("rope_type", "by layers")  # of each kind of layers apart, in some text models
    if kind not in ("default", "linear"):
        raise ValueError(
            f"The pooling {pooling} makes {pooling.num_tokens:,} tokens of a video, too many for a context of "
            f"{text.max_position_embeddings:,} tokens, and its RoPE cannot be scaled further ({kind}): choose "
            "one with fewer tokens"
        )
    return {**rope, "rope_type": "linear", "factor": float(factor)}


def context_length(config: PllavaConfig, pooling: Pooling | None = None) -> int:
    """
    Return how many tokens the text model takes: where RoPE is scaled linearly, that many times its positions.

    Args:
        pooling: One that a question gets; by default, RoPE is as the config has it.
    """
    text = config.text_config
    rope = getattr(text, "rope_parameters", None) if pooling is None else fitting_rope(config, pooling)
    return int(text.max_position_embeddings * _linear_factor(rope or {}))


def _linear_factor(rope: dict[str, Any]) -> float:
    return rope["factor"] if rope.get("rope_type") == "linear" else 1.0


def _set_rope(model: PreTrainedModel, parameters: dict[str, Any]) -> None:
    config, language_model = model.config.text_config, model.get_decoder()
    if parameters == config.rope_parameters:
        return
    config.rope_parameters = parameters
    rotary = language_model.rotary_emb
    language_model.rotary_emb = type(rotary)(config=config).to(rotary.inv_freq.device)
