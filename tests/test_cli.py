"""The command line, as real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pllava.nano import world

PLLAVA = str(Path(sys.executable).with_name("pllava"))


def run(*arguments, **options):
    return subprocess.run([PLLAVA, *map(str, arguments)], capture_output=True, text=True, timeout=240, **options)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    directory = tmp_path_factory.mktemp("videos")
    for index in range(3):
        world.write_clip(directory / f"{index}.mp4", world.draw(world.clip(seed=1, index=index)[0]))
    return directory


def caption_of(index):
    return world.clip(seed=1, index=index)[1][-1]["answer"]


def test_help_lists_the_commands_without_loading_torch():
    result = run("--help")
    assert "chat" in result.stdout and "caption" in result.stdout
    check = "import sys, pllava_cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_chat_answers_one_question(clips):
    asked = next(row for row in world.clip(seed=1, index=0)[1] if row["type"] == "count")
    result = run("chat", clips / "0.mp4", asked["question"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == asked["answer"]


def test_chat_holds_a_conversation(clips):
    asked = world.clip(seed=1, index=1)[1][:2]
    lines = "".join(row["question"] + "\n" for row in asked)
    result = run(
        "chat", clips / "1.mp4", "--num-frames", 16, "--dtype", "float32", "--device", "cpu", input=lines + "\n"
    )
    assert result.returncode == 0, result.stderr
    answers = [line.removeprefix("> ").strip() for line in result.stdout.splitlines()[1:]]
    assert [answer for answer in answers if answer] == [row["answer"] for row in asked]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.mp4", "What?"], "missing.mp4"),
        (["{clip}", "What?", "--model", "no/such/dir"], "no/such/dir"),
        (["{clip}", "What?", "--dtype", "float31"], "float31"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(clips, arguments, complaint):
    result = run("chat", *[argument.format(clip=clips / "0.mp4") for argument in arguments])
    assert result.returncode != 0
    assert (
        complaint in "".join(result.stderr.split("│")).replace("\n", "").replace(" ", "") or complaint in result.stderr
    )
    assert "Traceback" not in result.stderr


def test_caption_goes_on_where_it_stopped_and_records_failures(clips, tmp_path):
    out, bad = tmp_path / "captions.jsonl", tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    first = run("caption", clips / "0.mp4", "--out", out)
    assert first.returncode == 0, first.stderr
    with out.open("a") as lines:
        lines.write('{"video": "cut of')  # as a run leaves it that was killed while it wrote
    second = run("caption", clips, bad, "--out", out, "--batch-size", 2)
    assert second.returncode == 1
    assert "2 captioned, 1 done before, 1 failed" in second.stdout
    rows = {row["video"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert len(rows) == 4 == len(out.read_text().splitlines())
    assert "bad.mp4" in rows[str(bad)]["error"]
    assert [rows[str(clips / f"{i}.mp4")]["caption"] for i in range(3)] == [caption_of(i) for i in range(3)]
    third = run("caption", clips, bad, "--out", out)
    assert "0 captioned, 3 done before, 1 failed" in third.stdout
    assert len(out.read_text().splitlines()) == 4
