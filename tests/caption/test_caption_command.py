"""`pllava caption` with the tiny random model: what is captioned, once, and what its lines record."""

import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from caption_lines import read
from model_inputs import TOKENS
from peft import get_peft_model
from PIL import Image
from video_files import white_png

import pllava
from pllava.caption.captioners import decoding
from pllava.checkpoint_files import fingerprint

PLLAVA = str(Path(sys.executable).with_name("pllava"))
SHORT = ("--max-new-tokens", TOKENS)


def message(role, text, video=None):
    media = [{"type": "video", "path": str(video)}] if video else []
    return {"role": role, "content": [*media, {"type": "text", "text": text}]}


def write_copies(clip, folder, count):
    """Write files that show the same, of which no two have the same content."""
    folder.mkdir()
    for number in range(count):
        padding = struct.pack(">I4s", 8 + number, b"free") + bytes(number)  # a box of mp4 that players skip
        (folder / f"{number}.mp4").write_bytes(clip.read_bytes() + padding)


def test_caption_resumes_and_records_failures(answer, caption, clips, tmp_path):
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


def test_caption_records_how_it_was_made(caption, checkpoint, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(clips[0].parent)
    assert caption(clips[0].name, "--prompt", "What moves?", "--num-frames", 2).exit_code == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert row.pop("caption") and row.pop("sha256") and row.pop("time") and len(row.pop("id")) == 32
    stat = clips[0].stat()
    assert (row.pop("bytes"), row.pop("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
    assert row.pop("frames") == [4, 14] and len(row.pop("prompt_hash")) == 12 and row.pop("flags") == ["truncated"]
    assert row.pop("revision") == fingerprint(checkpoint)
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
        "pooling": "average-4x3x3",
        "max_new_tokens": TOKENS,
    }


def test_captions_say_which_pooling_made_them(caption, clips, tmp_path):
    assert caption(clips[0], "--out", tmp_path / "plain.jsonl").exit_code == 0
    assert caption(clips[0], "--pooling", "merge", "--num-frames", 8).exit_code == 0
    (plain,), (merged,) = read(tmp_path / "plain.jsonl"), read(tmp_path / "out.jsonl")
    assert (plain["pooling"], plain["num_frames"]) == ("average-4x3x3", 4)
    assert (merged["pooling"], merged["num_frames"]) == ("merge-4x3x3", 8)
    assert merged["caption"] != plain["caption"]
    assert "0 captioned, 1 done before" in caption(clips[0], "--pooling", "merge-4x3x3", "--num-frames", 8).stdout


def test_file_takes_captions_made_in_one_way(caption, checkpoint, clips, tmp_path):
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
        (["--model", other], f"'{fingerprint(other)}'"),
        (["--adapter", adapter], f"'{fingerprint(adapter)}'"),
        (["--dtype", "float16"], "'dtype': 'float16'"),
        (["--load-in-4bit"], "'quantization': 'nf4'"),
        (["--load-in-8bit"], "'quantization': 'llm_int8'"),
        (["--num-frames", 3], "'num_frames': 3"),
        (["--pooling", "slowfast"], "'pooling': 'slowfast-1x3x6+4x1x1'"),
        (["--max-new-tokens", 7], "'max_new_tokens': 7"),
    ]:
        result = caption(*clips, *options)
        assert result.exit_code == 1 and out.read_bytes() == written
        assert result.stderr.startswith(f"Error: {out} has captions made with ") and named in result.stderr
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    assert "0 captioned, 1 done before" in caption(clips[0], "--model", moved).stdout, "the same weights elsewhere"


def test_caption_searches_folders_for_videos_and_folders_of_frames(answer, caption, clips, tmp_path):
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


def test_caption_finds_folders_of_frames_beside_an_image(caption, tmp_path):
    folder = tmp_path / "folder"
    for number, file in enumerate(["cover.jpg", "a/0.png", "a/1.png", "b/0.png", "b/1.png"]):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (50 * number, 0, 90)).save(folder / file)
    assert "2 captioned" in caption(folder).stdout
    assert [row["video"] for row in read(tmp_path / "out.jsonl")] == [str(folder / name) for name in "ab"]


@pytest.mark.parametrize(
    ("content", "message"), [('{"video": "a"}\ngarbage\n', "line 2"), ('{"id": 3}\n', '"video"'), ("[]\n", "line 1")]
)
def test_output_file_of_another_kind_is_refused_and_kept(caption, clips, tmp_path, content, message):
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    result = caption(clips[0])
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {out}") and message in result.stderr
    assert result.stderr.count("\n") == 1 and out.read_text() == content


def test_video_and_output_file_are_recognised_by_any_path(caption, clips, tmp_path, monkeypatch):
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


def test_one_process_writes_a_file_and_leaves_no_workers_when_killed(caption, checkpoint, clips, tmp_path):
    out, folder = tmp_path / "out.jsonl", tmp_path / "folder"
    write_copies(clips[0], folder, 400)
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


def test_caption_of_a_part_is_recorded_as_such(answer, caption, clips, tmp_path):
    part = {"start": 1, "end": 2.5}
    assert caption(clips[2], "--start", 1, "--end", 2.5).exit_code == 0
    (row,) = read(tmp_path / "out.jsonl")
    chat = message("user", "Describe the video.", clips[2])
    chat["content"][0].update(part)
    assert row.items() >= {**part, "caption": answer([chat]).strip()}.items()
    whole = caption(clips[2])
    assert whole.exit_code == 0 and "1 captioned, 0 done before" in whole.stdout
    assert "0 captioned, 1 done before" in caption(clips[2], "--start", 1, "--end", 2.5).stdout


def test_clip_that_takes_too_long_to_decode_is_recorded_as_an_error(caption, clips, tmp_path, monkeypatch):
    sample_frames = decoding.sample_frames

    def sample_slowly(processor, video, *options):
        if video == str(clips[1]):
            time.sleep(60)
        return sample_frames(processor, video, *options)

    monkeypatch.setattr(decoding, "sample_frames", sample_slowly)
    monkeypatch.setattr("pllava.caption.run.DECODE_TIMEOUT", 5)
    result = caption(*clips, "--batch-size", 2)
    assert result.exit_code == 1 and "2 captioned, 0 done before, 1 failed" in result.stdout
    rows = {row["video"]: row for row in read(tmp_path / "out.jsonl")}
    assert rows[str(clips[1])]["error"].startswith(f"Cannot decode {clips[1]}: it took more than 5 seconds")
    assert rows[str(clips[0])]["caption"] and rows[str(clips[2])]["caption"]
