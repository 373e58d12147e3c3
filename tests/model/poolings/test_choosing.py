"""Choosing the pooling of a loaded model, and the RoPE of a context that is too short for it."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_inputs import user
from peft import get_peft_model
from transformers import CLIPVisionConfig, LlamaConfig

from pllava import PllavaConfig, PllavaForConditionalGeneration, PllavaProcessor, lora_config, model_pooling
from pllava.model_pooling import choose_pooling, extended_rope, fitting_rope, pooled, set_pooling
from pllava.pooling_pllava import parse_pooling

Pixels = Callable[..., torch.Tensor]
LONG = "merge-24x5x5"  # 600 tokens of video, with 512 of text too many for a context of 1,024


@pytest.fixture
def mutable(model: PllavaForConditionalGeneration) -> PllavaForConditionalGeneration:
    return copy.deepcopy(model)


def state(model: PllavaForConditionalGeneration) -> dict:
    return copy.deepcopy({"config": model.config.to_dict(), "rope": model.get_decoder().rotary_emb.inv_freq})


def prompt(config: PllavaConfig, videos: int = 1) -> torch.Tensor:
    """Token ids, with as many placeholders as the config asks for."""
    return torch.tensor([[5, *[config.video_token_id] * (videos * config.num_video_tokens), 6, 7, 8]])


def logits(model: PllavaForConditionalGeneration, video: torch.Tensor, **kwargs) -> torch.Tensor:
    ids = prompt(model.config)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=video, **kwargs).logits


# --- choosing --------------------------------------------------------------------------------------------------------


def test_pooling_of_a_bare_name_has_the_models_proportions(config: PllavaConfig) -> None:
    side = config.patch_grid
    half, sixth = -(-side // 2), -(-side // 6)
    assert str(choose_pooling(config, "average")) == f"average-4x{half}x{half}"
    assert str(choose_pooling(config, "merge", num_frames=9)) == f"merge-5x{half}x{half}"
    slowfast = choose_pooling(config, "slowfast", num_frames=8)
    assert slowfast.num_frames == 8 and slowfast.shapes[1] == (8, sixth, sixth)
    assert slowfast.shapes[0][0] == 2 and sorted(slowfast.shapes[0][1:]) == sorted([half, side])


@pytest.mark.parametrize(
    ("text", "frames", "message"),
    [
        ("maximum", None, "average, slowfast, merge"),
        ("average-5x3x3", None, "1 to 4 frames"),  # of four
        ("average-4x9x3", None, "rows and columns"),
        ("slowfast-4x3x3+16x2x2", 8, "1 to 8 frames"),
        ("merge-4x3x99", None, "rows and columns"),
    ],
)
def test_pooling_that_does_not_fit_the_model_is_refused(
    config: PllavaConfig, text: str, frames: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_pooling(config, text, frames)


def test_a_preset_is_refused_where_the_patches_are_not_known() -> None:
    assert str(parse_pooling("merge-8x3x3")) == "merge-8x3x3"
    with pytest.raises(ValueError, match="needs its shape"):
        parse_pooling("merge")


def test_set_pooling_holds_for_the_model_and_its_processor(
    mutable: PllavaForConditionalGeneration, processor: PllavaProcessor, clips: list[Path]
) -> None:
    """Also the number of frames that are sampled."""
    processor, expected = copy.deepcopy(processor), None
    for text, frames in (("slowfast", 8), ("merge-3x3x3", 12), ("average-4x3x3", 4)):
        pooling = choose_pooling(mutable.config, text, frames)
        set_pooling(mutable, processor, pooling)
        assert str(processor.video_pooling) == str(mutable.config.video_pooling) == str(pooling)
        assert processor.num_frames == mutable.config.num_frames == frames
        chat = [user("What happens?", {"type": "video", "path": str(clips[0])})]
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        assert len(inputs["pixel_values_videos"][0]) == frames
        assert (inputs["input_ids"] == processor.video_token_id).sum() == pooling.num_tokens
        tokens = mutable.get_video_features(inputs["pixel_values_videos"]).pooler_output
        assert tokens.shape == (1, pooling.num_tokens, 32)
        expected = tokens
    assert expected is not None


def test_pooled_gives_a_pooling_for_a_while(
    mutable: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Pixels
) -> None:
    own, before = state(mutable), logits(mutable, pixels(1))
    set_model, set_processor = copy.deepcopy(mutable), copy.deepcopy(processor)
    for text, frames in (("slowfast", 6), ("merge-2x3x3", 6), (LONG, 24)):
        pooling, video = choose_pooling(mutable.config, text, frames), pixels(1, frames=frames)
        set_pooling(set_model, set_processor, pooling)
        with pooled(mutable, pooling):
            torch.testing.assert_close(logits(mutable, video), logits(set_model, video), rtol=0, atol=0)
        after = state(mutable)
        assert after["config"] == own["config"] and torch.equal(after["rope"], own["rope"])
    assert torch.equal(logits(mutable, pixels(1)), before)
    with pytest.raises(RuntimeError), pooled(mutable, choose_pooling(mutable.config, LONG, 24)):
        raise RuntimeError
    assert state(mutable)["config"] == own["config"]


def test_poolings_are_set_in_a_model_with_an_adapter(mutable: PllavaForConditionalGeneration, pixels: Pixels) -> None:
    adapted = get_peft_model(mutable, lora_config(r=2)).eval()
    pooling = choose_pooling(mutable.config, LONG, 24)
    with pooled(adapted, pooling):
        assert adapted.config.num_video_tokens == 600
        assert adapted.get_base_model().get_decoder().rotary_emb.config.rope_parameters["factor"] == 2.0
        adapted(input_ids=prompt(adapted.config), pixel_values_videos=pixels(1, frames=24))
    assert adapted.config.num_video_tokens == 36
    assert "factor" not in adapted.config.text_config.rope_parameters


# --- RoPE ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vicuna() -> PllavaConfig:
    """LLaVA-1.5's sizes, of which no model is made."""
    return PllavaConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, num_hidden_layers=24),
        text_config=LlamaConfig(max_position_embeddings=4096),
    )


