"""The command line, with the tiny random model."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import TOKENS
from peft import get_peft_model
from PIL import Image
from typer.testing import CliRunner
from video_files import white_png

import pllava
from pllava.checkpoint_files import fingerprint
from pllava.eval import Checkpoint
from pllava_cli import app

PLLAVA = str(Path(sys.executable).with_name("pllava"))
SHORT = ("--max-new-tokens", TOKENS)


def run(*arguments, **options):
    """Runs the command in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "1000"}, **options)


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
    assert result.exit_code == 0, result.stderr
    expected = answer([message("user", "What happens?", clips[0])])
    assert result.stdout.strip() == expected.strip()


def test_chat_holds_a_conversation(answer, checkpoint, clips):
    options = ["--model", checkpoint, "--num-frames", 4, "--dtype", "float32", "--device", "cpu", *SHORT]
    result = run("chat", clips[1], *options, input="What happens?\nAnd then?\n\nNot asked\n")
    assert result.exit_code == 0, result.stderr
    messages = [message("user", "What happens?", clips[1])]
    first = answer(messages)
    messages += [message("assistant", first), message("user", "And then?")]
    greeting, *answers = result.stdout.split("> ")
    assert "empty line" in greeting
    assert [text.strip() for text in answers] == [first.strip(), answer(messages).strip(), ""]


def test_chat_reads_as_many_frames_as_it_is_told(answer, processor, checkpoint, clips):
    result = run("chat", clips[2], "What happens?", "--model", checkpoint, "--num-frames", 9, *SHORT)
    assert result.exit_code == 0, result.stderr
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
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


# --- caption ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def caption(checkpoint, tmp_path):
    """Captions into `out`, in this process."""

    def run_caption(*arguments):
        options = ["--out", tmp_path / "out.jsonl", "--model", checkpoint, *SHORT]
        return run("caption", *options, *arguments)  # of an option that is given twice, the last counts

    return run_caption


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_caption_goes_on_where_it_stopped_and_records_failures(answer, caption, clips, tmp_path):
    out, bad = tmp_path / "new" / "captions.jsonl", tmp_path / "bad.mp4"
    bad.write_bytes(white_png(16000, 16000))
    first = caption(clips[0], "--out", out)
    assert first.exit_code == 0, first.output
    with out.open("a") as lines:
        lines.write('{"video": "cut of')  # as a run leaves it that was killed while it wrote
    second = caption(clips[0].parent, bad, "--out", out, "--batch-size", 2)
    assert second.exit_code == 1
    assert "2 captioned, 1 done before, 1 failed" in second.stdout
    rows = {row["video"]: row for row in read(out)}
    assert len(rows) == 4 == len(read(out))
    assert "bad.mp4" in rows[str(bad)]["error"]
    for clip in clips:
        expected = answer([message("user", "Describe the video.", clip)])
        assert rows[str(clip)]["caption"] == expected.strip()
    third = caption(clips[0].parent, bad, "--out", out)
    assert "0 captioned, 3 done before, 1 failed" in third.stdout
    assert len(read(out)) == 4


