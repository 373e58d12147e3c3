"""Images in full beside pooled videos, and images as still videos."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_inputs import assert_equals_its_samples, encode, mixed_chats
from transformers.generation import utils as generation

from pllava import PllavaForConditionalGeneration, PllavaProcessor, modeling_pllava

Pair = tuple[PllavaForConditionalGeneration, PllavaProcessor]
Pixels = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def chats(clips: list[Path]) -> list[list[dict]]:
    return mixed_chats(clips)


@pytest.fixture(scope="module")
def full(pair: Pair) -> Pair:
    """The pair with images in full."""
    model, processor = copy.deepcopy(pair)
    grid = model.config.patch_grid
    model.config.image_pooling_shape = processor.image_pooling_shape = [1, grid, grid]
    return model, processor


def test_image_in_full_has_the_projected_tokens_of_its_patches(full: Pair, pixels: Pixels) -> None:
    model, _ = full
    images = pixels(2, frames=1).flatten(0, 1)
    with torch.no_grad():
        tokens = model.get_image_features(images).pooler_output
        features = model.model.encode_frames(images).last_hidden_state
        expected = model.model.multi_modal_projector(features)
    torch.testing.assert_close(tokens, expected)
    assert tokens.shape == (2, model.config.patch_grid**2, 32)


def test_image_is_a_still_video_by_default(pair: Pair, pixels: Pixels) -> None:
    model, _ = pair
    image = pixels(1, frames=1)[0]
    with torch.no_grad():
        as_image = model.get_image_features(image).pooler_output
        as_video = model.get_video_features(image.expand(1, 6, -1, -1, -1)).pooler_output
    torch.testing.assert_close(as_image, as_video)


def test_each_placeholder_gets_its_own_medium(full: Pair, chats: list) -> None:
    """In a prompt with an image between videos, the tokens of each stand where its placeholders do."""
    model, processor = full
    batch = encode(processor, [chats[7], chats[4]])
    kinds = {model.config.image_token_id: "image", model.config.video_token_id: "video"}
    sizes = {"image": model.config.num_image_tokens, "video": model.config.num_video_tokens}
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
        media = {
            "image": iter([model.get_image_features(image[None]).pooler_output[0] for image in batch["pixel_values"]]),
            "video": iter(
                [model.get_video_features(video[None]).pooler_output[0] for video in batch["pixel_values_videos"]]
            ),
        }
    hook.remove()
    order = []
    for ids, embeds in zip(batch["input_ids"].tolist(), seen["inputs_embeds"], strict=True):
        position = 0
        while position < len(ids):
            kind = kinds.get(ids[position])
            if kind is None:
                position += 1
                continue
            order.append(kind)
            tokens = next(media[kind])
            torch.testing.assert_close(embeds[position : position + sizes[kind]], tokens)
            position += sizes[kind]
    assert order == ["video", "image", "video", "image", "image", "video"]
    assert all(next(each, None) is None for each in media.values())


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_mixed_batch_with_images_in_full_equals_its_samples(full: Pair, chats: list, padding_side: str) -> None:
    assert_equals_its_samples(*full, chats, padding_side)


def test_generation_with_images_in_full(full: Pair, chats: list) -> None:
    model, processor = full
    batch, options = encode(processor, [chats[1], chats[4], chats[7]]), {"max_new_tokens": 4, "do_sample": False}
    length = batch["input_ids"].shape[1]
    answers = model.generate(**batch, **options)[:, length:].tolist()
    assert model.generate(**batch, **options, use_cache=False)[:, length:].tolist() == answers
    for chat, answer in zip([chats[1], chats[4], chats[7]], answers, strict=True):
        alone = encode(processor, [chat])
        assert model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :].tolist() == answer


@pytest.mark.skipif(
    not hasattr(generation, "_slice_mm_encoder_output"), reason="transformers passes no media to a chunked prefill"
)
def test_prefill_in_chunks_splits_media_of_different_sizes(full: Pair, chats: list) -> None:
    model, processor = full
    inputs, options = encode(processor, [chats[7]]), {"max_new_tokens": 4, "do_sample": False}
    whole = model.generate(**inputs, **options).tolist()
    for size in (7, 64):
        assert model.generate(**inputs, **options, prefill_chunk_size=size).tolist() == whole


def test_sharded_projector_gives_the_same(full: Pair, chats: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ZeRO-3 it is called once for all media, before they are pooled in their different ways."""
    model, processor = full
    batch = encode(processor, [chats[4], chats[7]])
    with torch.no_grad():
        expected = model(**batch).logits
        monkeypatch.setattr(modeling_pllava, "is_deepspeed_zero3_enabled", lambda: True)
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-4)


def test_images_in_full_and_videos_train_together(full: Pair, chats: list) -> None:
    model, processor = copy.deepcopy(full[0]).train(), full[1]
    batch = encode(processor, [chats[1], chats[7]], "right")
    media = [model.config.image_token_id, model.config.video_token_id]
    labels = batch["input_ids"].masked_fill(torch.isin(batch["input_ids"], torch.tensor(media)), -100)
    model(**batch, labels=labels.masked_fill(batch["attention_mask"] == 0, -100)).loss.backward()
    assert all(weight.grad.any() for weight in model.model.multi_modal_projector.parameters())


def test_error_for_too_few_image_tokens_names_the_images_shape(full: Pair, pair: Pair, chats: list) -> None:
    model, grid = full[0], full[0].config.patch_grid
    with pytest.raises(ValueError, match=f"{grid**2} image tokens, 1 times {grid**2}.*average-1x{grid}x{grid}"):
        model(**encode(pair[1], [chats[1]]))
