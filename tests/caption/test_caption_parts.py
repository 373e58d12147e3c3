"""Parts of videos: windows of equal length, and scenes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_lines import read
from chat_server import Reply, chat_server
from PIL import Image
from typer.testing import CliRunner
from video_files import moving_frames, write_video

from pllava.caption import Clip, Scenes, Windows
from pllava.caption.clips import Failed, Identify, splitting
from pllava.video_source_pllava import VideoDecodeError
from pllava_cli import app

FPS = 10


def near(parts, expected, within=1e-6):
    return len(parts) == len(expected) and np.allclose(parts, expected, rtol=0, atol=within)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A video of three shots of 2, 1.5 and 2.5 seconds, in each of which a square moves on a ground of its own."""
    frames = []
    for ground, count in (((200, 40, 40), 20), ((30, 60, 220), 15), ((240, 240, 90), 25)):
        for number in range(count):
            frame = np.full((96, 128, 3), ground, np.uint8)
            frame[40:56, 2 * number : 2 * number + 16] = 255 - np.array(ground)
            frames.append(frame)
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", frames, FPS)


def windows(video, length, stride, start=None, end=None):
    return Windows(length, stride)(Clip(str(video), (), start, end))


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "stride", "bounds", "expected"),
    [
        (2, 2, (None, None), [(0, 2), (2, 4), (4, 6)]),
        (4, 4, (None, None), [(0, 4), (4, 6)]),  # half a window is left
        (5, 5, (None, None), [(0, 6)]),  # less than half a window is left
        (3, 1, (None, None), [(0, 3), (1, 4), (2, 5), (3, 6), (4, 6)]),
        (1, 3, (None, None), [(0, 1), (3, 4)]),  # with gaps
        (1, 4, (None, None), [(0, 1), (4, 5)]),
        (60, 60, (None, None), [(0, 6)]),  # longer than the video
        (2, 2, (1, 5.5), [(1, 3), (3, 5.5)]),
        (2, 2, (3, None), [(3, 5), (5, 6)]),
        (2, 2, (None, 3), [(0, 2), (2, 3)]),
        (2, 2, (4, 99), [(4, 6)]),
    ],
)
def test_windows_cover_the_video_and_honour_its_bounds(film, length, stride, bounds, expected):
    assert near(windows(film, length, stride, *bounds), expected)


