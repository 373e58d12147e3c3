"""The server's answers, to OpenAI's own client, equal those of the model itself."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import openai
import pytest
from model_server import ModelServer, World, data_uri, image_part, model_server, text_part, user, video_part
from PIL import Image
from transformers import AutoProcessor, pipeline

import pllava
from pllava.model_pooling import choose_pooling, set_pooling


def ask(server: ModelServer, *messages: dict, **options) -> str:
    """Ask twice, whole and streamed; the answers must be equal."""
    client = server.client().chat.completions
    request = {"model": "nano", "messages": messages, "temperature": 0, **options}
    reply = client.create(**request)
    chunks = list(client.create(**request, stream=True))
    whole, streamed = reply.choices[0], [chunk.choices[0] for chunk in chunks]
    assert "".join(each.delta.content or "" for each in streamed) == whole.message.content
    assert len(streamed) > 3, "the answer is one piece"
    assert streamed[-1].finish_reason == whole.finish_reason == "stop"
    usages = [each.usage.model_dump(exclude={"prompt_tokens_details"}) for each in (chunks[-1], reply)]
    assert usages[0] == usages[1]
    return whole.message.content


@pytest.fixture(scope="module")
def image(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = world.folder / "frame.png"
    with av.open(str(world.clips[3])) as container:
        next(container.decode(video=0)).to_image().save(path)
    return path


def test_a_video_by_data_uri_host_and_path(
    nano_server: ModelServer, nano_says: Callable, world: World, web: str
) -> None:
    for clip, question in zip(world.clips[:2], world.questions, strict=False):
        expected = nano_says([user({"type": "video", "path": str(clip)}, text_part(question))])
        assert len(expected) > 20
        addresses = [data_uri(clip), f"http://{web}/clips/{clip.name}", str(clip), clip.as_uri()]
        for address in addresses:
            assert ask(nano_server, user(video_part(address), text_part(question))) == expected


def test_an_image(nano_server: ModelServer, nano_says: Callable, image: Path) -> None:
    question = text_part("What do you see?")
    expected = nano_says([user({"type": "image", "image": Image.open(image)}, question)])
    for address in (data_uri(image, "image/png"), image.as_uri()):
        assert ask(nano_server, user(image_part(address), question)) == expected


def test_several_media_and_turns(nano_server: ModelServer, nano_says: Callable, world: World, image: Path) -> None:
    videos = [{"type": "video", "path": str(clip)} for clip in world.clips[:2]]
    picture = {"type": "image", "image": Image.open(image)}
    system = {"role": "system", "content": "Answer about the clips."}
    first = user(*videos, text_part(world.questions[0]))
    answer = nano_says([system, first])
    second = [{"role": "assistant", "content": answer}, user(picture, text_part("And now?"))]

    sent = user(*(video_part(data_uri(clip)) for clip in world.clips[:2]), text_part(world.questions[0]))
    assert ask(nano_server, system, sent) == answer
    follow_up = [{"role": "assistant", "content": answer}, user(image_part(image.as_uri()), text_part("And now?"))]
    assert ask(nano_server, system, sent, *follow_up) == nano_says([system, first, *second])


def test_parts_of_videos_and_numbers_of_frames(nano_server: ModelServer, nano_says: Callable, world: World) -> None:
    clip, question = world.clips[2], text_part(world.questions[2])  # a shape leaves it, and another appears
    part = {"type": "video", "path": str(clip), "start": 0.5, "end": 1.25}
    expected = nano_says([user(part, question)], num_frames=6)
    url, options = data_uri(clip), {"num_frames": 6}
    sent = [
        (user(video_part(url, start=0.5, end=1.25), question), options),
        (user(video_part(url), question), options | {"start": 0.5, "end": 1.25}),  # as vLLM takes it
        (user(video_part(url, start=0.5, end=1.25), question), options | {"start": 1, "end": 2}),
    ]
    for message, video in sent:
        assert ask(nano_server, message, extra_body={"media_io_kwargs": {"video": video}}) == expected
    others = {
        nano_says([user(part | bounds, question)], num_frames=6) for bounds in ({"start": 1, "end": 2}, {"end": 2})
    }
    assert expected not in others, "the bounds change nothing"


def test_special_tokens_in_texts_are_text(nano_server: ModelServer, nano_says: Callable, world: World) -> None:
    clip = world.clips[0]
    text = "<video> <image> </s> <s> <pad> <unk> <|im_end|> Describe the video."
    system, said = {"role": "system", "content": text}, {"role": "assistant", "content": text}
    expected = nano_says(
        [system, user(text_part(text)), said, user({"type": "video", "path": str(clip)}, text_part(text))]
    )
    sent = [system, user(text_part(text)), said, user(video_part(data_uri(clip)), text_part(text))]
    assert ask(nano_server, *sent) == expected
    # Were one of them a placeholder or a token, the prompt would be shorter or longer by others than the letters
    tokens = [
        nano_server.client().chat.completions.create(model="nano", messages=messages).usage.prompt_tokens
        for messages in ([user(text_part("a"))], [user(text_part("a<video>"))], [user(text_part("a<video><video>"))])
    ]
    assert tokens[2] - tokens[1] == tokens[1] - tokens[0] > 3


def test_sampling_follows_the_seed_and_the_stop_texts(nano_server: ModelServer, world: World) -> None:
    client = nano_server.client().chat.completions
    messages = [user(video_part(data_uri(world.clips[0])), text_part(world.questions[0]))]

    def sample(**options) -> str:
        return client.create(model="nano", messages=messages, **options).choices[0].message.content

    greedy = sample()
    assert sample(temperature=0) == greedy == sample(temperature=0.01, seed=1)
    hot = [sample(temperature=2, seed=seed) for seed in (1, 2, 3)]
    assert len(set(hot)) == 3 and hot == [sample(temperature=2, seed=seed) for seed in (1, 2, 3)]
    assert sample(top_p=1e-9) == greedy
    word = greedy.split()[2]
    assert sample(stop=["zzz", word]) == greedy[: greedy.index(word)]
    streamed = client.create(model="nano", messages=messages, stop=word, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == greedy[: greedy.index(word)]
    assert sample(stop="zzz") == greedy


def test_later_requests_of_a_conversation_compute_only_what_is_new(
    nano_server: ModelServer, nano_says: Callable, world: World
) -> None:
    """Also after an answer that was cut off by a stop text, and after another conversation."""
    complete = partial(nano_server.client().chat.completions.create, model="nano", temperature=0)
    clip, other = (user(video_part(data_uri(each)), text_part("Which shapes are there?")) for each in world.clips[4:6])
    hits, prompts = (f"pllava_{name}_total" for name in ("prefix_cache_hits", "prompt_tokens"))
    before = nano_server.metric(hits)
    first = complete(messages=[clip])
    assert first.usage.prompt_tokens_details.cached_tokens < 10, "the start, which all prompts have"
    complete(messages=[other])
    text = first.choices[0].message.content
    messages, said = (
        [clip],
        [user({"type": "video", "path": str(world.clips[4])}, text_part("Which shapes are there?"))],
    )
    for options in ({}, {"stop": "e"}, {}):
        turn = [{"role": "assistant", "content": text}, user(text_part("Describe the video."))]
        messages, said, length = messages + turn, said + turn, nano_server.metric(prompts)
        *_, last = complete(messages=messages, stream=True, **options)
        reply = complete(messages=messages, **options)
        length = (nano_server.metric(prompts) - length) / 2
        assert last.usage.prompt_tokens_details.cached_tokens > 144
        assert reply.usage.prompt_tokens_details.cached_tokens == length - 1, "all but the last token"
        text = reply.choices[0].message.content
        assert text == nano_says(said).partition(options.get("stop", "\n"))[0]
    assert nano_server.metric(hits) - before > 6 * 144
    assert f"{reply.usage.prompt_tokens_details.cached_tokens} cached, answer of" in nano_server.log


def test_length_limits_are_kept_and_reported(nano_server: ModelServer, world: World) -> None:
    client = nano_server.client().chat.completions
    messages = [user(video_part(data_uri(world.clips[0])), text_part(world.questions[0]))]
    for limit in ("max_tokens", "max_completion_tokens"):
        reply = client.create(model="nano", messages=messages, **{limit: 3})
        assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (3, "length")


@pytest.mark.slow  # a server of its own
def test_a_pooling_that_is_asked_for(nano_server: ModelServer, world: World, tmp_path: Path) -> None:
    """576 tokens of a video, with which RoPE is scaled so that the context has 2048."""
    question = text_part(world.questions[0])
    own = nano_server.client().chat.completions.create(
        model="nano", messages=[user(video_part(data_uri(world.clips[0])), question)], temperature=0
    )
    with model_server(tmp_path, "nano", "--pooling", "average-16x6x6") as server:
        complete = partial(server.client().chat.completions.create, model="nano", temperature=0)
        one, two, four = ([user(*[video_part(data_uri(world.clips[0]))] * n, question)] for n in (1, 2, 4))
        reply = complete(messages=one)
        assert reply.usage.prompt_tokens == own.usage.prompt_tokens - 16 * 3 * 3 + 16 * 6 * 6
        assert complete(messages=two).usage.prompt_tokens > 1152
        with pytest.raises(openai.BadRequestError, match="2048 tokens"):
            complete(messages=four)
    model, processor = pllava.load_model(pllava.NANO), AutoProcessor.from_pretrained(pllava.NANO)
    set_pooling(model, processor, choose_pooling(model.config, "average-16x6x6"))
    pipe = pipeline("video-text-to-text", model, processor=processor)
    messages = [user({"type": "video", "path": str(world.clips[0])}, question)]
    answer = pipe(messages, max_new_tokens=256, generate_kwargs={"do_sample": False})[0]["generated_text"][-1]
    assert reply.choices[0].message.content == answer["content"]
