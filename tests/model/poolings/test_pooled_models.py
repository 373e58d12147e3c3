"""Models of each family with each pooling: counts, batches, padding, generation, gradients, files."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plain_poolings
import pytest
import torch
from families import Family, make_config, make_processor
from model_inputs import assert_equals_its_samples, encode, mixed_chats
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from pllava import PllavaForConditionalGeneration, PllavaModel, PllavaProcessor
from pllava.pooling_pllava import POOLINGS, average

Pair = tuple[PllavaForConditionalGeneration, PllavaProcessor]
Pixels = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def chats(clips: list[Path]) -> list[list[dict]]:
    return mixed_chats(clips)


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", POOLINGS)
def test_config_model_and_processor_count_the_same_tokens(family: Family, name: str, seed: int) -> None:
    """For any shape and any number of frames; and the tokens are those of the plain poolings."""
    rng = np.random.default_rng(seed)
    processor, kind = make_processor(family), POOLINGS[name]
    num_frames, given = 1 + rng.integers(8), 1 + int(rng.integers(16))
    if name == "merge":
        given += num_frames  # repeated frames are all equally alike
    grid = make_config(family, processor).patch_grid
    shapes = [[int(1 + rng.integers(limit)) for limit in (num_frames, grid, grid)] for _ in range(kind.num_paths)]
    full = rng.integers(2) == 1
    values = {"pooling": name, "pooling_shape": shapes[0] if kind.num_paths == 1 else shapes}
    values["image_pooling_shape"] = [1, grid, grid] if full else None
    config = make_config(family, processor, **values, num_frames=int(num_frames))
    parts = (processor.image_processor, processor.tokenizer, processor.video_processor)
    processor = PllavaProcessor(*parts, **values)
    processor.video_processor.num_frames = config.num_frames

    video = rng.integers(256, size=(given, 48, 64, 3), dtype=np.uint8)
    inputs = processor(
        text=processor.video_token + processor.image_token * 2,
        videos=[video],
        images=[video[0], video[-1]],
        return_tensors="pt",
    )
    written = [(inputs["input_ids"] == token).sum() for token in (config.video_token_id, config.image_token_id)]
    assert written == [config.num_video_tokens, 2 * config.num_image_tokens]
    assert (processor.num_video_tokens, processor.num_image_tokens) == (written[0], written[1] // 2)
    taken = inputs["pixel_values_videos"]
    assert taken.shape[1] == min(given, config.num_frames)
    torch.manual_seed(seed)
    model = PllavaModel(config).eval()
    with torch.no_grad():
        output = model(**inputs)
        features = model.multi_modal_projector(model.encode_frames(taken[0]).last_hidden_state)
    frames = features.unflatten(1, (grid, grid))
    if len(frames) < config.num_frames:  # the original's rule
        frames = frames.repeat_interleave(config.num_frames // len(frames) + 1, dim=0)[: config.num_frames]
    expected = plain_poolings.pool(frames, name, config.video_pooling.shapes)
    torch.testing.assert_close(output.video_hidden_states[0], expected)
    assert output.image_hidden_states.shape[:2] == (2, config.num_image_tokens)


def test_tokens_depend_on_the_frames_order(pair: Pair, pixels: Pixels) -> None:
    model, _ = pair
    video = pixels(1, frames=6)
    with torch.no_grad():
        forwards, backwards = (model.get_video_features(each).pooler_output for each in (video, video.flip(1)))
    assert not torch.allclose(forwards, backwards)


# --- batches and generation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_mixed_batch_with_a_pooling_equals_its_samples(pair: Pair, chats: list, padding_side: str) -> None:
    assert_equals_its_samples(*pair, chats, padding_side)


def test_generation_with_a_pooling(pair: Pair, chats: list) -> None:
    """With a cache or without one, in a batch or alone, and of beams."""
    model, processor = pair
    chats = [chats[1], chats[3], chats[7]]
    batch, options = encode(processor, chats), {"max_new_tokens": 5, "do_sample": False}
    length = batch["input_ids"].shape[1]
    answers = model.generate(**batch, **options)[:, length:].tolist()
    assert model.generate(**batch, **options, use_cache=False)[:, length:].tolist() == answers
    static = model.generate(**batch, **options, cache_implementation="static")[:, length:]
    assert static.tolist() == answers
    for chat, answer in zip(chats, answers, strict=True):
        alone = encode(processor, [chat])
        assert model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :].tolist() == answer
    assert len(set(map(tuple, answers))) == 3, "the answers must depend on the chats"
    beams = model.generate(**batch, **options, num_beams=2, num_return_sequences=2)[:, length:].tolist()
    apart = [encode(processor, [chat]) for chat in chats]
    of_each = [model.generate(**one, **options, num_beams=2, num_return_sequences=2) for one in apart]
    assert beams == [
        row for one, rows in zip(apart, of_each, strict=True) for row in rows[:, one["input_ids"].shape[1] :].tolist()
    ]


def test_half_precision_with_a_pooling(pair: Pair, chats: list) -> None:
    """Against the plain poolings of the same tokens: which ones are merged depends on how they are rounded."""
    model, processor = pair
    half, batch = copy.deepcopy(model).bfloat16(), encode(processor, chats[2:5])
    pooling, videos = model.config.video_pooling, batch["pixel_values_videos"]
    with torch.no_grad():
        logits, output = half(**batch).logits, half.get_video_features(videos)
        features = output.last_hidden_state.split([len(video) for video in videos])
        for frames, tokens in zip(features, output.pooler_output, strict=True):
            grid = half.model.multi_modal_projector(frames).unflatten(1, [model.config.patch_grid] * 2)
            if pooling.name == "merge":
                grid = average(grid, (len(grid), *pooling.shapes[0][1:]))
            plain = plain_poolings.pool(grid.float(), pooling.name, pooling.shapes)
            torch.testing.assert_close(tokens.float(), plain, rtol=2e-2, atol=2e-2)
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


# --- training --------------------------------------------------------------------------------------------------------


def test_gradients_with_a_pooling_are_those_of_the_plain_one(pair: Pair, pixels: Pixels) -> None:
    """To the projector and the tower: choosing what is merged takes no part in them."""
    model = copy.deepcopy(pair[0].model).train()
    video, pooling = pixels(1, frames=6), model.config.video_pooling

    def gradients(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (tokens * weights).sum().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    weights = torch.randn(pooling.num_tokens, 32, generator=torch.Generator().manual_seed(0))
    pooled = gradients(model.get_video_features(video).pooler_output[0])
    features = model.multi_modal_projector(model.encode_frames(video[0]).last_hidden_state)
    grid = features.unflatten(1, [model.config.patch_grid] * 2)
    plain = gradients(plain_poolings.pool(grid, pooling.name, pooling.shapes))
    torch.testing.assert_close(pooled, plain, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in model.multi_modal_projector.named_parameters(prefix="multi_modal_projector")} <= set(
        pooled
    )
    assert all(gradient.any() for name, gradient in pooled.items() if "projector" in name)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote_code", [False, True], ids=["", "remote code"])
def test_saved_pooling_is_loaded(pair: Pair, chats: list, tmp_path: Path, remote_code: bool) -> None:
    model, processor = pair
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classes, code = (AutoModelForImageTextToText, AutoProcessor), "pllava."
    if remote_code:
        names = ("modeling_pllava.PllavaForConditionalGeneration", "processing_pllava.PllavaProcessor")
        classes = [get_class_from_dynamic_module(name, str(tmp_path)) for name in names]
        code = "transformers_modules."
    loaded, reading = (each.from_pretrained(tmp_path) for each in classes)
    assert all(type(part).__module__.startswith(code) for part in (loaded, reading, loaded.config.video_pooling))
    assert str(loaded.config.video_pooling) == str(reading.video_pooling) == str(processor.video_pooling)
    inputs, expected = encode(reading, chats[2:4]), encode(processor, chats[2:4])
    assert inputs.keys() == expected.keys()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**expected).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "average", "pooling_shape": [2, 2, 2]},
        {"pooling": "merge", "pooling_shape": [2, 2, 2]},
        {"image_pooling_shape": [1, 5, 5]},
    ],
    ids=str,
)
def test_processor_with_another_pooling_than_the_model_is_refused(pair: Pair, tmp_path: Path, change: dict) -> None:
    model, processor = pair
    model.save_pretrained(tmp_path)
    changed = copy.deepcopy(processor)
    for name, value in change.items():
        setattr(changed, name, value)
    changed.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="disagree on `(image_)?pooling"):
        PllavaProcessor.from_pretrained(tmp_path)
    assert PllavaProcessor.from_pretrained(tmp_path, **change).pooling == changed.pooling  # as the caller asks


def test_error_of_a_processor_with_another_pooling_names_the_models(
    pair: Pair, processor: PllavaProcessor, chats: list
) -> None:
    model, pooling = pair[0], pair[0].config.video_pooling
    with pytest.raises(ValueError) as caught:
        model(**encode(processor, [chats[2]]))
    for part in ("36 <video>", f"{pooling.num_tokens} video tokens", str(pooling)):
        assert part in str(caught.value)
