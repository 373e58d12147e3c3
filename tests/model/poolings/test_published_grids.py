"""The frame sizes and patch grids of published vision towers, with narrow models: shapes and numbers of tokens."""

import dataclasses

import pytest
import torch
from families import FAMILIES, VISION, make_config, make_processor
from transformers import CLIPVisionConfig, Siglip2VisionConfig, SiglipVisionConfig

from pllava import PllavaModel
from pllava.model_pooling import choose_pooling, pooled

GRIDS = {
    # CLIP-L/336, of LLaVA-1.5
    "clip-llama": (
        CLIPVisionConfig(**VISION, image_size=336, patch_size=14),
        {"average": 16 * 12 * 12, "slowfast": 4 * 12 * 24 + 16 * 4 * 4, "merge": 8 * 12 * 12, "image": 24 * 24},
    ),
    # SigLIP-SO400M/384, of LLaVA-OneVision
    "siglip-qwen2": (
        SiglipVisionConfig(**VISION, image_size=384, patch_size=14),
        {"average": 16 * 14 * 14, "slowfast": 4 * 14 * 27 + 16 * 5 * 5, "merge": 8 * 14 * 14, "image": 27 * 27},
    ),
    # SigLIP2-SO400M/16 NaFlex
    "siglip2-qwen3": (
        Siglip2VisionConfig(**VISION, num_patches=256, patch_size=16),
        {"average": 16 * 8 * 8, "slowfast": 4 * 8 * 16 + 16 * 3 * 3, "merge": 8 * 8 * 8, "image": 16 * 16},
    ),
}


@pytest.mark.parametrize("name", GRIDS)
def test_presets_for_the_grids_of_published_towers(name: str) -> None:
    vision, tokens = GRIDS[name]
    family = dataclasses.replace(FAMILIES[name], vision=vision)
    side = round(tokens["image"] ** 0.5)
    long = {"max_position_embeddings": 4096}
    config = make_config(family, make_processor(family), long, num_frames=16, image_pooling_shape=[1, side, side])
    assert config.patch_grid == side
    model, pixels = PllavaModel(config).eval(), torch.zeros(1, 16, 3, *[config.image_size] * 2)
    with torch.no_grad():
        assert model.get_image_features(pixels[0, :2]).pooler_output.shape == (2, tokens["image"], 32)
        for pooling in ("average", "slowfast", "merge"):
            with pooled(model, choose_pooling(config, pooling)):
                assert config.num_video_tokens == tokens[pooling]
                assert model.get_video_features(pixels).pooler_output.shape == (1, tokens[pooling], 32)
