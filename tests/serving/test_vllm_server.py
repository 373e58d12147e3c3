"""
`vllm serve` itself, on the CPU, asked by the openai client and by `pllava eval` and `pllava caption`. Needs
`PLLAVA_VLLM_PYTHON`, a Python with vLLM and this package, as `make test-vllm` makes it.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
import torch
from PIL import Image
from ports import free_port
from transformers import AutoModelForImageTextToText, AutoProcessor
from video_files import moving_frames, write_video

from pllava import NANO
from pllava.nano.world.rendering import read_questions, render

PYTHON = os.environ.get("PLLAVA_VLLM_PYTHON")
TOKENS = 24
FLAGS = ["--trust-remote-code", "--model-impl", "transformers", "--dtype", "float32", "--enforce-eager"]
FLAGS += ["--max-model-len", "1024", "--served-model-name", "nano", "--trust-request-mm-kwargs"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="PLLAVA_VLLM_PYTHON is not set: `make test-vllm` runs these tests"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with clips of nano's world and their questions, a film and an image."""
    folder = tmp_path_factory.mktemp("served")
    render(folder, 12, seed=6)
    write_video(folder / "film.mp4", moving_frames(150, 90, 160), fps=25)
    Image.fromarray(moving_frames(1, 64, 96)[0]).save(folder / "image.png")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path):
    """The address of a server that may read `folder`; it must end when it is told to."""
    port, log = free_port(), folder / "server.log"
    command = [Path(PYTHON).with_name("vllm"), "serve", NANO, *FLAGS, "--host", "127.0.0.1", "--port", port]
    command += ["--allowed-local-media-path", folder]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment["VLLM_MEDIA_CONNECTOR"] = "pllava"  # the gate
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module")
def ask(url: str):
    """Return a function that asks the server and returns the answer and the length of the prompt."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=2)

    def ask_server(*parts: dict, history: tuple[dict, ...] = (), **extra) -> tuple[str, int]:
        messages = [*history, {"role": "user", "content": list(parts)}]
        completion = client.chat.completions.create(
            model="nano", messages=messages, temperature=0, max_tokens=TOKENS, extra_body=extra
        )
        return completion.choices[0].message.content, completion.usage.prompt_tokens

    ask_server.client = client
    return ask_server


@pytest.fixture(scope="module")
def own():
    """Return a function that asks transformers in this process, and returns the same."""
    model = AutoModelForImageTextToText.from_pretrained(NANO, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(NANO)

    def ask_transformers(*parts: dict, history: tuple[dict, ...] = (), **processor_kwargs) -> tuple[str, int]:
        inputs = processor.apply_chat_template(
            [*history, {"role": "user", "content": list(parts)}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=processor_kwargs,
        )
        size = inputs["input_ids"].shape[1]
        ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        return processor.decode(ids[0, size:], skip_special_tokens=True), size

    return ask_transformers


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def sent(file: Path) -> dict:
    """A file as a part of a request, as a data URI."""
    kind, mime = ("image_url", "image/png") if file.suffix == ".png" else ("video_url", "video/mp4")
    return {"type": kind, kind: {"url": f"data:{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"}}


def local(file: Path, **bounds: float) -> dict:
    """The same file as a part of a chat of transformers."""
    return {"type": "image" if file.suffix == ".png" else "video", "path": str(file), **bounds}


@pytest.mark.parametrize("name", ["film.mp4", "clips/00001.mp4", "image.png"])
def test_answers_equal_those_of_transformers(ask, own, folder, name):
    question = text("Describe the video.")
    assert ask(sent(folder / name), question) == own(local(folder / name), question)


def test_allowed_file_is_read_and_others_are_refused(ask, own, folder, tmp_path):
    question, film = text("What moves?"), folder / "film.mp4"

    def named(address: str) -> dict:
        return {"type": "video_url", "video_url": {"url": address}}

    assert ask(named(f"file://{film}"), question) == own(local(film), question)
    other = write_video(tmp_path / "other.mp4", moving_frames(4))
    (folder / "link.mp4").symlink_to(other)
    refused = [f"file://{other}", f"file://{folder}/../{other.parent.name}/other.mp4", f"file://{folder}/link.mp4"]
    refused += ["http://127.0.0.1/a.mp4", "http://[::1]/a.mp4", "http://2130706433/a.mp4", "ftp://example.org/a.mp4"]
    for address in refused:
        with pytest.raises(openai.BadRequestError, match="Cannot (read|fetch) "):
            ask(named(address), question)
        with pytest.raises(openai.BadRequestError):
            ask({"type": "image_url", "image_url": {"url": address}}, question)
    assert ask(named(f"file://{film}"), question)[0]


def test_streamed_tokens_make_the_same_answer(ask, folder):
    parts = [sent(folder / "film.mp4"), text("Describe the video.")]
    stream = ask.client.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": parts}],
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 3 and "".join(pieces) == ask(*parts)[0]


@pytest.mark.parametrize(
    ("media", "bounds", "kwargs"),
    [
        ({"num_frames": 4}, {}, {"num_frames": 4}),
        ({"num_frames": 32}, {}, {"num_frames": 32}),
        ({"num_frames": -1}, {}, {}),
        ({"fps": 3}, {}, {"fps": 3}),
        ({"start": 1.0, "end": 2.5}, {"start": 1.0, "end": 2.5}, {}),
        ({"start": 1.0, "num_frames": 8}, {"start": 1.0}, {"num_frames": 8}),
    ],
    ids=str,
)
def test_request_may_ask_for_frames(ask, own, folder, media, bounds, kwargs):
    film, question = folder / "film.mp4", text("Describe the video.")
    expected = own(local(film, **bounds), question, **kwargs)
    assert ask(sent(film), question, media_io_kwargs={"video": media}) == expected


def test_conversation_with_several_media(ask, own, folder):
    first, second, image = folder / "clips/00002.mp4", folder / "film.mp4", folder / "image.png"
    said = {"role": "assistant", "content": [text("A red ring moves.")]}

    def both(part):
        history = ({"role": "user", "content": [part(first), text("Describe the video.")]}, said)
        return (part(image), part(second), text("And here?")), history

    (parts, history), (own_parts, own_history) = both(sent), both(local)
    assert ask(*parts, history=history) == own(*own_parts, history=own_history)


def test_special_tokens_in_a_text_are_text(ask, own, folder):
    words, clip = text("What are <video>, <image> and </s>?"), folder / "clips/00003.mp4"
    assert ask(words) == own(words)
    assert ask(sent(clip), words) == own(local(clip), words)


@pytest.mark.parametrize(
    ("broken", "media", "message"),
    [
        (b"#EXTM3U\nfile:///etc/passwd", {}, "neither a video nor an image"),
        (None, {"num_frames": 100_000}, "give 1 to 512"),
        (None, {"start": 60}, "the video is 6.000 s long"),
        (None, {"frames": 8}, "takes num_frames, fps, start and end"),
    ],
    ids=["playlist", "num_frames", "start", "unknown"],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(ask, folder, broken, media, message):
    part = sent(folder / "film.mp4")
    if broken:
        part["video_url"]["url"] = f"data:video/mp4;base64,{base64.b64encode(broken).decode()}"
    with pytest.raises(openai.BadRequestError, match=message):
        ask(part, text("What?"), media_io_kwargs={"video": media})
    assert ask(text("Hello"))[0]


def test_a_number_of_frames_for_the_processor_is_refused(ask, folder):
    """It comes after the reader has taken frames. vLLM's message does not give the reason."""
    with pytest.raises(openai.BadRequestError):
        ask(sent(folder / "film.mp4"), text("What?"), mm_processor_kwargs={"num_frames": 8})