def test_factor_of_slowfast_llava_is_two(vicuna: PllavaConfig, caplog: pytest.LogCaptureFixture) -> None:
    """3,680 tokens of a video, in a context of 4,096."""
    model_pooling.logger.warning_once.cache_clear()  # another test may have been warned
    with caplog.at_level(logging.WARNING):
        pooling = choose_pooling(vicuna, "slowfast", 50)
    assert pooling.num_tokens == 3680 and "RoPE is scaled by 2" in caplog.text
    rope = extended_rope(vicuna, pooling)
    assert (rope["rope_type"], rope["factor"]) == ("linear", 2.0)
    assert vicuna.text_config.rope_parameters["rope_type"] == "default", "asking changes nothing"


@pytest.mark.parametrize(("tokens", "factor"), [(3584, None), (3585, 2.0), (7680, 2.0), (7681, 3.0)])
def test_factor_is_as_small_as_the_context_allows(vicuna: PllavaConfig, tokens: int, factor: float | None) -> None:
    pooling = choose_pooling(vicuna, f"average-{tokens}x1x1", tokens)
    rope = extended_rope(vicuna, pooling)
    assert rope.get("factor") == factor and rope["rope_type"] == ("linear" if factor else "default")


@pytest.mark.parametrize("rope_type", ["dynamic", "yarn", "llama3"])
def test_rope_that_is_scaled_in_another_way_is_not_scaled_again(vicuna: PllavaConfig, rope_type: str) -> None:
    scaled = copy.deepcopy(vicuna)
    scaled.text_config.rope_parameters |= {"rope_type": rope_type, "factor": 4.0}
    with pytest.raises(ValueError, match=rf"3,680 tokens .* 4,096 tokens.*\({rope_type}\)"):
        choose_pooling(scaled, "slowfast", 50)
    assert choose_pooling(scaled, "average").num_tokens == 2304  # which fits


