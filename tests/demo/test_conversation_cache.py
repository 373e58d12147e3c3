"""Later questions of a conversation: the same answers as without a cache, and each medium is encoded once."""

from dataclasses import replace

import pytest
import torch
from families import make_config
from model_inputs import assistant, user
from PIL import Image
from transformers import MistralConfig

import pllava
from pllava import NANO, load_model
from pllava.adapters import plain_model, set_alpha
from pllava.conversation_cache import ConversationCache
from pllava.demo.conversation import Settings, Turn
from pllava.demo.engine import Engine
from pllava.model_pooling import choose_pooling, pooled

DESCRIBE, WHERE, COUNT = "Describe the video.", "Where is the circle?", "How many shapes are there in all?"


class Talk:
    """Asks a model with a cache, and compares each answer with the model's own."""

    def __init__(self, model, processor, **bounds):
        self.model, self.processor = plain_model(model), processor
        self.conversations = ConversationCache(self.model, **bounds)
        self.encoded = self.computed = 0  # frames in the tower, tokens in the text model
        self.model.model.vision_tower.register_forward_hook(self._count_frames)
        self.model.model.language_model.register_forward_pre_hook(self._count_tokens, with_kwargs=True)

    def _count_frames(self, tower, inputs, output):
        self.encoded += len(output[0])

    def _count_tokens(self, text_model, inputs, kwargs):
        self.computed += kwargs["inputs_embeds"].shape[1]

    def ask(self, *messages, max_new_tokens=40, **options):
        """Return the answer, how many frames were encoded, and how many of the prompt's tokens were not computed."""
        inputs = self.processor.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        expected, length = self.model.generate(**inputs, **options), inputs["input_ids"].shape[1]
        self.encoded = self.computed = 0
        conversation = self.conversations.resume(inputs)
        output = conversation.generate(**options)
        assert torch.equal(output, expected)
        if options.get("num_beams", 1) == 1:
            assert self.computed == output.shape[1] - 1 - conversation.cached_tokens
        answer = self.processor.decode(output[0, length:], skip_special_tokens=True)
        return answer, self.encoded, conversation.cached_tokens


@pytest.fixture
def talk(nano_processor):
    return Talk(load_model(NANO, check=False), nano_processor)


@pytest.fixture
def video(clip):
    return {"type": "video", "path": clip.path}


@pytest.fixture
def image(picture):
    return {"type": "image", "image": Image.open(picture.path).convert("RGB")}


def test_a_video_is_encoded_once_a_conversation(talk, video):
    messages, seen = [user(DESCRIBE, video)], 0
    for question in (WHERE, COUNT, DESCRIBE, WHERE):
        answer, frames, cached = talk.ask(*messages)
        assert frames == (0 if seen else 16) and cached >= seen
        seen = len(talk.conversations._kept[-1].keys) - 1
        messages += [assistant(answer), user(question)]
    assert len(talk.conversations._kept) == 1


def test_the_same_question_again(talk, video):
    *_, cached = talk.ask(user(DESCRIBE, video))
    assert cached == 0
    answer, frames, again = talk.ask(user(DESCRIBE, video))
    assert frames == 0 and again > 144 and answer
    assert len(talk.conversations._kept) == 1


def test_text_that_is_edited_before_and_behind_the_video(talk, video):
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    first, *_ = talk.ask(system, user(DESCRIBE, video))
    *_, frames, cached = talk.ask(system, user(DESCRIBE, video), assistant("It moves."), user(WHERE))
    assert frames == 0 and cached > 144
    *_, frames, cached = talk.ask(system, user(COUNT, video), assistant(first), user(WHERE))
    assert frames == 0 and cached > 144
    system["content"][0]["text"] = "Be long."
    *_, frames, cached = talk.ask(system, user(DESCRIBE, video))
    assert frames == 16 and cached < 144
    assert len(talk.conversations._kept) == 2


def test_other_pixels_behind_the_same_tokens(talk, video):
    talk.ask(user(DESCRIBE, video))
    *_, frames, cached = talk.ask(user(DESCRIBE, {**video, "end": 2.0}))
    assert frames == 16 and cached < 20
    *_, frames, _ = talk.ask(user(DESCRIBE, video), assistant("It moves."), user(WHERE))
    assert frames == 0


def test_media_of_later_turns(talk, video, image):
    """Only the new ones are encoded, whatever the order of images and videos."""
    part = {**video, "end": 2.0}
    messages = [user(DESCRIBE, image, video)]
    for media, frames in zip([(image,), (part, video), (), ()], [17, 1, 32, 0], strict=True):
        answer, encoded, _ = talk.ask(*messages)
        assert encoded == frames
        messages += [assistant(answer), user(WHERE, *media)]


def test_a_second_video_that_differs_keeps_the_first(talk, video):
    part = {**video, "end": 2.0}
    talk.ask(user(COUNT, video, video))
    *_, frames, cached = talk.ask(user(COUNT, video, part))
    assert frames == 16 and 144 <= cached < 288
    *_, frames, cached = talk.ask(user(COUNT, part, video))
    assert frames == 32 and cached < 20


def test_prompts_without_media(talk):
    talk.ask(user("Hello"))
    *_, frames, cached = talk.ask(user("Hello you"))
    assert frames == 0 and cached > 0


