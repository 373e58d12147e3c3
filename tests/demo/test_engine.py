"""Answers of the chat: equal to the model's own, under each setting, and without effect on other questions."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, pipeline
from video_files import moving_frames, write_video

import pllava
from pllava import NANO, load_model
from pllava.demo.conversation import Answer, Medium, Settings, Turn, cut_newest_video
from pllava.demo.engine import Engine
from pllava.media import MediaRefused
from pllava.model_pooling import choose_pooling, set_pooling

QUESTION = "Describe the video."
FEWER = Settings(pooling="average-8x2x3")


def ask(engine, *turns, settings=Settings(), alpha=None):  # noqa: B008
    *_, answer = engine.answer(engine.prepare(list(turns), settings), alpha)
    return answer


def generate(model, processor, messages, **processor_kwargs):
    """What the model itself answers, the plainest way."""
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **processor_kwargs
    )
    output = model.generate(**inputs, max_new_tokens=256, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_streamed_answer_grows_to_that_of_the_pipeline(engine, clip, nano_processor):
    answers = list(engine.answer(engine.prepare([Turn(QUESTION, (clip,))], Settings())))
    for one, next_one in zip(answers, answers[1:], strict=False):
        assert next_one.text.startswith(one.text) and one.ended is None
    pipe = pipeline("video-text-to-text", engine.model, processor=nano_processor)
    expected = pipe(clip.path, text=QUESTION, generate_kwargs={"do_sample": False})[0]["generated_text"].strip()
    last = answers[-1]
    assert last.text == expected and last.ended == "end"
    assert last.tokens_out == len(nano_processor.tokenizer(expected, add_special_tokens=False).input_ids) + 1  # EOS
    assert 0 < last.first_token_seconds < last.seconds and last.tokens_per_second > 0


def test_turns_videos_and_images_in_one_conversation(engine, clip, picture, nano_processor):
    first = ask(engine, Turn(QUESTION, (clip,)))
    turns = [Turn(QUESTION, (clip,), (first,)), Turn("What colour is the cross?", (picture,))]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "video", "path": clip.path}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": first.text}]},
        {
            "role": "user",
            "content": [{"type": "image", "path": picture.path}, {"type": "text", "text": turns[1].question}],
        },
    ]
    expected = generate(engine.model, nano_processor, messages)
    assert ask(engine, *turns, settings=Settings(system="Be brief.")).text == expected


def other_model(pooling, num_frames=None):
    """nano, and its processor, with another pooling."""
    model, processor = load_model(NANO, check=False), AutoProcessor.from_pretrained(NANO)
    set_pooling(model, processor, choose_pooling(model.config, pooling, num_frames))
    return model, processor


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        (FEWER, 8 * 2 * 3),
        (Settings(pooling="slowfast"), 4 * 3 * 6 + 16),
        (Settings(pooling="slowfast", num_frames=8), 2 * 3 * 6 + 8),
        (Settings(pooling="merge"), 8 * 3 * 3),
    ],
)
def test_pooling_changes_one_question_and_no_other(engine, clip, settings, tokens):
    before = ask(engine, Turn(QUESTION, (clip,)))
    answer = ask(engine, Turn(QUESTION, (clip,)), settings=settings)
    content = [{"type": "video", "path": clip.path}, {"type": "text", "text": QUESTION}]
    expected = generate(*other_model(settings.pooling, settings.num_frames), [{"role": "user", "content": content}])
    assert answer.text == expected != before.text
    assert answer.tokens_in == before.tokens_in - 16 * 3 * 3 + tokens
    assert {str(each.video_pooling) for each in (engine.model.config, engine.processor)} == {"average-16x3x3"}
    assert ask(engine, Turn(QUESTION, (clip,))).text == before.text


def test_images_that_are_read_in_full_keep_their_tokens(clip, picture, gate):
    """The pooling is for videos then; without it, images are pooled alike."""
    model, processor = other_model("average-8x2x3")
    model.config.image_pooling_shape = processor.image_pooling_shape = [1, 6, 6]
    own, own_processor = load_model(NANO, check=False), AutoProcessor.from_pretrained(NANO)
    own.config.image_pooling_shape = own_processor.image_pooling_shape = [1, 6, 6]
    engine, turn = Engine(own, own_processor, gate), Turn(QUESTION, (clip, picture))
    prepared = engine.prepare([turn], FEWER)
    assert "<video> x 48<image> x 36" in "".join(prepared.prompt.split("\n"))
    content = [{"type": "video", "path": clip.path}, {"type": "image", "path": picture.path}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]
    assert ask(engine, turn, settings=FEWER).text == generate(model, processor, messages)


def test_more_tokens_than_the_context_has_scale_rope_for_one_question(engine, clip):
    """576 tokens of a video leave no room for 512 of text in a context of 1024."""
    finest, rope = Settings(pooling="average-16x6x6"), dict(engine.model.config.text_config.rope_parameters)
    before = ask(engine, Turn(QUESTION, (clip,))).text
    content = [{"type": "video", "path": clip.path}] * 2
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]
    answer = ask(engine, Turn(QUESTION, (clip, clip)), settings=finest)
    assert answer.tokens_in > 2 * 576 and answer.text == generate(*other_model("average-16x6x6"), messages)
    assert engine.model.config.text_config.rope_parameters == rope
    assert ask(engine, Turn(QUESTION, (clip,))).text == before
    with pytest.raises(ValueError, match="the model takes 2,048 in all"):
        engine.prepare([Turn(QUESTION, (clip,) * 4)], finest)


def test_two_alphas_are_two_models(adapter, clip, nano_processor, gate):
    engine = Engine(load_model(NANO, adapter), nano_processor, gate)
    prepared = engine.prepare([Turn(QUESTION, (clip,))], Settings())
    for alpha in (16.0, 0.5, 0.0, 16.0):
        *_, answer = engine.answer(prepared, alpha)
        assert answer.alpha == alpha
        separate = Engine(load_model(NANO, adapter, alpha=alpha, check=False), nano_processor, gate)
        assert answer.text == ask(separate, Turn(QUESTION, (clip,))).text
    assert answer.text != ask(engine, Turn(QUESTION, (clip,)), alpha=0.5).text
    assert ask(engine, Turn(QUESTION, (clip,))).alpha == 8.0  # as it was loaded


def test_questions_at_the_same_time_do_not_disturb_each_other(adapter, clip, nano_processor, gate):
    engine = Engine(load_model(NANO, adapter), nano_processor, gate)
    asked = [(alpha, settings) for alpha in (0.0, 16.0, 20.0) for settings in (Settings(), FEWER)]

    def answer(pair):
        return ask(engine, Turn(QUESTION, (clip,)), settings=pair[1], alpha=pair[0]).text

    alone = [answer(pair) for pair in asked]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(answer, asked * 3)) == alone * 3
    assert len(set(alone)) > 3


@pytest.fixture
def slow_engine(nano_processor, gate):
    """An engine that takes 0.05 s for a token, and does not end its answers."""
    model = load_model(NANO)
    model.generation_config.eos_token_id = None
    model.lm_head.register_forward_hook(lambda *_: time.sleep(0.05))
    return Engine(model, nano_processor, gate)


def test_stop_stops_the_model(slow_engine, clip, tmp_path):
    stop = tmp_path / "stop"
    answers = []
    for answer in slow_engine.answer(slow_engine.prepare([Turn(QUESTION, (clip,))], Settings()), stop=stop):
        answers.append(answer)
        stop.touch()
    assert answers[-1].ended == "stopped" and answers[-1].text
    assert answers[-1].tokens_out <= answers[0].tokens_out + 2
    assert ask(slow_engine, Turn(QUESTION, (clip,)), settings=Settings(max_new_tokens=3)).ended == "length"


def test_model_stops_when_nobody_reads_the_answer(slow_engine, clip):
    answers = slow_engine.answer(slow_engine.prepare([Turn(QUESTION, (clip,))], Settings()))
    next(answers)
    answers.close()
    time.sleep(0.3)
    assert slow_engine._lock.acquire(blocking=False)
    slow_engine._lock.release()


def test_error_of_the_model_reaches_the_caller_and_the_next_question_works(engine, clip, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    threads = threading.active_count()
    with monkeypatch.context() as patched:
        patched.setattr(engine.model, "generate", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            ask(engine, Turn(QUESTION, (clip,)))
    assert ask(engine, Turn(QUESTION, (clip,))).text
    assert threading.active_count() <= threads


def test_temperature_samples(engine, clip):
    torch.manual_seed(0)
    hot = {ask(engine, Turn(QUESTION, (clip,)), settings=Settings(temperature=2.0)).text for _ in range(3)}
    assert len(hot) > 1


# --- what the model saw ---


def test_shown_frames_are_the_models_own_with_their_times(engine, folder, nano_processor):
    path = write_video(folder / "wide.mp4", moving_frames(40, 60, 96), fps=10)
    medium = Medium(str(path), "video", path.name, start=1.0, end=3.0)
    (seen,) = engine.prepare([Turn(QUESTION, (medium,))], Settings(num_frames=8)).seen
    clip = {"path": str(path), "start": 1.0, "end": 3.0}
    processed = nano_processor.video_processor(
        clip, num_frames=8, do_rescale=False, do_normalize=False, return_tensors="pt", return_metadata=True
    )
    expected = processed["pixel_values_videos"][0].permute(0, 2, 3, 1).numpy()
    assert seen.frames.dtype == np.uint8 and np.array_equal(seen.frames, expected)
    assert np.allclose(seen.times, np.divide(processed["video_metadata"][0].frames_indices, 10))
    assert 1.0 <= seen.times[0] and seen.times[-1] <= 3.0
    assert seen.label == "wide.mp4, 1 s to 3 s"


def test_prompt_shortens_placeholders_but_not_the_same_words_of_a_user(engine, clip, picture):
    turns = [Turn("Is this <video> or </s>?", (clip,), (Answer("yes"),)), Turn("And this?", (picture,))]
    prompt = engine.prepare(turns, Settings()).prompt
    assert prompt == (
        "USER:<video> x 144 Is this <video> or </s>? ASSISTANT:yes</s>USER:<image> x 144 And this? ASSISTANT:"
    )


def test_bounds_belong_to_the_newest_video(clip, picture):
    turns = [Turn("a", (clip, clip)), Turn("b", (picture,))]
    cut = cut_newest_video(turns, 1.0, None)
    assert [medium.start for turn in cut for medium in turn.media] == [None, 1.0, None]
    assert cut_newest_video(cut, None, None) == turns


# --- what is refused ---


@pytest.mark.parametrize(
    ("pooling", "reason"),
    [
        ("average-17x3x3", r"does not fit: it may have 1 to 16 frames \(.*\), and 1 to 6 rows and columns"),
        ("slowfast-4x3x7+16x1x1", r"does not fit: it may have 1 to 16 frames \(.*\), and 1 to 6 rows and columns"),
        ("average-16x3x0", "three positive integers"),
        ("maximum", "there are average, slowfast, merge"),
    ],
)
def test_pooling_that_the_model_cannot_have_is_refused(engine, clip, pooling, reason):
    with pytest.raises(ValueError, match=reason):
        engine.prepare([Turn(QUESTION, (clip,))], Settings(pooling=pooling))


def test_fewer_frames_than_the_models_own_pooling_has(engine, clip):
    """The page shows the model's own pooling in its field, which then stays as it is."""
    own = engine.prepare([Turn(QUESTION, (clip,))], Settings(num_frames=8, pooling="average-16x3x3")).inputs
    unsaid = engine.prepare([Turn(QUESTION, (clip,))], Settings(num_frames=8)).inputs
    assert own["pixel_values_videos"].shape[1] == 8 and torch.equal(own["input_ids"], unsaid["input_ids"])