def test_models_own_pooling_never_scales_its_rope(vicuna: PllavaConfig, caplog: pytest.LogCaptureFixture) -> None:
    """It was trained so, even if a text of 512 tokens does not fit beside a video."""
    tight = copy.deepcopy(vicuna)
    tight.text_config.max_position_embeddings = 2400
    own = choose_pooling(tight, str(tight.video_pooling))
    assert fitting_rope(tight, own) == tight.text_config.rope_parameters and not caplog.records
    assert extended_rope(tight, own)["factor"] == 2, "that of a model that was not trained with it"


def test_rope_of_each_kind_of_layers_is_not_scaled(vicuna: PllavaConfig) -> None:
    nested, parts = copy.deepcopy(vicuna), ("sliding_attention", "full_attention")
    nested.text_config.rope_parameters = {part: {"rope_type": "default", "rope_theta": 1e4} for part in parts}
    assert choose_pooling(nested, "merge").num_tokens == 1152
    with pytest.raises(ValueError, match="by layers"):
        choose_pooling(nested, "slowfast", num_frames=50)


def test_own_linear_factor_is_kept_or_raised(vicuna: PllavaConfig) -> None:
    scaled = copy.deepcopy(vicuna)
    scaled.text_config.rope_parameters |= {"rope_type": "linear", "factor": 2.0}
    assert extended_rope(scaled, choose_pooling(scaled, "average"))["factor"] == 2.0
    assert extended_rope(scaled, choose_pooling(scaled, "slowfast", 50))["factor"] == 2.0
    assert extended_rope(scaled, choose_pooling(scaled, "slowfast", 150))["factor"] == 3.0


def test_scaled_rope_interpolates_the_positions(
    mutable: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Pixels
) -> None:
    """The logits are those of the model with its own RoPE at positions that are half as far apart."""
    video, pooling = pixels(1, frames=24), choose_pooling(mutable.config, LONG, 24)
    own = copy.deepcopy(mutable)
    own.config.pooling, own.config.pooling_shape, own.config.num_frames = "merge", pooling.shape, 24
    set_pooling(mutable, copy.deepcopy(processor), pooling)
    positions = torch.arange(prompt(own.config).shape[1])[None]
    scaled = logits(mutable, video)
    torch.testing.assert_close(scaled, logits(own, video, position_ids=positions / 2), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scaled, logits(own, video), atol=1e-2)


def test_context_that_is_long_enough_is_unchanged(
    mutable: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Pixels
) -> None:
    own, before = state(mutable), logits(mutable, pixels(1))
    rotary = mutable.get_decoder().rotary_emb
    set_pooling(mutable, copy.deepcopy(processor), choose_pooling(mutable.config, "average-4x3x3"))
    assert mutable.get_decoder().rotary_emb is rotary and state(mutable)["config"] == own["config"]
    assert torch.equal(logits(mutable, pixels(1)), before)


def test_scaled_rope_is_saved_and_loaded(
    mutable: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Pixels, tmp_path: Path
) -> None:
    video = pixels(1, frames=24)
    set_pooling(mutable, copy.deepcopy(processor), choose_pooling(mutable.config, LONG, 24))
    mutable.save_pretrained(tmp_path)
    loaded = PllavaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.text_config.rope_parameters["factor"] == 2.0
    torch.testing.assert_close(logits(loaded, video), logits(mutable, video), rtol=0, atol=0)


def test_generation_in_an_extended_context(
    mutable: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Pixels
) -> None:
    """With a cache or without: the positions of new tokens are interpolated, too."""
    set_pooling(mutable, copy.deepcopy(processor), choose_pooling(mutable.config, LONG, 24))
    inputs = {"input_ids": prompt(mutable.config), "pixel_values_videos": pixels(1, frames=24)}
    options = {"max_new_tokens": 5, "do_sample": False}
    cached = mutable.generate(**inputs, **options).tolist()
    assert mutable.generate(**inputs, **options, use_cache=False).tolist() == cached
