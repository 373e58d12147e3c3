"""Requests that cannot be answered as they ask get a 4xx with one sentence, and the server goes on."""

import copy
import json
import random
from typing import Any

import pytest
from model_server import ModelServer, World, data_uri, image_part, text_part, user, video_part

GOOD = {"model": "nano", "messages": [{"role": "user", "content": "What moves?"}], "max_tokens": 4}
MUTATIONS = 500


def refused(server: ModelServer, body: Any, status: int = 400, **options) -> dict:
    """Post a bad request, and return its error: in OpenAI's format, with one sentence."""
    reply = server.post(body, **options)
    assert reply.status_code == status, (reply.status_code, reply.text, body)
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    message = error["message"]
    assert message.endswith(".") and "\n" not in message and len(message) < 400 and "Traceback" not in message
    return error


def part(**value: Any) -> dict:
    return {"messages": [user(value)]}


def image(**value: Any) -> dict:
    return part(type="image_url", image_url={"url": "data:,", **value})


def video(**value: Any) -> dict:
    return part(type="video_url", video_url={"url": "data:,", **value})


def frames(number: Any) -> dict:
    return {"media_io_kwargs": {"video": {"num_frames": number}}}


PART, FRAMES = "messages[0].content[0]", "media_io_kwargs.video.num_frames"