def test_a_caption_says_how_it_was_made(caption, checkpoint, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(clips[0].parent)
    assert caption(clips[0].name, "--prompt", "What moves?", "--num-frames", 2).exit_code == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert row.pop("caption") and row.pop("revision") == fingerprint(checkpoint)
    assert row == {
        "video": clips[0].name,
        "path": str(clips[0]),
        "prompt": "What moves?",
        "model": checkpoint,
        "adapter": None,
        "adapter_revision": None,
        "alpha": None,
        "dtype": "float32",
        "quantization": None,
        "num_frames": 2,
        "sampling": "uniform",
        "pooling_shape": [4, 3, 3],
        "max_new_tokens": TOKENS,
    }


def test_a_file_takes_captions_made_in_one_way(caption, checkpoint, clips, tmp_path):
    out = tmp_path / "out.jsonl"
    assert caption(clips[0]).exit_code == 0
    written = out.read_bytes()
    other, adapter = tmp_path / "other", tmp_path / "adapter"
    model = pllava.load_model(checkpoint)
    model.lm_head.weight.data.mul_(2)
    shutil.copytree(checkpoint, other)
    model.save_pretrained(other)
    get_peft_model(model, pllava.lora_config(r=2)).save_pretrained(adapter)
    for options, named in [
        (["--prompt", "What moves?"], "'What moves?'"),
        (["--model", other], f"'{fingerprint(other)}'"),
        (["--adapter", adapter], f"'{fingerprint(adapter)}'"),
        (["--dtype", "float16"], "'dtype': 'float16'"),
        (["--load-in-4bit"], "'quantization': 'nf4'"),
        (["--load-in-8bit"], "'quantization': 'llm_int8'"),
        (["--num-frames", 3], "'num_frames': 3"),
        (["--max-new-tokens", 7], "'max_new_tokens': 7"),
    ]:
        result = caption(*clips, *options)
        assert result.exit_code == 1 and out.read_bytes() == written
        assert result.stderr.startswith(f"Error: {out} has captions made with ") and named in result.stderr
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    assert "0 captioned, 1 done before" in caption(clips[0], "--model", moved).stdout, "the same weights elsewhere"


def test_answers_know_how_their_model_is_quantised(checkpoint, tmp_path):
    """The same from the configs as from the model that is loaded; of one that was saved quantised, too."""
    for bits, named in ((4, "nf4"), (8, "llm_int8")):
        quantized = {"quantization_config": pllava.quantization_config(bits)}
        announced = Checkpoint.read(checkpoint, **quantized)
        model = pllava.load_model(checkpoint, dtype="auto", device_map="cpu", **quantized)
        assert Checkpoint.of(model.config, "float32") == announced and announced.quantization == named
        model.save_pretrained(tmp_path / named)
        assert Checkpoint.read(str(tmp_path / named)).quantization == named
    assert Checkpoint.read(checkpoint).quantization is None


def test_folders_are_searched_for_videos_and_for_folders_of_frames(answer, caption, clips, tmp_path):
    folder, out = tmp_path / "folder", tmp_path / "out.jsonl"
    (folder / "of videos" / "of frames").mkdir(parents=True)
    (folder / "nothing").mkdir()
    for number in range(5):
        Image.new("RGB", (64, 48), (50 * number, 0, 90)).save(folder / "of videos" / "of frames" / f"{number}.png")
    shutil.copy(clips[0], folder / "of videos" / "a.MP4")
    Image.new("RGB", (64, 48)).save(folder / "of videos" / "poster.jpg")
    (folder / "of videos" / "notes.txt").write_text("no video")
    result = caption(folder)
    assert result.exit_code == 0 and "2 captioned" in result.stdout, result.output
    frames = folder / "of videos" / "of frames"
    assert [row["video"] for row in read(out)] == [str(folder / "of videos" / "a.MP4"), str(frames)]
    assert read(out)[1]["caption"] == answer([message("user", "Describe the video.", frames)]).strip()
    assert "0 captioned, 1 done before" in caption(frames).stdout
    for none in ("nothing", "of videos/nothing"):
        (folder / none).mkdir(exist_ok=True)
        result = caption(folder / none)
        assert result.exit_code == 1 and result.stderr == f"Error: no videos in {folder / none}\n"


def test_an_image_beside_folders_of_frames_keeps_none_of_them_out(caption, tmp_path):
    folder = tmp_path / "folder"
    for file in ("cover.jpg", "a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(folder / file)
    assert "2 captioned" in caption(folder).stdout
    assert [row["video"] for row in read(tmp_path / "out.jsonl")] == [str(folder / name) for name in "ab"]


@pytest.mark.parametrize(
    ("content", "said"), [('{"video": "a"}\ngarbage\n', "line 2"), ('{"id": 3}\n', '"video"'), ("[]\n", "line 1")]
)
def test_an_output_file_of_another_kind_is_refused_and_kept(caption, clips, tmp_path, content, said):
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    result = caption(clips[0])
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {out}") and said in result.stderr
    assert result.stderr.count("\n") == 1 and out.read_text() == content


def test_a_video_and_an_output_file_are_known_by_any_name(caption, clips, tmp_path, monkeypatch):
    from filelock import FileLock

    out, link, folder = tmp_path / "out.jsonl", tmp_path / "link.jsonl", clips[0].parent
    link.symlink_to(out)
    assert "3 captioned" in caption(folder, folder / ".." / folder.name).stdout
    monkeypatch.chdir(folder.parent)
    other = caption(folder.name, folder / ".." / folder.name, clips[0], "--out", link)
    assert "0 captioned, 3 done before" in other.stdout and len(read(out)) == 3
    with FileLock(f"{out}.lock"):
        refused = caption(folder, "--out", link)
    assert refused.exit_code == 1 and str(link) in refused.stderr


def test_one_process_captions_into_a_file_and_killed_leaves_nothing_running(caption, checkpoint, clips, tmp_path):
    out, folder = tmp_path / "out.jsonl", tmp_path / "folder"
    folder.mkdir()
    for number in range(400):
        (folder / f"{number}.mp4").symlink_to(clips[0])
    command = [PLLAVA, "caption", folder, "--out", out, "--model", checkpoint, "--batch-size", 1, *SHORT]
    process = psutil.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    while not (out.exists() and out.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    second = caption(folder)
    assert second.exit_code == 1 and f"process {process.pid} on " in second.stderr and str(out) in second.stderr
    workers = process.children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert workers and not alive
    captioned = len(out.read_bytes().split(b"\n")) - 1
    third = caption(folder / "0.mp4", clips[1])
    assert "1 captioned, 1 done before, 0 failed" in third.stdout and captioned < 400
    assert len({row["video"] for row in read(out)}) == len(read(out)) == captioned + 1
