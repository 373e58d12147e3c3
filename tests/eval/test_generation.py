"""The language model's part of an evaluation: prompts that begin alike, and memory that does not suffice."""

import logging
import warnings

import pytest
import torch
from benchmark_folders import benchmark
from transformers import Cache, DynamicLayer

from pllava.eval import LocalModel
from pllava.eval.models import generation
from pllava.eval.models.generation import Generator, Prompt

QUESTIONS = 8


@pytest.fixture
def prompts(processor):
    """Questions of different lengths, three about one clip and the rest about another."""
    start, video = processor.tokenizer("USER: ").input_ids, processor.video_token_id
    suffixes = [processor.tokenizer("What is it? " * (1 + number % 3) + "ASSISTANT:") for number in range(QUESTIONS)]
    return [Prompt(int(number >= 3), [*start, video], ids.input_ids[1:]) for number, ids in enumerate(suffixes)]


@pytest.fixture
def features(model):
    pixels = torch.randn(2, 4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return [model.get_video_features(clip[None]).last_hidden_state for clip in pixels]


@torch.inference_mode()
def answers(model, processor, prompts, features, batch_size=QUESTIONS):
    return Generator(model, processor, batch_size).answer(benchmark("nano"), prompts, features)


def caches(monkeypatch, model):
    """What `generate` is given as keys and values, and their bytes when it has ended."""
    found, generate = [], model.generate

    def watched(*args, **kwargs):
        output = generate(*args, **kwargs)
        (cache,) = (value for value in kwargs.values() if isinstance(value, Cache))
        tensors = [value for layer in cache.layers for value in vars(layer).values()]
        held = [tensor for tensor in tensors if torch.is_tensor(tensor) and tensor.is_floating_point()]
        found.append(sum(tensor.untyped_storage().nbytes() for tensor in held))
        return output

    monkeypatch.setattr(model, "generate", watched)
    return found


def test_what_prompts_begin_with_is_kept_once(monkeypatch, model, processor, prompts, features):
    """Of eight questions about two clips: two beginnings, and the answers of eight."""
    alone = [answers(model, processor, [prompt], features)[0] for prompt in prompts]
    sizes = caches(monkeypatch, model)
    assert answers(model, processor, prompts, features) == alone
    monkeypatch.setattr(generation, "share_prefixes", lambda cache, places: cache.batch_select_indices(places))
    assert answers(model, processor, prompts, features) == alone
    shared, copied = sizes
    text = model.config.text_config
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    beginning = token * (processor.num_visual_tokens + len(prompts[0].prefix) - 1)
    assert copied - shared == (QUESTIONS - 2) * beginning


def test_a_layer_with_a_window_is_copied(model, processor, prompts, features):
    """Its keys are cut as it goes on: they cannot be shared."""

    class Window(DynamicLayer):
        pass

    cache = type("Cache", (), {"layers": [Window()]})()
    cache.layers[0].update(torch.randn(2, 1, 5, 4), torch.randn(2, 1, 5, 4))
    generation.share_prefixes(cache, torch.tensor([0, 0, 1]))
    assert type(cache.layers[0]) is Window and len(cache.layers[0].keys) == 3


def out_of_memory(monkeypatch, model, most):
    """A model that has memory for `most` prompts; gives the numbers of prompts that it was asked for."""
    tried, generate = [], model.generate

    def limited(input_ids, **kwargs):
        tried.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 19.00 GiB.")
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "generate", limited)
    return tried


def test_a_batch_that_does_not_fit_goes_on_as_smaller_ones(monkeypatch, caplog, model, processor, prompts, features):
    expected = answers(model, processor, prompts, features)
    tried = out_of_memory(monkeypatch, model, most=3)
    generator = Generator(model, processor, QUESTIONS)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert generator.answer(benchmark("nano"), prompts, features) == expected
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert [record.message for record in caplog.records] == [
        "Not enough memory for 8 questions at a time: 4 from here on",
        "Not enough memory for 4 questions at a time: 2 from here on",
    ]


def test_a_question_that_does_not_fit_is_an_error(monkeypatch, model, processor, prompts, features):
    out_of_memory(monkeypatch, model, most=0)
    with pytest.raises(RuntimeError, match="not enough memory on cpu for one question.*--load-in-4bit"):
        answers(model, processor, prompts, features)
    monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers(model, processor, prompts, features)


def test_a_clip_that_does_not_fit_is_an_error(monkeypatch, model, processor):
    def fail(error):
        def encode(*_):
            raise error

        monkeypatch.setattr(model.model, "encode_frames", encode)
        LocalModel(model, processor)._encode_frames(torch.zeros(4, 3, 48, 48))

    with pytest.raises(RuntimeError, match="not enough memory on cpu for the 4 frames of one clip; --load-in-4bit"):
        fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 19.00 GiB."))
    with pytest.raises(RuntimeError, match="^shapes$"):
        fail(RuntimeError("shapes"))


def test_keys_and_values_are_passed_by_the_name_that_is_taken(model, processor, prompts, features):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        answers(model, processor, prompts, features)
