"""The model: pooling, batches, dtypes, devices, and errors."""

import copy
import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from families import hidden_state
from huggingface_hub.errors import StrictDataclassError
from model_inputs import VIDEO_TOKENS, assert_equals_its_samples, encode, mixed_chats, text_with
from torch import nn
from transformers import AutoModel

from pllava import PllavaConfig, PllavaForConditionalGeneration, PllavaModel, PllavaProcessor


@pytest.fixture(scope="module")
def chats(clips: list[Path]) -> list[list[dict]]:
    return mixed_chats(clips)


# --- pooling and the vision tower ------------------------------------------------------------------------------------


def test_the_pooling_shape_is_read_from_the_config(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    changed = copy.deepcopy(model)
    changed.config.pooling_shape = [2, 3, 2]
    assert changed.get_video_features(pixels(1)).pooler_output.shape == (1, 12, 32)
    with pytest.raises(ValueError, match=r"made 12 video tokens, 1 times 12.*average-2x3x2"):
        changed(input_ids=text_with(processor, videos=1), pixel_values_videos=pixels(1))


def test_tokens_are_in_time_row_column_order(model: PllavaForConditionalGeneration) -> None:
    """Each pooled token is the mean of the features of its frame and position."""
    pllava = copy.deepcopy(model.model)
    pllava.multi_modal_projector.linear_1 = pllava.multi_modal_projector.act = nn.Identity()
    pllava.multi_modal_projector.linear_2 = nn.Identity()
    side = pllava.config.patch_grid
    t, h, w = torch.meshgrid(torch.arange(4.0), torch.arange(1.0 * side), torch.arange(1.0 * side), indexing="ij")
    tokens = pllava.pool([torch.stack([t, h, w], -1).flatten(1, 2)])[0]
    places = [(row * side // 3 + math.ceil((row + 1) * side / 3) - 1) / 2 for row in range(3)]  # of 3 blocks
    expected = [[t, row, column] for t in range(4) for row in places for column in places]
    assert tokens.tolist() == expected


def test_vision_layers_above_the_one_that_is_read_are_not_built(
    model: PllavaForConditionalGeneration, config: PllavaConfig, pixels: Callable
) -> None:
    """The features are a hidden state of the full tower, without CLS."""
    full = AutoModel.from_config(config.vision_config).eval()
    missing, unexpected = full.load_state_dict(model.model.vision_tower.state_dict(), strict=False)
    above = [f"layers.{layer}." for layer in range(config.num_vision_layers, 3)]
    assert missing and all(any(part in name for part in ("post_layernorm", "head.", *above)) for name in missing)
    assert not unexpected
    video = pixels(1)
    with torch.no_grad():
        expected = hidden_state(full, video[0], config.vision_feature_layer)
        features = model.get_video_features(video).last_hidden_state
    torch.testing.assert_close(features, expected)


def test_a_positive_vision_feature_layer_counts_from_the_front(config: PllavaConfig) -> None:
    config = copy.deepcopy(config)
    config.vision_feature_layer = 1
    assert config.num_vision_layers == 1
    layers = [name for name, _ in PllavaModel(config).vision_tower.named_modules() if name.endswith("self_attn")]
    assert len(layers) == 1


@pytest.mark.parametrize(("given", "repeated"), [(1, [0, 0, 0, 0]), (2, [0, 0, 0, 1]), (3, [0, 0, 1, 1])])
def test_short_clips_repeat_their_frames(
    model: PllavaForConditionalGeneration, given: int, repeated: list[int], pixels: Callable
) -> None:
    """The original's rule: each frame int(4 / n) + 1 times in a row, then cut to 4."""
    video = pixels(1, frames=given)
    with torch.no_grad():
        short = model.get_video_features(video).pooler_output
        filled = model.get_video_features(video[:, repeated]).pooler_output
    torch.testing.assert_close(short, filled)


def test_a_video_may_have_any_number_of_frames(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    """32 frames are pooled to 4: each token is the mean over 8 of them."""
    ids, repeated = text_with(processor, videos=1), pixels(1).repeat_interleave(8, dim=1)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values_videos=pixels(1)).logits
        torch.testing.assert_close(model(input_ids=ids, pixel_values_videos=repeated).logits, expected)
    generated = model.generate(
        input_ids=ids, pixel_values_videos=pixels(1, frames=32), max_new_tokens=4, do_sample=False
    )
    assert generated.shape[1] == ids.shape[1] + 4


def test_videos_of_different_lengths_are_passed_as_a_list(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    long, short = pixels(1, frames=7)[0], pixels(1, frames=2, seed=1)[0]
    with torch.no_grad():
        together = model.model(
            input_ids=text_with(processor, videos=2), pixel_values_videos=[long, short]
        ).video_hidden_states
        apart = [model.get_video_features(video[None]).pooler_output for video in (long, short)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_an_image_equals_a_still_video(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    image = pixels(1, frames=1)[0]
    with torch.no_grad():
        as_image = model(input_ids=text_with(processor, images=1), pixel_values=image).logits
        as_video = model(
            input_ids=text_with(processor, videos=1), pixel_values_videos=image.repeat(1, 4, 1, 1, 1)
        ).logits
    torch.testing.assert_close(as_image, as_video)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_mixed_batch_equals_its_samples(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, chats: list, padding_side: str
) -> None:
    batch = encode(processor, chats, padding_side)
    assert len(batch["pixel_values_videos"]) == 9 and len(batch["pixel_values"]) == 4
    assert_equals_its_samples(model, processor, chats, padding_side)


def test_a_mixed_batch_generates_the_tokens_of_its_samples(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, chats: list
) -> None:
    batch = encode(processor, chats)
    together = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    answers = []
    for chat in chats:
        inputs = encode(processor, [chat])
        answers += model.generate(**inputs, max_new_tokens=6, do_sample=False)[
            :, inputs["input_ids"].shape[1] :
        ].tolist()
    assert together.tolist() == answers
    assert len(set(map(tuple, answers))) > 4, "the answers must depend on the chats"


# --- dtypes, devices, attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, chats: list, dtype: torch.dtype
) -> None:
    """The processor's pixels stay in float32."""
    half, batch = copy.deepcopy(model).to(dtype), encode(processor, chats[2:5])
    with torch.no_grad():
        expected, logits = model(**batch).logits, half(**batch).logits
    assert logits.dtype == dtype
    real = batch["attention_mask"].bool()
    assert nn.functional.cosine_similarity(logits.float()[real], expected[real], dim=-1).min() > 0.99
    assert half.generate(**batch, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2


@pytest.mark.parametrize("on_disk", ["cpu", "auto", ("tower", "text"), ("projector", "head")], ids=str)
def test_a_dispatched_model_gives_equal_outputs(
    model: PllavaForConditionalGeneration,
    processor: PllavaProcessor,
    checkpoint: str,
    tmp_path: Path,
    on_disk: str | tuple[str, ...],
    pixels: Callable[..., torch.Tensor],
) -> None:
    """Offloaded weights are loaded when their module is called: any other use of them fails."""
    device_map = on_disk
    if isinstance(on_disk, tuple):
        device_map = {
            "model.vision_tower": "tower",
            "model.multi_modal_projector": "projector",
            "model.language_model": "text",
            "lm_head": "text" if model.config.tie_word_embeddings else "head",  # tied weights must be in one place
        }
        if model.config.vision_config.model_type == "siglip2_vision_model":
            # transformers' NaFlex tower uses the weight of its position embedding without a call
            del device_map["model.vision_tower"]
            device_map |= {"model.vision_tower.embeddings": "cpu", "model.vision_tower.encoder": "tower"}
        device_map = {name: "disk" if part in on_disk else "cpu" for name, part in device_map.items()}
    dispatched = PllavaForConditionalGeneration.from_pretrained(
        checkpoint, device_map=device_map, offload_folder=str(tmp_path)
    )
    dispatched.generation_config.eos_token_id = None
    if isinstance(device_map, dict):
        assert any(parameter.is_meta for parameter in dispatched.parameters())
    ids = text_with(processor, videos=1, images=1)
    inputs = {"input_ids": ids, "pixel_values_videos": pixels(1), "pixel_values": pixels(1)[0, :1]}
    with torch.no_grad():
        torch.testing.assert_close(dispatched(**inputs).logits, model(**inputs).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert dispatched.generate(**inputs, **options).tolist() == model.generate(**inputs, **options).tolist()


def test_attention_implementations_agree(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, chats: list
) -> None:
    batch = encode(processor, chats[2:5])
    real = batch["attention_mask"].bool()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    parts = (eager.model.vision_tower, eager.model.language_model)
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    assert {part.config._attn_implementation for part in (model.model.vision_tower, model.model.language_model)} == {
        "sdpa"
    }
    with torch.no_grad():
        torch.testing.assert_close(eager(**batch).logits[real], model(**batch).logits[real], rtol=1e-4, atol=1e-4)
    takes_patches = model.config.vision_config.model_type == "siglip2_vision_model"  # with a mask: transformers' rule
    assert model._supports_flash_attn and model.model.vision_tower._supports_flash_attn is not takes_patches


# --- features of transformers' models --------------------------------------------------------------------------------


def test_hidden_states_attentions_and_tuples_are_returned(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    ids = text_with(processor, videos=1, images=1)
    inputs = {"input_ids": ids, "pixel_values_videos": pixels(1), "pixel_values": pixels(1)[0, :1]}
    with torch.no_grad():
        outputs = eager(**inputs, output_hidden_states=True, output_attentions=True)
        base = eager.model(**inputs)
        in_tuple = eager(**inputs, return_dict=False)
    length = ids.shape[1]
    assert [state.shape for state in outputs.hidden_states] == [(1, length, 32)] * 3
    assert [weights.shape for weights in outputs.attentions] == [(1, 4, length, length)] * 2
    assert outputs.image_hidden_states.shape == (1, VIDEO_TOKENS, 32)
    assert base.video_hidden_states.shape == base.image_hidden_states.shape == (1, VIDEO_TOKENS, 32)
    torch.testing.assert_close(in_tuple[0], outputs.logits)
    torch.testing.assert_close(eager.lm_head(base.last_hidden_state), outputs.logits)


def test_logits_to_keep_keeps_the_last(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    inputs = {"input_ids": text_with(processor, videos=1), "pixel_values_videos": pixels(1)}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, model(**inputs).logits[:, -1:])


def test_token_embeddings_can_be_resized(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    resized = copy.deepcopy(model)
    size = model.config.text_config.vocab_size
    resized.resize_token_embeddings(size + 7)
    ids = text_with(processor, videos=1)
    with torch.no_grad():
        outputs = resized(input_ids=ids, pixel_values_videos=pixels(1), labels=ids)
        expected = model(input_ids=ids, pixel_values_videos=pixels(1)).logits
    assert resized.config.text_config.vocab_size == size + 7 and outputs.loss.isfinite()
    torch.testing.assert_close(outputs.logits[..., :size], expected)


def test_embeddings_can_be_tied(config: PllavaConfig) -> None:
    config = copy.deepcopy(config)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    model = PllavaForConditionalGeneration(config)
    assert model.lm_head.weight is model.get_input_embeddings().weight


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("videos", "images", "modality"), [(2, 2, "video"), (0, 2, "video"), (1, 1, "image")])
def test_the_error_for_a_wrong_number_of_placeholders_has_both_counts(
    model: PllavaForConditionalGeneration,
    processor: PllavaProcessor,
    videos: int,
    images: int,
    modality: str,
    pixels: Callable[..., torch.Tensor],
) -> None:
    placeholders = {"video": videos, "image": images}[modality] * VIDEO_TOKENS
    tokens = {"video": 1, "image": 2}[modality] * VIDEO_TOKENS
    media = {"pixel_values_videos": pixels(1), "pixel_values": pixels(1)[0, :2]}
    with pytest.raises(ValueError) as caught:
        model(input_ids=text_with(processor, videos, images), **media)
    counts = (f"{placeholders} <{modality}>", f"{tokens} {modality} tokens")
    for part in (*counts, "processor", "pooling_shape", "average-4x3x3"):
        assert part in str(caught.value)


def test_ids_and_embeddings_exclude_each_other(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    with pytest.raises(ValueError, match="one of `input_ids` or `inputs_embeds`"):
        model(pixel_values_videos=pixels(1))
    with pytest.raises(ValueError, match="one of `input_ids` or `inputs_embeds`"):
        ids = text_with(processor)
        model(input_ids=ids, inputs_embeds=model.get_input_embeddings()(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling_shape": [4, 3]}, "three positive"),
        ({"pooling_shape": [4, 0, 3]}, "three positive"),
        ({"num_frames": 0}, "num_frames"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "must be 'full'"),
        ({"vision_config": {"model_type": "dinov2"}}, "clip_vision_model, siglip_vision_model"),
        ({"vision_feature_select_strategy": "full"}, "CLS"),
        ({"vision_feature_layer": [-2, -30]}, "vision_feature_layer"),
    ],
)
def test_an_impossible_config_is_refused(options: dict, message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        PllavaConfig(**options)


def test_token_ids_have_two_names(config: PllavaConfig) -> None:
    assert config.video_token_id == config.video_token_index and config.image_token_id == config.image_token_index
    assert config.num_video_tokens == VIDEO_TOKENS
    assert not set(chain(config.to_dict())) & {"video_token_id", "image_token_id"}