def test_windows_of_other_videos(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(12):  # at 3 a second
        Image.new("RGB", (64, 48), (20 * number, 0, 0)).save(frames / f"{number}.png")
    assert windows(frames, 2, 2) == [(0, 2), (2, 4)]
    images = [Image.fromarray(frame) for frame in moving_frames(20)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    assert near(windows(tmp_path / "a.gif", 1, 1), [(0, 1), (1, 2)])
    with pytest.raises(VideoDecodeError, match="it ends at 2 s, before 2 s"):
        windows(tmp_path / "a.gif", 1, 1, start=2)


def test_stream_without_a_length_in_its_header_is_split(tmp_path):
    for name, count in (("raw.h264", 50), ("stream.ts", 50)):  # raw streams have 25 frames a second
        video = write_video(tmp_path / name, moving_frames(count), 25)
        assert near(windows(video, 1, 1), [(0, 1), (1, 2)], within=0.05)


def test_windows_are_captioned_with_the_bounds_of_options_and_rows(caption, film, tmp_path):
    listed = tmp_path / "list.jsonl"
    listed.write_text(json.dumps({"video": str(film), "start": 1, "end": 5}) + "\n")
    assert caption(listed, "--window", 2).exit_code == 0
    assert [(row["start"], row["end"]) for row in read(tmp_path / "out.jsonl")] == [(1, 3), (3, 5)]
    finished = caption(film, "--window", 2, "--stride", 1, "--start", 1, "--end", 5)
    assert "2 captioned, 2 done before" in finished.stdout
    parts = sorted((row["start"], row["end"]) for row in read(tmp_path / "out.jsonl"))
    assert parts == [(1, 3), (2, 4), (3, 5), (4, 5)]
    taken = {row["start"]: row["frames"] for row in read(tmp_path / "out.jsonl")}
    assert all(start * FPS <= min(frames) and max(frames) <= (start + 2) * FPS for start, frames in taken.items())


def test_start_past_the_end_is_a_failure(caption, film, tmp_path):
    for options, message in ((["--window", 2], "it ends at 6 s, before 7 s"), (["--scenes"], "no frames after 7 s")):
        finished = caption(film, *options, "--start", 7)
        assert finished.exit_code == 1 and "0 captioned, 0 done before, 1 failed" in finished.stdout
        (row,) = read(tmp_path / "out.jsonl")
        assert message in row["error"]


# --- scenes ----------------------------------------------------------------------------------------------------------


def test_cuts_are_found(film, tmp_path):
    scenes = Scenes(tmp_path / "out.jsonl")
    expected = [(0, 2), (2, 3.5), (3.5, 6)]
    assert near(scenes(Clip(str(film), ())), expected)
    assert near(scenes(Clip(film.as_uri(), ())), expected)
    assert near(scenes(Clip("film", (), content=film.read_bytes())), expected)
    assert near(scenes(Clip(str(film), (), 1.0, 5.0)), [(1, 2), (2, 3.5), (3.5, 5)], within=0.11)


def test_video_without_cuts_is_one_scene(clips, tmp_path):
    assert near(Scenes(tmp_path / "out.jsonl")(Clip(str(clips[1]), ())), [(0, 3)])


def test_what_has_no_scenes_fails(clips, tmp_path):
    identify = Identify(Scenes(tmp_path / "out.jsonl"))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    Image.new("RGB", (64, 48)).save(tmp_path / "0.png")
    for video, message in [
        (str(tmp_path), "scenes are found in videos, not in folders of images"),
        (str(tmp_path / "broken.mp4"), "Cannot decode"),
        ("https://example.org/a.mp4", "only files are split: download it first"),
    ]:
        failed = identify(Clip(video, ("What?",)))
        assert isinstance(failed, Failed) and message in failed.error, failed
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clips[2].read_bytes()[:-200])  # without the end of its index
    assert isinstance(identify(Clip(str(cut), ("What?",))), Failed)


def test_scenes_are_captioned_and_not_looked_for_again(caption, film, clips, tmp_path, monkeypatch):
    find, calls = splitting.find_scenes, tmp_path / "calls"

    def count(clip):
        with calls.open("a") as lines:  # in a worker process
            lines.write(f"{clip.start}\n")
        return find(clip)

    monkeypatch.setattr(splitting, "find_scenes", count)
    finished = caption(film, clips[0], "--scenes")
    assert "4 captioned, 0 done before, 0 failed" in finished.stdout, finished.output
    rows = read(tmp_path / "out.jsonl")
    assert near([(row["start"], row["end"]) for row in rows], [(0, 2), (2, 3.5), (3.5, 6), (0, 2)])
    for row in rows[:3]:  # no frame of another scene
        assert round(row["start"] * FPS) <= min(row["frames"]) <= max(row["frames"]) < round(row["end"] * FPS)
    assert [len(row["scenes"]) for row in read(tmp_path / "out.scenes.jsonl")] == [3, 1]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))  # as of a killed run
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(film.read_bytes())
    finished = caption(copy, film, "--scenes", "--prompt", "What?", "--prompt", "Describe the video.")
    assert "3 captioned" in finished.stdout and len(read(tmp_path / "out.jsonl")) == 6
    assert calls.read_text() == "None\nNone\n"
    assert caption(film, "--scenes", "--start", 1).exit_code == 0
    assert calls.read_text() == "None\nNone\n1.0\n" and len(read(tmp_path / "out.scenes.jsonl")) == 3


def test_processes_share_the_scenes_that_are_known(film, tmp_path):
    part = Scenes(tmp_path / "[a].jsonl", rank=2)
    part.remember("0123", (None, 9.0), [(0.0, 2.0), (2.0, 9.0)])
    assert [file.name for file in tmp_path.iterdir()] == ["[a].scenes.part-2.jsonl"]
    known = Scenes(tmp_path / "[a].jsonl")
    assert known(Clip("gone.mp4", (), None, 9.0, sha256="0123")) == [(0, 2), (2, 9)]


def test_parts_of_a_video_in_a_list_go_to_a_server(film, tmp_path):
    pq.write_table(pa.table({"video": [{"path": "film", "bytes": film.read_bytes()}]}), tmp_path / "list.parquet")
    arguments = [tmp_path / "list.parquet", "--scenes", "--out", tmp_path / "out.jsonl", "--model", "served"]
    with chat_server(lambda _: Reply("A bar.")) as (url, stub):
        finished = CliRunner().invoke(app, ["caption", *map(str, arguments), "--endpoint", url])
    assert "3 captioned, 0 done before, 0 failed" in finished.stdout and len(stub.requests) == 3, finished.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stride 2", "give their length with --window"),
        ("--scenes --window 2", "Choose one of --scenes and --window"),
        ("--window 0", "--window"),
    ],
)
def test_options_of_parts_are_checked(film, tmp_path, options, message):
    arguments = ["caption", str(film), "--out", str(tmp_path / "out.jsonl"), *options.split()]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2 and message in refused.stderr
