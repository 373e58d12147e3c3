"""Generation: beams, samples, caches, embeddings and compiled models."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_inputs import VIDEO_TOKENS, encode, mixed_chats, text_with

from pllava import PllavaForConditionalGeneration, PllavaProcessor


@pytest.fixture(scope="module")
def chats(clips: list[Path]) -> list[list[dict]]:
    return mixed_chats(clips)


@pytest.fixture(scope="module")
def pair(processor: PllavaProcessor, chats: list) -> dict[str, torch.Tensor]:
    """A row with two videos, one with an image between two videos, and one without media."""
    return encode(processor, [chats[3], chats[7], chats[0]])


def merged(model: PllavaForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The text's embeddings with the visual tokens filled in: generation from these expands no pixels."""
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    for token, features in (
        (model.config.video_token_id, model.get_video_features(batch["pixel_values_videos"])),
        (model.config.image_token_id, model.get_image_features(batch["pixel_values"])),
    ):
        embeds[batch["input_ids"] == token] = features.pooler_output.flatten(0, 1).detach()
    return embeds


def test_beam_search_keeps_the_videos_of_each_beam_in_order(
    model: PllavaForConditionalGeneration, pair: dict[str, torch.Tensor]
) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "do_sample": False}
    beams = model.generate(**pair, **options)[:, pair["input_ids"].shape[1] :]
    reference = model.generate(inputs_embeds=merged(model, pair), attention_mask=pair["attention_mask"], **options)
    assert beams.tolist() == reference.tolist()
    swapped = {**pair, "pixel_values_videos": pair["pixel_values_videos"][[1, 0, 2, 3]]}
    assert model.generate(**swapped, **options)[:, pair["input_ids"].shape[1] :].tolist() != beams.tolist()


def test_sampling_returns_several_sequences(
    model: PllavaForConditionalGeneration, pair: dict[str, torch.Tensor]
) -> None:
    """With top_k=1 all three samples of a row are its greedy answer; without, they differ."""
    greedy = model.generate(**pair, max_new_tokens=5, do_sample=False)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5}
    sampled = model.generate(**pair, top_k=1, **options)
    assert sampled.tolist() == greedy.repeat_interleave(3, 0).tolist()
    torch.manual_seed(0)
    assert len(set(map(tuple, model.generate(**pair, top_k=0, **options).tolist()))) > 3


def test_a_static_cache_gives_equal_tokens(
    model: PllavaForConditionalGeneration, pair: dict[str, torch.Tensor]
) -> None:
    dynamic = model.generate(**pair, max_new_tokens=6, do_sample=False)
    static = model.generate(**pair, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert static.tolist() == dynamic.tolist()


def test_prompt_lookup_gives_equal_tokens(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    """It proposes what follows the prompt's last words elsewhere in it: here placeholders, which have no video."""
    video = model.config.video_token_id
    first, last = processor.tokenizer("red circle", add_special_tokens=False).input_ids[:2]
    ids = torch.tensor([[last, *[video] * VIDEO_TOKENS, first, last]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels(1)}
    options = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [model.config.image_token_id, video]}
    plain = model.generate(**inputs, **options)
    assert model.generate(**inputs, **options, prompt_lookup_num_tokens=5).tolist() == plain.tolist()
    del options["suppress_tokens"]
    with pytest.raises(ValueError, match="With prompt lookup, pass the ids of both placeholders as `suppress_tokens`"):
        model.generate(**inputs, **options, prompt_lookup_num_tokens=5)


def test_generation_encodes_the_video_once(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    calls = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    model.generate(
        input_ids=text_with(processor, videos=1), pixel_values_videos=pixels(1), max_new_tokens=5, num_beams=2
    )
    hook.remove()
    assert len(calls) == 1


def test_generation_from_embeddings_finds_the_placeholders(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    ids, video = text_with(processor, videos=2), pixels(2)
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values_videos=video).logits
        torch.testing.assert_close(model(inputs_embeds=embeds, pixel_values_videos=video).logits, expected)
    options = {"pixel_values_videos": video, "max_new_tokens": 5, "do_sample": False}
    for beams in (1, 2):
        from_ids = model.generate(input_ids=ids, num_beams=beams, **options)[:, ids.shape[1] :]
        assert model.generate(inputs_embeds=embeds, num_beams=beams, **options).tolist() == from_ids.tolist()


def test_encoded_media_equal_pixels(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    ids, video = text_with(processor, videos=2), pixels(2)
    with torch.no_grad():
        encoded = {"video": model.get_video_features(video)}
        expected = model(input_ids=ids, pixel_values_videos=video).logits
        torch.testing.assert_close(model(input_ids=ids, mm_encoder_outputs=encoded).logits, expected)


def test_compiled_prefill_and_decoding_step_are_one_graph(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids, video = text_with(processor, videos=2), pixels(2)
    with torch.no_grad():
        prefill = model(input_ids=ids, pixel_values_videos=video, use_cache=True)
        step = {"input_ids": ids[:, -1:], "past_key_values": copy.deepcopy(prefill.past_key_values)}
        expected = model(**step).logits
        again = compiled(input_ids=ids, pixel_values_videos=video, use_cache=True)
        torch.testing.assert_close(again.logits, prefill.logits)
        torch.testing.assert_close(
            compiled(input_ids=ids[:, -1:], past_key_values=again.past_key_values).logits, expected
        )


@pytest.mark.slow  # Inductor compiles for a minute
def test_generation_with_a_compiled_decoding_step(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, pixels: Callable
) -> None:
    inputs = {"input_ids": text_with(processor, videos=1), "pixel_values_videos": pixels(1)}
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**inputs, **options)
    compiled = copy.deepcopy(model)
    compiled.forward = torch.compile(compiled.forward)
    torch.testing.assert_close(compiled.generate(**inputs, **options, cache_implementation="static"), expected)
