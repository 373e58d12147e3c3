"""Several layers of the vision tower, concatenated, and ViP-LLaVA's layer norm before the projector."""

from collections.abc import Callable

import model_inputs
import pytest
import torch
from families import FAMILIES, Family, hidden_state, make_config, make_processor
from transformers import AutoModel, VipLlavaConfig, VipLlavaForConditionalGeneration

from pllava import PllavaForConditionalGeneration, PllavaModel


@pytest.mark.parametrize("layers", [[-2, 1, 3], [2], [1, 1]], ids=str)
def test_layers_are_concatenated_in_their_order(
    family: Family, pixels: Callable[..., torch.Tensor], layers: list[int]
) -> None:
    config = make_config(family, make_processor(family), vision_feature_layer=layers, projector_layernorm_eps=1e-5)
    torch.manual_seed(0)
    model = PllavaModel(config).eval()
    full = AutoModel.from_config(config.vision_config).eval()
    full.load_state_dict(model.vision_tower.state_dict(), strict=False)
    video = pixels(1)
    with torch.no_grad():
        output = model.get_video_features(video, output_hidden_states=True)
        expected = torch.cat([hidden_state(full, video[0], layer) for layer in layers], -1)
    torch.testing.assert_close(output.last_hidden_state, expected)
    assert output.pooler_output.shape == (1, 36, 32) and len(output.hidden_states) == 1 + config.num_vision_layers
    projector = model.multi_modal_projector
    assert projector.projector_layernorm.normalized_shape == (32 * len(layers),)
    assert model.get_video_features(video).hidden_states is None
    model.get_video_features(video).pooler_output.square().sum().backward()
    assert projector.projector_layernorm.weight.grad.any() and projector.linear_1.weight.grad.any()


@pytest.mark.parametrize("layers", [[-2, 1, 3], [-1, 2]], ids=str)
def test_image_in_full_gives_the_logits_of_vip_llava(layers: list[int]) -> None:
    family = FAMILIES["clip-llama"]
    processor = make_processor(family)
    options = {"projector_layernorm_eps": 1e-3, "image_pooling_shape": [1, 6, 6], "vision_feature_layer": layers}
    config = make_config(family, processor, **options)
    torch.manual_seed(0)
    source = VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config=config.vision_config.to_dict(),
            text_config=config.text_config.to_dict(),
            image_token_index=config.image_token_index,
            projector_layernorm_eps=1e-3,
            vision_feature_layers=layers,
            image_seq_length=36,
        )
    ).eval()
    for weight in source.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model = PllavaForConditionalGeneration(config).eval()
    missing, unexpected = model.load_state_dict(source.state_dict(), strict=False)
    assert not missing and all("post_layernorm" in name or "layers.2." in name for name in unexpected)
    ids = torch.tensor([[5, *[config.image_token_index] * 36, 6, 7, 8]])
    inputs = {"input_ids": ids, "pixel_values": model_inputs.pixels(1, frames=1)[0]}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, source(**inputs).logits)
