"""A file never makes ffmpeg or PIL open another one, or an address, in whatever way it gets to them."""

import io
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hostile_media import Server, content, playlists, watching, with_external_track, with_linked_segments
from PIL import Image
from video_files import decode_all, moving_frames, write_video

import pllava
from pllava.video_decoding_pllava import load_frames
from pllava.video_images_pllava import read_image
from pllava.video_source_pllava import VideoDecodeError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches files with inotify")
FRAMES = moving_frames(20)


@pytest.fixture(scope="module")
def secret(tmp_path_factory) -> Path:
    """A video that a hostile file refers to."""
    options = {"container_options": {"movflags": "frag_keyframe+empty_moov"}}
    return write_video(tmp_path_factory.mktemp("secret") / "secret.mp4", FRAMES, g=5, **options)


@pytest.fixture(scope="module")
def server(secret) -> Iterator[Server]:
    with Server(secret=content(secret.read_bytes())) as server:
        yield server


def ways(path: Path) -> dict[str, object]:
    """Return the file in each form that the library takes."""
    return {
        "path": path,
        "file URL": path.as_uri(),
        "bytes": path.read_bytes(),
        "file object": io.BytesIO(path.read_bytes()),
        "open file": path.open("rb"),
    }


def readers(video: object) -> dict[str, Callable]:
    return {
        "load_frames": lambda: load_frames(video),
        "read_image": lambda: read_image(video),
        "processor": lambda: pllava.PllavaVideoProcessor()({"video": video}, return_tensors="pt"),
    }


@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "mpd", "sdp", "ffconcat", "png"])
@pytest.mark.parametrize("kind", playlists(""))
def test_playlists_open_nothing(secret, server, tmp_path, kind, suffix):
    for target in (str(secret), secret.as_uri(), f"http://{server.place}/secret"):
        path = tmp_path / f"list.{suffix}"
        path.write_bytes(playlists(target)[kind])
        with watching(secret) as was_opened:
            for video in ways(path).values():
                for read in readers(video).values():
                    with pytest.raises(VideoDecodeError):
                        read()
            assert not was_opened()
    assert not server.requests


def test_playlists_are_refused_at_an_address(secret):
    """The name of the address does not matter either."""
    with Server(secret=content(secret.read_bytes())) as server, watching(secret) as was_opened:
        target = f"http://{server.place}/secret"
        for kind in ("hls", "dash", "concat"):
            server.answers["list.m3u8"] = content(playlists(target)[kind])
            with pytest.raises(VideoDecodeError):
                load_frames(f"http://{server.place}/list.m3u8")
        assert {path for _, path in server.requests} == {"/list.m3u8"} and not was_opened()


def test_the_watches_see_what_ffmpeg_opens_without_our_limits(secret, server, tmp_path):
    """Else the other tests here could not fail."""
    (tmp_path / "list.m3u8").write_bytes(playlists(str(secret))["hls"])
    everything = {"allowed_extensions": "ALL", "extension_picky": "0"}
    with watching(secret) as was_opened, av.open(str(tmp_path / "list.m3u8"), container_options=everything):
        assert was_opened()
    follow = {"enable_drefs": "1", "use_absolute_path": "1"}
    for name, external in external_tracks(secret.parent, secret).items():
        (secret.parent / name).write_bytes(external)
        with watching(secret) as was_opened, av.open(str(secret.parent / name), container_options=follow):
            assert was_opened(), name


def external_tracks(folder: Path, target: Path) -> dict[str, bytes]:
    own = write_video(folder / "own.mp4", FRAMES, g=5).read_bytes()
    return {
        "absolute.mp4": with_external_track(own, str(target)),
        "relative.mov": with_external_track(own, str(target), relative=True),
    }


def test_a_track_in_another_file_is_not_read(secret):
    for name, external in external_tracks(secret.parent, secret).items():
        path = secret.parent / name
        path.write_bytes(external)
        with watching(secret) as was_opened:
            for video in ways(path).values():
                with pytest.raises(VideoDecodeError, match="not one frame"):
                    load_frames(video)
            assert not was_opened()


def test_linked_segments_and_attachments_are_not_read(secret, tmp_path):
    own = write_video(tmp_path / "own.mkv", FRAMES, g=5)
    path = tmp_path / "linked.mkv"
    path.write_bytes(with_linked_segments(own.read_bytes(), str(secret)))
    with av.open(str(path)) as container:
        assert {stream.type for stream in container.streams} == {"video", "attachment"}  # else nothing is tested
    with watching(secret) as was_opened:
        for video in ways(path).values():
            assert np.array_equal(load_frames(video)[0], decode_all(own))
        assert not was_opened()


def test_name_with_a_pattern_is_one_file(tmp_path):
    """ffmpeg's own reader of numbered images would open the others."""
    for number in range(3):
        Image.fromarray(FRAMES[number]).save(tmp_path / f"{number:03d}.png")
    pattern = tmp_path / "%03d.png"
    with watching(tmp_path / "001.png") as was_opened:
        with pytest.raises(VideoDecodeError, match="no such file"):
            load_frames(pattern)
        shutil.copy(tmp_path / "002.png", pattern)
        assert np.array_equal(load_frames(pattern)[0], FRAMES[2:3])
        for name in ("*.png", "%03d.png|000.png", f"concat:{tmp_path}/000.png|{tmp_path}/001.png"):
            with pytest.raises(VideoDecodeError, match="no such file"):
                load_frames(tmp_path / name)
        assert not was_opened()