BAD = {
    "messages missing": ({"messages": None}, "messages", "missing"),
    "no messages": ({"messages": []}, "messages", "at least 1"),
    "messages a string": ({"messages": "hello"}, "messages", "array"),
    "a message a string": ({"messages": ["hello"]}, "messages[0]", "object"),
    "an unknown role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user'"),
    "a role that is a number": ({"messages": [{"role": 3, "content": "x"}]}, "messages[0].role", "'user'"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
    "no content": ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "missing"),
    "empty content": ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "at least 1"),
    "content a number": ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "array"),
    "a name": ({"messages": [{"role": "user", "content": "x", "name": "Al"}]}, "messages[0].name", "does not support"),
    "the last message is the assistant's": (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        None,
        "last message",
    ),
    "the assistant shows an image": (
        {"messages": [{"role": "assistant", "content": [image_part("data:,")]}, {"role": "user", "content": "x"}]},
        "messages[0]",
        "only messages of the user",
    ),
    "an unknown part": (part(type="input_audio", input_audio={}), PART, "unknown"),
    "a part of transformers": (part(type="video", url="http://127.0.0.1/x"), PART, "unknown"),
    "a part without a type": (part(text="x"), PART, "`type`"),
    "text a number": (part(type="text", text=3), f"{PART}.text", "string"),
    "text a list": (part(type="text", text=["x"]), f"{PART}.text", "string"),
    "an image_url that is a string": (part(type="image_url", image_url="data:,"), f"{PART}.image_url", "object"),
    "a url that is a number": (video(url=1), f"{PART}.video_url.url", "string"),
    "no url": (part(type="video_url", video_url={}), f"{PART}.video_url.url", "missing"),
    "an unknown key of a video": (video(fps=1), f"{PART}.video_url.fps", "does not support"),
    "a negative start": (video(start=-1), f"{PART}.video_url.start", "greater"),
    "an end before the start": (video(start=2, end=1), f"{PART}.video_url", "after"),
    "a start that is a string": (video(start="1"), f"{PART}.video_url.start", "number"),
    "an image of high detail": (image(detail="high"), f"{PART}.image_url.detail", "'auto'"),
    "no frames": (frames(0), FRAMES, "greater"),
    "a million frames": (frames(10**6), FRAMES, "less"),
    "half a frame": (frames(0.5), FRAMES, "integer"),
    "frames of true": (frames(True), FRAMES, "integer"),
    "other media options": ({"media_io_kwargs": {"audio": {}}}, "media_io_kwargs.audio", "does not support"),
    "too many frames together": (
        {"messages": [user(*[video_part("data:,")] * 2)], **frames(300)},
        FRAMES,
        "512 frames",
    ),
    "too many media": ({"messages": [user(*[image_part("data:,")] * 17)]}, None, "16 videos and images"),
    "a negative temperature": ({"temperature": -1}, "temperature", "greater"),
    "a temperature next to zero": ({"temperature": 1e-9}, "temperature", "0.01"),
    "a temperature of 3": ({"temperature": 3}, "temperature", "less"),
    "a temperature that is a string": ({"temperature": "hot"}, "temperature", "number"),
    "a negative top_p": ({"top_p": -0.1}, "top_p", "greater"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "greater"),
    "negative tokens": ({"max_tokens": -5}, "max_tokens", "greater"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens", "integer"),
    "more tokens than the context": ({"max_tokens": 5000}, "messages", "context has 1024"),
    "two limits": ({"max_completion_tokens": 3}, None, "max_completion_tokens"),
    "a seed that is a string": ({"seed": "one"}, "seed", "integer"),
    "a seed of 100 bits": ({"seed": 2**100}, "seed", "less"),
    "two answers": ({"n": 2}, "n", "1"),
    "a stream of a string": ({"stream": "yes"}, "stream", "boolean"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, None, "stream"),
    "five stop texts": ({"stop": list("abcde")}, "stop", "at most 4"),
    "an empty stop text": ({"stop": ""}, "stop[0]", "at least 1"),
    "a penalty": ({"frequency_penalty": 0.5}, "frequency_penalty", "less"),
    "tools": ({"tools": []}, "tools", "does not support"),
    "a template": ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs", "does not support"),
    "a generation config": ({"generation_config": "{}"}, "generation_config", "does not support"),
    "an unknown field": ({"colour": "red"}, "colour", "does not support"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_field_is_named(nano_server: ModelServer, case: str) -> None:
    change, place, words = BAD[case]
    error = refused(nano_server, GOOD | change)
    assert error["param"] == place and words in error["message"], error
    assert place is None or place in error["message"] or error["code"] == "context_length_exceeded"


def test_a_body_that_is_not_json(nano_server: ModelServer) -> None:
    for body in (
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"[" * 10**5,
        b'{"model": NaN}',
        b'{"a": "\\ud800"}',
        b"null",
        b"1" * 5000,
    ):
        refused(nano_server, body)
    error = refused(nano_server, json.dumps(GOOD).encode(), 415, headers={"Content-Type": "text/plain"})
    assert "application/json" in error["message"]


def test_another_model_and_other_paths(nano_server: ModelServer) -> None:
    for name in ("gpt-5", "nano@main", "/etc", "../nano", ""):
        error = refused(nano_server, GOOD | {"model": name}, 404)
        assert error["code"] == "model_not_found" and "nano" in error["message"]
    for path in ("/load_model", "/reset", "/v1/responses", "/v1/completions", "/v1/audio/transcriptions", "/docs"):
        for reply in (nano_server.get(path), nano_server.post(GOOD, path=path)):
            assert reply.status_code == 404 and "/v1/chat/completions" in reply.json()["error"]["message"]
    assert nano_server.get("/v1/chat/completions").status_code == 405


def test_a_prompt_longer_than_the_context(nano_server: ModelServer, world: World) -> None:
    for text in ("word " * 2000, "word " * 10**6):
        error = refused(nano_server, GOOD | {"messages": [{"role": "user", "content": text}]})
        assert error["code"] == "context_length_exceeded" and "1024 tokens" in error["message"]
    videos = [video_part(data_uri(world.clips[0]))] * 8  # 144 tokens each
    assert refused(nano_server, GOOD | {"messages": [user(*videos)]})["code"] == "context_length_exceeded"


def test_null_counts_as_left_out(nano_server: ModelServer) -> None:
    names = (
        "stop",
        "seed",
        "tools",
        "user",
        "temperature",
        "response_format",
        "stream_options",
        "max_completion_tokens",
    )
    message = {"role": "user", "content": "What moves?", "refusal": None, "tool_calls": None}
    reply = nano_server.post(GOOD | dict.fromkeys(names) | {"messages": [message]})
    assert reply.status_code == 200, reply.text


def test_no_mutation_of_a_good_request_is_a_failure_of_the_server(nano_server: ModelServer, world: World) -> None:
    rng = random.Random(4)
    good = {
        "model": "nano",
        "messages": [
            {"role": "system", "content": "Be brief."},
            user(video_part(data_uri(world.clips[0]), start=0.2, end=1.2), text_part("What moves?")),
            {"role": "assistant", "content": "A circle."},
            user(image_part("data:image/png;base64,iVBORw0KGgo="), text_part("And now?")),
        ],
        "stream": False,
        "max_tokens": 4,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["x"],
        "media_io_kwargs": {"video": {"num_frames": 4}},
        "n": 1,
    }
    del good["messages"][3]["content"][0]  # without the broken image, it is answered
    assert nano_server.post(good).status_code == 200
    statuses: dict[int, int] = {}
    for _ in range(MUTATIONS):
        body = copy.deepcopy(good)
        for _ in range(rng.randint(1, 2)):
            _mutate(body, rng)
        reply = nano_server.post(json.dumps(body).encode("utf-8", "surrogatepass"))
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        assert reply.status_code < 500, (reply.text, body)
        if reply.status_code != 200:
            assert reply.json()["error"]["message"].count("\n") == 0
    print(f"\n{MUTATIONS} mutated requests: {statuses}")
    assert statuses[400] > MUTATIONS / 3 and statuses[200] > MUTATIONS / 20
    assert nano_server.post(good).status_code == 200


VALUES = [
    None, True, False, 0, 1, -1, 2**63, -(2**63), 1e308, -0.0, 1e-320, float("nan"), float("inf"), "", "x", "user",
    "text", "\x00", "\ud800", "\ufdd0", "💃" * 50, "<video>", "../../etc/passwd", "file:///etc/passwd", "data:,",
    "data:video/mp4;base64,AAAA", "http://127.0.0.1:1/x", [], [[]], [None], {}, {"": {}}, {"type": "video_url"},
    {"type": "text", "text": "x"}, "a" * 3000,
]  # fmt: skip


def _mutate(value: Any, rng: random.Random) -> None:
    """Replace, delete, double, add or rename something, anywhere in a JSON value."""
    places = list(_places(value))
    holder, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice(["type", "url", "role", "content", "stream", "tools", "video", key.upper()])] = holder[key]
    elif kind == 3:
        holder[key] = copy.deepcopy(rng.choice(places))[0]
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))


def _places(value: Any) -> Any:
    """Yield each list or dict inside a JSON value, with each of its indices or keys."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item)
