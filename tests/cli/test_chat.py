"""A conversation on the command line: the clip is read and encoded once."""

import pytest
from model_inputs import assistant, user
from transformers import pipeline
from typer.testing import CliRunner

import pllava
from pllava import PllavaModel
from pllava.nano.world.rendering import render
from pllava_cli import app

QUESTIONS = ["Describe the video.", "What shape is green?", "How many shapes are there in all?", "Where is it?"]


@pytest.mark.parametrize("options", [(), ("--pooling", "average-8x3x3")])
def test_clip_is_encoded_once_a_conversation(monkeypatch, tmp_path, options):
    render(tmp_path, clips=1, seed=5)
    (clip,), frames, encode = tmp_path.glob("clips/*"), [], PllavaModel.encode_frames

    def counted(model, pixels, **kwargs):
        frames.append(len(pixels))
        return encode(model, pixels, **kwargs)

    monkeypatch.setattr(PllavaModel, "encode_frames", counted)
    result = CliRunner().invoke(app, ["chat", str(clip), "--no-check", *options], input="\n".join(QUESTIONS))
    assert result.exit_code == 0, result.stderr
    assert frames == [16]
    _, *answers = result.stdout.split("> ")
    if not options:
        pipe, messages = pipeline("video-text-to-text", pllava.NANO, trust_remote_code=True), []
        for question, answer in zip(QUESTIONS, answers, strict=False):
            media = [] if messages else [{"type": "video", "path": str(clip)}]
            messages = [*messages, user(question, *media)]
            messages = pipe(messages, max_new_tokens=256, generate_kwargs={"do_sample": False})[0]["generated_text"]
            assert answer.strip() == messages[-1]["content"].strip()
            messages[-1] = assistant(messages[-1]["content"])