def test_an_interrupted_answer_leaves_its_prompt(talk, video):
    """The client has left: generation ends with an exception, between two tokens or within one."""

    class Interrupted(Exception):
        pass

    def leave(*_):
        nonlocal left
        left -= 1
        if left < 0:
            raise Interrupted

    layers = talk.model.model.language_model.layers
    for layer in (layers[0], layers[-1], talk.model.lm_head):
        for left in (0, 1, 5):
            talk.conversations.clear()
            inputs = talk.processor.apply_chat_template(
                [user(DESCRIBE, video)],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            in_prefill, hook = left == 0 and layer is not talk.model.lm_head, layer.register_forward_pre_hook(leave)
            with pytest.raises(Interrupted):
                talk.conversations.resume(inputs).generate(do_sample=False, max_new_tokens=20)
            hook.remove()
            *_, frames, cached = talk.ask(user(DESCRIBE, video))
            assert (frames, cached) == ((16, 0) if in_prefill else (0, inputs["input_ids"].shape[1] - 1))


def test_what_is_kept_has_bounds(nano_processor, video):
    talk = Talk(load_model(NANO, check=False), nano_processor, max_conversations=2)
    parts = [{**video, "end": end} for end in (1.0, 2.0, 3.0)]
    for part in parts:
        talk.ask(user(DESCRIBE, part))
    assert [talk.ask(user(WHERE, part))[1] for part in reversed(parts)] == [0, 0, 16]
    size = talk.conversations._kept[0].num_bytes
    text = talk.model.config.text_config
    per_token = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    assert size == per_token * len(talk.conversations._kept[0].keys)
    small = Talk(talk.model, nano_processor, max_bytes=size // 2)
    small.ask(user(DESCRIBE, video))
    assert small.ask(user(DESCRIBE, video))[1:] == (16, 0)


def test_without_memory_for_an_answer_nothing_is_kept(talk, video):
    talk.ask(user(DESCRIBE, video))
    assert talk.conversations._kept

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 19.00 GiB.")

    hook = talk.model.lm_head.register_forward_pre_hook(fail)
    inputs = talk.processor(text="Hello", return_tensors="pt")
    with pytest.raises(torch.OutOfMemoryError):
        talk.conversations.resume(inputs).generate(max_new_tokens=2)
    hook.remove()
    assert not talk.conversations._kept
    assert talk.ask(user(DESCRIBE, video))[1] == 16


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}]
)
def test_options_that_take_no_cache_compute_all(talk, video, options):
    talk.ask(user(DESCRIBE, video))
    inputs = talk.processor.apply_chat_template(
        [user(DESCRIBE, video)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    settings = {"do_sample": False, "max_new_tokens": 20, **options}
    expected, conversation = talk.model.generate(**inputs, **settings), talk.conversations.resume(inputs)
    assert torch.equal(conversation.generate(**settings), expected) and conversation.cached_tokens == 0


def test_sliding_windows_are_computed_in_full(family, processor, clip):
    """Their layers drop old keys, so that they cannot be cut."""
    torch.manual_seed(0)
    config = make_config(replace(family, text=MistralConfig), processor, text={"sliding_window": 7})
    talk = Talk(pllava.PllavaForConditionalGeneration(config).eval(), processor)
    video = {"type": "video", "path": clip.path}
    answer, frames, cached = talk.ask(user(DESCRIBE, video))
    assert (frames, cached) == (4, 0)
    assert talk.ask(user(DESCRIBE, video), assistant(answer), user(WHERE))[1:] == (4, 0)


def test_alpha_and_pooling_are_part_of_a_conversation(adapter, nano_processor, video):
    model = load_model(NANO, adapter)
    talk = Talk(model, nano_processor)
    answers = set()
    for alpha, frames in ((16.0, 16), (0.0, 16), (30.0, 16), (16.0, 0), (0.0, 0)):
        set_alpha(model, alpha)
        answer, encoded, _ = talk.ask(user(DESCRIBE, video))
        answers.add(answer)
        assert encoded == frames
    assert len(answers) == 3
    same_size = choose_pooling(talk.model.config, "average-9x4x4")  # also 144 tokens
    with pooled(model, same_size):
        assert talk.ask(user(DESCRIBE, video))[1:] == (16, 0)
    assert talk.ask(user(DESCRIBE, video))[1] == 0


# --- in the chat ---


def count_frames(engine):
    frames = []
    engine.model.model.vision_tower.register_forward_hook(lambda tower, inputs, output: frames.append(len(output[0])))
    return frames


def ask(engine, turns, **options):
    settings = options.pop("settings", Settings())
    *_, answer = engine.answer(engine.prepare(turns, settings), **options)
    return answer


def test_engine_encodes_a_clip_once(gate, nano_processor, clip, picture, tmp_path):
    engine = Engine(load_model(NANO, check=False), nano_processor, gate)
    frames = count_frames(engine)

    def fresh(turns):
        return ask(Engine(load_model(NANO, check=False), nano_processor, gate), turns).text

    turns = []
    for question, media in ((DESCRIBE, (clip,)), (WHERE, ()), (COUNT, (picture,)), (WHERE, ())):
        turns.append(Turn(question, media))
        answer = ask(engine, turns)
        assert answer.text == fresh(turns)
        turns[-1] = Turn(question, media, (answer,))
    assert frames == [16, 1]
    stop = tmp_path / "stop"
    stop.touch()
    turns.append(Turn(DESCRIBE))
    stopped = ask(engine, turns, stop=stop)
    assert stopped.ended == "stopped"
    turns[-1] = Turn(DESCRIBE, (), (stopped,))
    turns.append(Turn(WHERE))
    assert ask(engine, turns).text == fresh(turns)
    assert frames == [16, 1]
    ask(engine, turns, settings=Settings(pooling="average-8x3x3"))
    assert sum(frames) == 16 + 1 + 17