def test_more_frames_allow_more_pooled_frames(engine, clip):
    settings = Settings(num_frames=20, pooling="average-20x3x3")
    assert engine.prepare([Turn(QUESTION, (clip,))], settings).inputs["pixel_values_videos"].shape[1] == 20


def test_conversation_longer_than_the_models_context_is_refused(engine, clip):
    with pytest.raises(ValueError, match="the model takes 1,024 in all: clear the conversation"):
        engine.prepare([Turn(QUESTION, (clip,) * 6)], Settings())


def test_alpha_without_an_adapter_is_refused(engine, clip):
    with pytest.raises(ValueError, match="this model has none"):
        ask(engine, Turn(QUESTION, (clip,)), alpha=4.0)


def test_refused_files_are_called_by_their_names(engine, folder, tmp_path):
    broken, outside = folder / "broken.mp4", tmp_path / "outside.mp4"
    broken.write_bytes(b"no video")
    outside.write_bytes(b"no video")
    for path in (broken, outside):
        with pytest.raises(MediaRefused, match=path.name) as caught:
            engine.prepare([Turn(QUESTION, (Medium(str(path), "video", path.name),))], Settings())
        assert str(path.parent) not in str(caught.value)


def test_generation_can_run_where_a_decorator_says(gate, nano_processor, clip):
    calls = []

    def lend_gpu(function):
        def wrapped(*args):
            calls.append(args)
            yield from function(*args)

        return wrapped

    engine = Engine(load_model(pllava.NANO), nano_processor, gate, on_gpu=lend_gpu)
    assert ask(engine, Turn(QUESTION, (clip,))).text and len(calls) == 1
