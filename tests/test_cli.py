"""The command line, as real processes, with the tiny random model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TOKENS
from video_files import white_png

PLLAVA = str(Path(sys.executable).with_name("pllava"))
SHORT = ("--max-new-tokens", TOKENS)


def run(*arguments, **options):
    return subprocess.run([PLLAVA, *map(str, arguments)], capture_output=True, text=True, timeout=240, **options)


def message(role, text, video=None):
    media = [{"type": "video", "path": str(video)}] if video else []
    return {"role": role, "content": [*media, {"type": "text", "text": text}]}


def test_help_lists_the_commands_without_loading_torch():
    result = run("--help")
    assert "chat" in result.stdout and "caption" in result.stdout
    check = "import sys, pllava_cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_chat_answers_one_question(answer, checkpoint, clips):
    result = run("chat", clips[0], "What happens?", "--model", checkpoint, *SHORT)
    assert result.returncode == 0, result.stderr
    expected = answer([message("user", "What happens?", clips[0])])
    assert result.stdout.strip() == expected.strip()


def test_chat_holds_a_conversation(answer, checkpoint, clips):
    options = ["--model", checkpoint, "--num-frames", 4, "--dtype", "float32", "--device", "cpu", *SHORT]
    result = run("chat", clips[1], *options, input="What happens?\nAnd then?\n\nNot asked\n")
    assert result.returncode == 0, result.stderr
    messages = [message("user", "What happens?", clips[1])]
    first = answer(messages)
    messages += [message("assistant", first), message("user", "And then?")]
    greeting, *answers = result.stdout.split("> ")
    assert "empty line" in greeting
    assert [text.strip() for text in answers] == [first.strip(), answer(messages).strip(), ""]


def test_chat_reads_as_many_frames_as_it_is_told(answer, processor, checkpoint, clips):
    result = run("chat", clips[2], "What happens?", "--model", checkpoint, "--num-frames", 9, *SHORT)
    assert result.returncode == 0, result.stderr
    messages = [message("user", "What happens?", clips[2])]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"num_frames": 9}
    )
    assert inputs["pixel_values_videos"].shape[1] == 9
    expected = answer(messages, num_frames=9)
    assert result.stdout.strip() == expected.strip()


@pytest.mark.parametrize(
    ("video", "options", "complaint"),
    [
        ("missing.mp4", [], "missing.mp4"),
        ("{clip}", ["--model", "no/such/dir"], "no/such/dir"),
        ("{clip}", ["--dtype", "float31"], "float31"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(checkpoint, clips, video, options, complaint):
    result = run("chat", video.format(clip=clips[0]), "What?", *(options or ["--model", checkpoint]))
    assert result.returncode != 0
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_caption_goes_on_where_it_stopped_and_records_failures(answer, checkpoint, clips, tmp_path):
    out, bad = tmp_path / "new" / "captions.jsonl", tmp_path / "bad.mp4"
    bad.write_bytes(white_png(16000, 16000))
    options = ["--out", out, "--model", checkpoint, *SHORT]
    first = run("caption", clips[0], *options)
    assert first.returncode == 0, first.stderr
    with out.open("a") as lines:
        lines.write('{"video": "cut of')  # as a run leaves it that was killed while it wrote
    second = run("caption", clips[0].parent, bad, *options, "--batch-size", 2)
    assert second.returncode == 1
    assert "2 captioned, 1 done before, 1 failed" in second.stdout
    rows = {row["video"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert len(rows) == 4 == len(out.read_text().splitlines())
    assert "bad.mp4" in rows[str(bad)]["error"]
    for clip in clips:
        expected = answer([message("user", "Describe the video.", clip)])
        assert rows[str(clip)]["caption"] == expected.strip()
    third = run("caption", clips[0].parent, bad, *options)
    assert "0 captioned, 3 done before, 1 failed" in third.stdout
    assert len(out.read_text().splitlines()) == 4
