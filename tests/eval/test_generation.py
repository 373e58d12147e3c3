"""Prompts, batches and greedy decoding: shared prefixes, stop strings, and batches that do not fit into memory."""

import logging
import warnings

import pytest
import torch
import yaml
from benchmark_folders import benchmark, lines, scene
from transformers import AutoProcessor, Cache, DynamicLayer

import pllava
from pllava import generation
from pllava.chat_templates_pllava import CHAT_TEMPLATES
from pllava.eval import LocalModel, Sample, evaluate, load_benchmark
from pllava.eval.models.batching import plan_batches
from pllava.generation import Generator, Prompt
from pllava.nano.world.rendering import render

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
    return Generator(model, processor, batch_size).answer(prompts, features, benchmark("nano").max_new_tokens)


def record_cache_sizes(monkeypatch, model):
    """Return a list that gets the bytes of the KV cache at the end of each call of `generate`."""
    sizes, generate = [], model.generate

    def recorded(*args, **kwargs):
        output = generate(*args, **kwargs)
        (cache,) = (value for value in kwargs.values() if isinstance(value, Cache))
        tensors = [value for layer in cache.layers for value in vars(layer).values()]
        states = [tensor for tensor in tensors if torch.is_tensor(tensor) and tensor.is_floating_point()]
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in states))
        return output

    monkeypatch.setattr(model, "generate", recorded)
    return sizes


def test_shared_prefixes_are_stored_once(monkeypatch, model, processor, prompts, features):
    """Eight questions about two clips: two prefixes, and the same answers as one by one."""
    alone = [answers(model, processor, [prompt], features)[0] for prompt in prompts]
    sizes = record_cache_sizes(monkeypatch, model)
    assert answers(model, processor, prompts, features) == alone
    monkeypatch.setattr(generation, "share_prefixes", lambda cache, indices: cache.batch_select_indices(indices))
    assert answers(model, processor, prompts, features) == alone
    shared, copied = sizes
    text = model.config.text_config
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    prefix = token * (processor.num_video_tokens + len(prompts[0].prefix) - 1)
    assert copied - shared == (QUESTIONS - 2) * prefix


def test_sliding_window_layer_is_copied(model, processor, prompts, features):
    """It drops old keys, so prompts cannot share them."""

    class Window(DynamicLayer):
        pass

    cache = type("Cache", (), {"layers": [Window()]})()
    cache.layers[0].update(torch.randn(2, 1, 5, 4), torch.randn(2, 1, 5, 4))
    generation.share_prefixes(cache, torch.tensor([0, 0, 1]))
    assert type(cache.layers[0]) is Window and len(cache.layers[0].keys) == 3


def limit_memory(monkeypatch, model, largest):
    """Let the model run out of memory above `largest` prompts; return a list of the batch sizes tried."""
    tried, generate = [], model.generate

    def limited(input_ids, **kwargs):
        tried.append(len(input_ids))
        if len(input_ids) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 19.00 GiB.")
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "generate", limited)
    return tried


def test_batch_size_is_halved_when_memory_runs_out(monkeypatch, caplog, model, processor, prompts, features):
    expected = answers(model, processor, prompts, features)
    tried = limit_memory(monkeypatch, model, largest=3)
    generator = Generator(model, processor, QUESTIONS)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert generator.answer(prompts, features, benchmark("nano").max_new_tokens) == expected
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert [record.message for record in caplog.records] == [
        "Not enough memory for 8 questions at a time: 4 from here on",
        "Not enough memory for 4 questions at a time: 2 from here on",
    ]


def test_question_that_does_not_fit_into_memory_is_an_error(monkeypatch, model, processor, prompts, features):
    limit_memory(monkeypatch, model, largest=0)
    with pytest.raises(RuntimeError, match="not enough memory on cpu for one question.*--load-in-4bit"):
        answers(model, processor, prompts, features)
    monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers(model, processor, prompts, features)


def test_clip_that_does_not_fit_into_memory_is_an_error(monkeypatch, model, processor):
    def fail(error):
        def encode(*_):
            raise error

        monkeypatch.setattr(model.model, "encode_frames", encode)
        LocalModel(model, processor).generator.encode_frames(torch.zeros(4, 3, 48, 48))

    with pytest.raises(RuntimeError, match="not enough memory on cpu for the 4 frames of one clip; --load-in-4bit"):
        fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 19.00 GiB."))
    with pytest.raises(RuntimeError, match="^shapes$"):
        fail(RuntimeError("shapes"))