# --- this package's commands as clients ------------------------------------------------------------------------------


def pllava(*arguments: object, cwd: Path) -> str:
    program = "import sys; from pllava_cli import app; sys.argv[0] = 'pllava'; app()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


def test_evaluation_equals_a_local_one(url, folder, tmp_path, capsys):
    shared = ["eval", "nano", "--data", folder, "--out"]
    pllava(*shared, tmp_path / "served", "--endpoint", f"{url},{url}", cwd=tmp_path)
    pllava(*shared, tmp_path / "local", "--dtype", "float32", cwd=tmp_path)
    served, here = (rows(tmp_path / run / "nano" / "predictions.jsonl", "id") for run in ("served", "local"))
    same = sum(served[key]["prediction"] == here[key]["prediction"] for key in here)
    right = sum(row["correct"] for row in served.values())
    with capsys.disabled():
        print(f"\npllava eval: {same} of {len(here)} answers of the server equal local ones; {right} are right")
    assert served.keys() == here.keys() and same == len(here) == len(read_questions(folder)) and right > same * 0.8


def test_captions_equal_local_ones(url, folder, tmp_path, capsys):
    shared = ["caption", folder / "clips", "--max-new-tokens", 60, "--out"]
    printed = pllava(*shared, tmp_path / "served.jsonl", "--endpoint", url, "--model", "nano", cwd=tmp_path)
    pllava(*shared, tmp_path / "local.jsonl", "--dtype", "float32", cwd=tmp_path)
    served, here = (rows(tmp_path / name, "video") for name in ("served.jsonl", "local.jsonl"))
    same = sum(served[key]["caption"] == here[key]["caption"] for key in here)
    with capsys.disabled():
        print(f"\npllava caption: {same} of {len(here)} captions of the server equal local ones")
    assert "12 captioned, 0 done before, 0 failed" in printed and same == len(here) == 12


def rows(file: Path, key: str) -> dict[str, dict]:
    return {row[key]: row for row in map(json.loads, file.read_text().splitlines())}
