"""What a browser shows of a medium: the file itself if it plays it, else a copy."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_files import animation, decode_all, moving_frames, set_mp4_matrix, write_video

from pllava.demo.display import SIDE, shown_copy
from pllava.media import MediaLimits

FRAMES = moving_frames(12, 90, 120)


def show(gate, path: Path, tmp_path, limits=None):
    media = gate.read(path)
    with media.file:
        return shown_copy(media, path, tmp_path / "copies", limits or gate.limits)


@pytest.mark.parametrize(
    "name, options",
    [
        ("h264.mp4", {}),
        ("h264.mov", {}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
        ("animation.gif", {}),
    ],
)
def test_played_files_are_shown_themselves(gate, folder, tmp_path, name, options):
    path = folder / name
    if name.endswith("gif"):
        path.write_bytes(animation(32, 24, 5))
    else:
        write_video(path, FRAMES, **options)
    expected = str(path) if path.suffix != ".mov" else str(tmp_path / "copies" / "h264.mp4")  # the same bytes, renamed
    assert show(gate, path, tmp_path) == expected
    assert Path(expected).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "name, options",
    [
        ("mpeg4.avi", {"codec": "mpeg4", "fps": 10}),
        ("h264.mkv", {"fps": 10}),
        ("mpeg4.mp4", {"codec": "mpeg4", "fps": 10}),
        ("colour.mp4", {"pix_fmt": "yuv444p", "fps": 10}),
    ],
)
def test_other_videos_get_a_copy_with_the_same_pictures_at_the_same_times(gate, folder, tmp_path, name, options):
    path = write_video(folder / name, FRAMES, **options)
    copy = show(gate, path, tmp_path)
    assert copy == str(tmp_path / "copies" / f"{path.stem}.mp4") != str(path)
    with av.open(copy) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert [round(frame.time, 3) for frame in container.decode(stream)] == [round(n / 10, 3) for n in range(12)]
    difference = np.abs(decode_all(copy).astype(int) - FRAMES.astype(int)).mean()
    assert difference < 20


def test_a_copy_of_a_turned_video_is_upright(gate, folder, tmp_path):
    path = write_video(folder / "turned.mp4", FRAMES, codec="mpeg4", fps=10)
    set_mp4_matrix(path, (0, 1, -1, 0))  # clockwise, as phones write it
    shown = np.rot90(FRAMES, -1, (1, 2)).astype(int)
    assert np.abs(decode_all(show(gate, path, tmp_path)).astype(int) - shown).mean() < 20


def test_large_and_fast_videos_get_a_smaller_copy(gate, folder, tmp_path):
    path = write_video(folder / "large.avi", moving_frames(40, 720, 1280), fps=60, codec="mpeg4")
    with av.open(show(gate, path, tmp_path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (SIDE, 360) and stream.average_rate == 30
        assert 20 <= stream.frames <= 21  # of 40 at 60 a second


def test_files_with_the_wrong_suffix(gate, folder, tmp_path):
    path = folder / "picture.mp4"
    Image.fromarray(FRAMES[0]).save(path, "PNG")
    assert show(gate, path, tmp_path) == str(tmp_path / "copies" / "picture.png")
    bitmap = folder / "picture.bmp"
    Image.fromarray(FRAMES[0]).save(bitmap)
    with Image.open(show(gate, bitmap, tmp_path)) as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), FRAMES[0])


def test_a_copy_that_takes_too_long_is_not_made(gate, folder, tmp_path):
    path = write_video(folder / "slow.avi", moving_frames(300, 480, 640), codec="mpeg4")
    assert show(gate, path, tmp_path, MediaLimits(decode_seconds=0.2)) is None