def test_cache_is_passed_without_deprecation_warnings(model, processor, prompts, features):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        answers(model, processor, prompts, features)


# --- prompts and batches ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano():
    return LocalModel(pllava.load_model(pllava.NANO), AutoProcessor.from_pretrained(pllava.NANO), num_workers=0)


def test_prompts_have_the_tokens_of_the_processor(nano):
    processor, declared = nano.processor, benchmark("mvbench")
    prefix, suffix = nano.encode(declared, "Question: Which?\nOptions:\n(A) x", True)
    video = processor.video_token_id
    chat = declared.chat("Question: Which?\nOptions:\n(A) x", [{"type": "video", "video": scene(0)[0]}])
    expected = processor.apply_chat_template(
        chat, "eval_mvbench", continue_final_message=True, tokenize=True, return_dict=True
    )["input_ids"][0]
    assert [*prefix[:-1], *[video] * processor.num_video_tokens, *suffix] == list(expected)
    assert processor.tokenizer.decode(suffix).endswith("Best option:(")
    prefix, suffix = nano.encode(declared, "Which?", False)
    assert prefix == [] and video not in suffix


@pytest.mark.parametrize(
    ("own", "evaluated"),
    [("plain", "eval_mvbench"), ("eval_vcg_llavanext", "eval_mvbench_llavanext"), ("chatml", "chatml")],
)
def test_the_originals_models_get_its_prompts_and_others_keep_their_own(nano, monkeypatch, own, evaluated):
    processor, declared = nano.processor, benchmark("mvbench")
    monkeypatch.setattr(processor, "chat_template", CHAT_TEMPLATES[own])
    _, suffix = nano.encode(declared, "Which?", True)
    chat = declared.chat("Which?", [{"type": "video"}])
    expected = processor.apply_chat_template(chat, evaluated, continue_final_message=True).split("<video>")[1]
    assert processor.tokenizer.decode(suffix) == expected


def test_answers_end_at_the_length_limit_and_at_stop_strings(nano, tmp_path):
    world = render(tmp_path / "world", clips=4, seed=3).parent
    file = tmp_path / "mine.yaml"
    values = {"title": "Mine", "read": "rows", "score": "exact", "tasks": {"all": {"file": "questions.jsonl"}}}
    file.write_text(yaml.safe_dump({**values, "max_new_tokens": 2}))
    (found,) = evaluate(load_benchmark(str(file), {}), nano, str(world), tmp_path / "short").values()
    captions = [row for row in lines(tmp_path / "short" / "mine") if row["task"] == "caption"]
    assert all(row["truncated"] for row in captions)
    assert found["truncated"] >= len(captions) == 4
    file.write_text(yaml.safe_dump({**values, "max_new_tokens": 64, "stop": [" a ", "e"]}))
    evaluate(load_benchmark(str(file), {}), nano, str(world), tmp_path / "stop")
    for row in lines(tmp_path / "stop" / "mine"):
        assert "e" not in row["prediction"] and "truncated" not in row


def test_plan_batches_groups_clips_and_lengths():
    def sample(number, clip, reference="red"):
        return Sample(str(number), "t", f"{clip}.mp4", ("What?",), reference)

    long = "a sentence that has at least eight words in it"
    samples = [sample(n, n % 3, long if n % 4 == 3 else "red") for n in range(12)]
    windows = plan_batches(samples, [10] * 11 + [100], batch_size=4)
    assert [len(window) for window in windows] == [3]
    batches = windows[0]
    assert sorted(sample.id for batch in batches for sample in batch) == sorted(sample.id for sample in samples)
    assert [each.reference == long for each in batches[-1]] == [False, True, True, True]  # long answers share a batch
    assert batches[-1][-1].id == "11"  # the long prompt is last
    assert [each.video for each in batches[0]] == ["0.mp4"] * 3 + ["1.mp4"]  # a clip's questions share a batch
    two = [Sample(str(n), "t", "a.mp4", ("Q1", "Q2")) for n in range(3)]
    assert [len(batch) for batch in plan_batches(two, [1] * 3, batch_size=4)[0]] == [2, 1]
