"""Frames decoded by seeking and skipping are a plain decode's, bit for bit, whatever the container and codec."""

from __future__ import annotations

import base64
import http.server
import io
import os
import random
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_files import decode_all, moving_frames, packets, remux, set_mp4_matrix, write_video

import pllava.video_decoding_pllava as decoding
from pllava.video_decoding_pllava import VideoTruncatedWarning, load_frames
from pllava.video_source_pllava import VideoDecodeError

FRAMES = moving_frames(50)
UNEVEN_TIMES = [40 * i + 13 * (i % 3) + (500 if i > 20 else 0) for i in range(len(FRAMES))]
INTERLACED = {"flags": "+ildct+ilme", "x264_params": "tff=1"}


def encoded(suffix: str, frames: np.ndarray = FRAMES, **options) -> Callable[[Path], Path]:
    return lambda folder: write_video(folder / f"clip.{suffix}", frames, **options)


def copied(suffix: str, skip: int = 0, shift: int = 0, **options) -> Callable[[Path], Path]:
    """An H.264 mp4 copied packet by packet: without the first `skip`, or starting `shift` frames before zero."""

    def build(folder: Path) -> Path:
        source = write_video(folder / "source.mp4", FRAMES, g=12, **options)
        target = remux(source, folder / f"clip.{suffix}", skip, shift)
        if target.stat().st_size < source.stat().st_size // 2:
            pytest.skip("PyAV 14.0 writes copied packets empty")
        return target

    return build


# Clips that are decoded by index. The others, below, are decoded in full: their packets are no safe index.
INDEXED = {
    "h264 mp4": encoded("mp4", g=12),
    "h264 mp4, one group": encoded("mp4", g=1000),
    "h264 mp4, b-frames": encoded("mp4", g=12, bf=8, x264_params="b-adapt=0:b-pyramid=normal:scenecut=0"),
    "h264 mp4, no b-frames": encoded("mp4", g=12, bf=0),
    "h264 mp4, keyframes only": encoded("mp4", g=1),
    "h264 mp4, open groups": encoded("mp4", g=12, x264_params="open-gop=1:bframes=4:b-adapt=0:scenecut=0"),
    "h264 mp4, variable rate": encoded("mp4", g=12, times=UNEVEN_TIMES),
    "h264 mp4, 4:4:4": encoded("mp4", g=12, pix_fmt="yuv444p"),
    "h264 mp4, odd size": encoded("mp4", moving_frames(20, 49, 67), g=7, pix_fmt="yuv444p"),
    "h264 mp4, audio": encoded("mp4", g=12, audio=True),
    "h264 mp4, one frame": encoded("mp4", FRAMES[:1]),
    "h264 mp4, two frames": encoded("mp4", FRAMES[:2]),
    "h264 mp4, fragments": encoded("mp4", g=12, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "h264 mov": encoded("mov", g=12),
    "h264 mkv": encoded("mkv", g=12),
    "h264 mkv, audio": encoded("mkv", g=12, audio=True),
    "h264 mkv, live": encoded("mkv", g=12, container_options={"live": "1"}),
    "h264 flv": encoded("flv", g=12),
    "h264 ts": encoded("ts", g=12),
    "h264 ts, audio": encoded("ts", g=12, audio=True),
    "h265 mp4": encoded("mp4", codec="libx265", g=12, x265_params="log-level=none"),
    "h265 mp4, closed groups": encoded("mp4", codec="libx265", g=12, x265_params="log-level=none:open-gop=0"),
    "h265 mp4, ten bits, three layers": encoded(
        "mp4", codec="libx265", g=12, pix_fmt="yuv420p10le", x265_params="log-level=none:temporal-layers=3"
    ),
    "h265 ts": encoded("ts", codec="libx265", g=12, x265_params="log-level=none"),
    "vp8 webm": encoded("webm", codec="libvpx", g=12, deadline="good", auto_alt_ref=1, lag_in_frames=16),
    "vp9 webm": encoded(
        "webm", codec="libvpx-vp9", g=12, deadline="good", cpu_used=5, auto_alt_ref=1, lag_in_frames=16
    ),
    "vp9 mp4": encoded("mp4", codec="libvpx-vp9", g=12, deadline="realtime", cpu_used=8),
    "av1 mp4": encoded("mp4", codec="libsvtav1", g=12, preset=12),
    "av1 mkv": encoded("mkv", codec="libsvtav1", g=12, preset=12),
    "mpeg4 avi": encoded("avi", codec="mpeg4", g=12),
    "mpeg4 mp4, b-frames": encoded("mp4", codec="mpeg4", g=12, bf=2),
    "mpeg2 ts": encoded("ts", codec="mpeg2video", fps=25, g=12, bf=2),
    "mjpeg avi": encoded("avi", codec="mjpeg", pix_fmt="yuvj420p"),
}
DECODED_IN_FULL = {
    "gif": encoded("gif", codec="gif", pix_fmt="rgb8"),
    "h264 avi": encoded("avi", g=12),
    "h264 elementary stream": encoded("h264", g=12),
    "h264 mkv, cut at an open group": copied("mkv", 12, x264_params="open-gop=1:bframes=4:b-adapt=0:scenecut=0"),
    "h264 mp4, cut by an edit list": copied("mp4", shift=5),
    "h264 mp4, cut in a group": copied("mp4", skip=5),
    "h264 ts, cut in a group": copied("ts", skip=5),
    "h264 ts, interlaced": encoded("ts", g=12, **INTERLACED),
    "h265 elementary stream": encoded("hevc", codec="libx265", g=12, x265_params="log-level=none"),
    "mpeg4 avi, b-frames": encoded("avi", codec="mpeg4", g=12, bf=2),
    "wmv": encoded("wmv", codec="wmv2", g=12),
}
# Here it depends on the frames wanted.
EITHER_WAY = {
    "h264 mp4, intra refresh": encoded("mp4", g=12, x264_params="intra-refresh=1"),
    "mpeg1 mpg": encoded("mpg", codec="mpeg1video", fps=25, g=12, bf=2),
}
CLIPS = {**INDEXED, **DECODED_IN_FULL, **EITHER_WAY}


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Callable[[str], Path]:
    """The clip of a name in CLIPS, made when first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            try:
                made[name] = CLIPS[name](tmp_path_factory.mktemp("clip"))
            except av.codec.codec.UnknownCodecError as error:
                pytest.skip(f"this PyAV has no encoder {error}")
        return made[name]

    return get


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """Counts what was done: files opened, packets given to group decoders, frames they gave, full decodes."""
    counts = dict.fromkeys(("opened", "groups", "decoded", "full decodes"), 0)
    frames_of_group, everything, opened = decoding._frames_of_gop, decoding._decode_everything, decoding._open_stream

    def count_group(*args):
        counts["groups"] += 1
        for frame in frames_of_group(*args):
            counts["decoded"] += 1
            yield frame

    def count_everything(*args):
        counts["full decodes"] += 1
        return everything(*args)

    def count_open(source):
        counts["opened"] += 1
        return opened(source)

    monkeypatch.setattr(decoding, "_frames_of_gop", count_group)
    monkeypatch.setattr(decoding, "_decode_everything", count_everything)
    monkeypatch.setattr(decoding, "_open_stream", count_open)
    return counts


def midpoints(count: int, wanted: int = 16) -> list[int]:
    segment = (count - 1) / wanted
    return [int(segment / 2 + np.round(segment * i)) for i in range(wanted)]


def index_sets(path: Path, count: int) -> dict[str, list[int]]:
    times = sorted((pts or 0, key) for pts, key in packets(path))
    near_keyframes = {i + d for i, (_, key) in enumerate(times) if key for d in (-2, -1, 0, 1)}
    return {
        "all": list(range(count)),
        "first": [0],
        "last": [count - 1],
        "middle": [count // 2],
        "midpoints": midpoints(count),
        "few": midpoints(count, 3),
        "near keyframes": sorted(i for i in near_keyframes if 0 <= i < count),
        "repeats, unordered": random.Random(0).choices(range(count), k=20),
        "backwards": list(range(count))[::-5],
        "none": [],
    }


def take(indices) -> Callable:
    return lambda metadata: indices


@pytest.mark.parametrize("name", CLIPS)
def test_frames_equal_a_plain_decode(clip, calls, name):
    path = clip(name)
    full = decode_all(path, keep_going="cut in" in name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if "cut in" in name else "error", VideoTruncatedWarning)
        for label, indices in index_sets(path, len(full)).items():
            calls["full decodes"] = 0
            frames, metadata = load_frames(path, take(indices))
            assert metadata.total_num_frames == len(full), label
            assert metadata.frames_indices == indices, label
            assert frames.dtype == np.uint8 and frames.shape == (len(indices), *full.shape[1:]), label
            assert np.array_equal(frames, full[indices]), label
            if name not in EITHER_WAY and indices:
                assert calls["full decodes"] == (name in DECODED_IN_FULL), label
    assert np.array_equal(load_frames(path.read_bytes(), take([len(full) // 3]))[0][0], full[len(full) // 3])


def test_only_the_groups_of_wanted_frames_are_decoded(tmp_path, calls):
    path = write_video(tmp_path / "clip.mp4", moving_frames(600), g=20, x264_params="scenecut=0")
    frames, _ = load_frames(path, take([5, 305, 311, 590]))
    assert np.array_equal(frames, decode_all(path)[[5, 305, 311, 590]])
    assert calls["groups"] == 3
    assert 4 <= calls["decoded"] < 40
    assert calls["opened"] == 1  # too little work to be worth a second thread


def test_pictures_nobody_refers_to_are_skipped(tmp_path, calls):
    path = write_video(tmp_path / "clip.mp4", moving_frames(200), g=1000, bf=3, x264_params="b-adapt=0:scenecut=0")
    wanted = midpoints(200, 8)
    frames, _ = load_frames(path, take(wanted))
    assert np.array_equal(frames, decode_all(path)[wanted])
    assert calls["groups"] == 1
    assert calls["decoded"] < 0.6 * 200  # with three B-frames in a row, two are not referred to


def test_threads_share_the_groups(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    path = write_video(tmp_path / "clip.mp4", moving_frames(600), g=100, x264_params="scenecut=0")
    before = threading.active_count()
    frames, _ = load_frames(path, take(range(50, 600, 50)))
    assert np.array_equal(frames, decode_all(path)[50::50])
    assert calls["opened"] == 2 and calls["full decodes"] == 0
    assert threading.active_count() == before


def test_a_wrong_index_leads_to_a_full_decode(clip, calls, monkeypatch):
    """The decoder's word counts: an index that claims another keyframe is found out, and the frames are right."""
    path = clip("h264 mp4")
    read_index = decoding.read_index

    def corrupted(stream):
        index = read_index(stream)
        index.keyframes[1], index.seek_times[1] = index.pts[15], index.seek_times[1]
        return index

    monkeypatch.setattr(decoding, "read_index", corrupted)
    frames, metadata = load_frames(path, take([0, 20, 49]))
    assert np.array_equal(frames, decode_all(path)[[0, 20, 49]])
    assert calls["full decodes"] == 1 and metadata.total_num_frames == 50


@pytest.mark.parametrize("name, lost", [("vp9 webm", 12), ("vp9 webm", 15), ("h264 mp4", 12)])
def test_a_missing_frame_leads_to_a_full_decode(clip, calls, monkeypatch, name, lost):
    """Even if nobody wants it: where the decoder leaves out one frame, it may have lost others."""
    frames_of_group = decoding._frames_of_gop

    def losing(stream, index, *args):
        return (frame for frame in frames_of_group(stream, index, *args) if index.display_index[frame.pts] != lost)

    monkeypatch.setattr(decoding, "_frames_of_gop", losing)
    frames, _ = load_frames(clip(name), take([20]))
    assert calls["full decodes"] == 1
    assert np.array_equal(frames[0], decode_all(clip(name))[20])


def temporal_layers(path: Path) -> set[int]:
    """The layers that the pictures of an HEVC mp4 belong to, from the header of each of their parts."""
    layers = set()
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            data, position = bytes(packet), 0
            while position < len(data):
                if data[position + 4] >> 1 < 32:  # part of a picture
                    layers.add((data[position + 5] & 7) - 1)
                position += 4 + int.from_bytes(data[position : position + 4], "big")
    return layers


def test_hevc_is_skipped_only_without_temporal_layers(clip):
    for name in ("h265 mp4", "h265 mp4, ten bits, three layers", "h265 ts"):
        with av.open(str(clip(name))) as container:
            skipped = name != "h265 ts" and len(temporal_layers(clip(name))) == 1  # PyAV 14's x265 writes one layer
            assert decoding._can_skip(container.streams.video[0]) == skipped, name


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1)])
def test_display_matrix(tmp_path, matrix):
    """(x, y) is shown at (ax + cy, bx + dy): quarter turns and mirrorings, as telephones write them."""
    path = write_video(tmp_path / "clip.mp4", moving_frames(30, 48, 80), g=12)
    full = decode_all(path)
    set_mp4_matrix(path, matrix)
    frames, metadata = load_frames(path, take([3, 17, 29]))
    shown = {
        (0, 1, -1, 0): np.rot90(full, -1, (1, 2)),  # clockwise
        (-1, 0, 0, -1): np.rot90(full, 2, (1, 2)),
        (0, -1, 1, 0): np.rot90(full, 1, (1, 2)),
        (-1, 0, 0, 1): full[:, :, ::-1],
        (1, 0, 0, -1): full[:, ::-1],
    }[matrix]
    assert np.array_equal(frames, shown[[3, 17, 29]])
    assert (metadata.height, metadata.width) == shown.shape[1:3]


def test_metadata(clip):
    seen = []
    load_frames(clip("h264 mkv, live"), lambda metadata: seen.append(dict(metadata)) or [0])
    assert seen[0]["total_num_frames"] == 50 and seen[0]["fps"] == 24
    assert seen[0]["duration"] == pytest.approx(50 / 24, abs=2e-3)
    assert (seen[0]["height"], seen[0]["width"], seen[0]["video_backend"]) == (48, 64, "pyav")
    _, metadata = load_frames(clip("h264 mp4, variable rate"), take([0]))
    assert metadata.duration == pytest.approx(UNEVEN_TIMES[-1] / 1000, abs=0.1)
    assert metadata.fps * metadata.duration == pytest.approx(50, abs=1)
    _, metadata = load_frames(clip("h264 elementary stream"), take([0]))
    assert metadata.total_num_frames == 50 and metadata.fps == 25 and metadata.duration == 2


def test_indices_are_checked_and_default_to_all(clip):
    path = clip("h264 mp4")
    assert load_frames(path)[1].frames_indices == list(range(50))
    assert load_frames(path, take(np.linspace(0, 49, 4, dtype=int)))[1].frames_indices == [0, 16, 32, 49]
    for wrong in (50, -1):
        with pytest.raises(ValueError, match=f"Frame {wrong} "):
            load_frames(path, take([3, wrong]))
    with pytest.raises(ZeroDivisionError):
        load_frames(path, lambda metadata: 1 // 0)


# --- sources ---------------------------------------------------------------------------------------------------------


def test_paths_bytes_and_files(clip, tmp_path):
    path = clip("h264 mp4")
    expected = decode_all(path)[[7, 30]]
    content = path.read_bytes()
    strange = tmp_path / "concat:a|b, 100% ?.mp4"
    strange.write_bytes(content)
    for source in (path, str(path), path.as_uri(), strange, strange.as_uri(), content, bytearray(content)):
        assert np.array_equal(load_frames(source, take([7, 30]))[0], expected)
    with open(path, "rb") as file:
        file.seek(100)
        assert np.array_equal(load_frames(file, take([7, 30]))[0], expected)
        assert not file.closed and file.tell() == 100
    written = io.BytesIO()
    written.write(content)
    assert np.array_equal(load_frames(written, take([7, 30]))[0], expected)


def test_urls(clip):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(clip("h264 mp4").parent))
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        frames, _ = load_frames(f"{url}/clip.mp4", take([7]))
        assert np.array_equal(frames[0], decode_all(clip("h264 mp4"))[7])
        with pytest.raises(VideoDecodeError, match=f"{url}/other.mp4.*404"):
            load_frames(f"{url}/other.mp4")
        server.shutdown()
    with pytest.raises(VideoDecodeError, match=f"Cannot download {url}/clip.mp4"):
        load_frames(f"{url}/clip.mp4")


def test_data_urls(clip):
    """As OpenAI-compatible servers hand a video on that came with its request."""
    content = clip("h264 mp4").read_bytes()
    expected = load_frames(content)[0]
    frames, _ = load_frames(f"data:video/mp4;base64,{base64.b64encode(content).decode()}")
    assert np.array_equal(frames, expected)
    with pytest.raises(VideoDecodeError, match=r"^Cannot decode data:video/mp4;base64,bm90IGEgdmlkZW8=\.\.\.: "):
        load_frames("data:video/mp4;base64,bm90IGEgdmlkZW8=")
    with pytest.raises(VideoDecodeError, match="Give data:video/mp4;base64"):
        load_frames("data:video/mp4")


def test_frame_folder(tmp_path):
    for number in (1, 2, 10):
        Image.fromarray(FRAMES[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    frames, metadata = load_frames(tmp_path, take([2, 0, 2]))
    assert np.array_equal(frames, FRAMES[[10, 1, 10]])
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (3, 3, 1)
    assert (metadata.height, metadata.width) == (48, 64)
    Image.fromarray(FRAMES[1, :20]).save(tmp_path / "3.png")
    with pytest.raises(VideoDecodeError, match="image 2 is"):
        load_frames(tmp_path)
    (tmp_path / "0.jpg").write_bytes(b"no image")
    with pytest.raises(VideoDecodeError, match="0.jpg: .*Give a whole image"):
        load_frames(tmp_path)


def test_image_files(tmp_path):
    images = [Image.fromarray(frame) for frame in FRAMES[:3]]
    images[0].save(tmp_path / "clip.webp", save_all=True, append_images=images[1:], lossless=True)
    images[0].save(tmp_path / "still.png")
    assert np.array_equal(load_frames(tmp_path / "clip.webp", take([2, 0]))[0], FRAMES[[2, 0]])
    frames, metadata = load_frames((tmp_path / "still.png").read_bytes())
    assert np.array_equal(frames, FRAMES[:1]) and metadata.total_num_frames == 1


# --- what cannot be decoded ------------------------------------------------------------------------------------------


def test_undecodable_inputs_are_one_clear_error(clip, tmp_path):
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    endless = tmp_path / "endless.mp4"
    endless.write_bytes(clip("h264 mp4").read_bytes()[:-2000])  # the index of an mp4 is at its end
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    blank = clip("h264 mp4").read_bytes()
    data, index = blank.index(b"mdat") + 4, blank.index(b"moov") - 4
    (tmp_path / "blank.mp4").write_bytes(blank[:data] + bytes(index - data) + blank[index:])
    for source, reason in {
        tmp_path / "missing.mp4": "no such file",
        tmp_path / "empty.mp4": "empty",
        tmp_path / "folder": "no images",
        text: "no video",
        sound: "no video stream",
        endless: "no video",
        tmp_path / "blank.mp4": "not one frame",
        "rtsp://127.0.0.1/camera": "rtsp://",
        b"": "empty",
        b"no video " * 100: "900 bytes.*no video",
    }.items():
        name = "bytes" if isinstance(source, bytes) else os.path.basename(source)
        with pytest.raises(VideoDecodeError, match=f"Cannot decode .*{name}.*{reason}.* Give a "):
            load_frames(source)


def test_playlists_cannot_reach_other_files(clip, tmp_path):
    """Neither by name nor by content: what the playlists refer to is a readable video beside them."""
    secret = clip("h264 ts")
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.0,\n{secret}\n#EXT-X-ENDLIST\n"
    dash = f"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="urn:mpeg:dash:
    profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">
    <Representation id="1" bandwidth="1"><BaseURL>{clip("h264 mp4, fragments")}</BaseURL></Representation>
    </AdaptationSet></Period></MPD>"""
    concat = f"ffconcat version 1.0\nfile '{secret}'\n"
    for suffix, text in {"m3u8": hls, "mpd": dash, "ffconcat": concat}.items():
        path = tmp_path / f"list.{suffix}"
        path.write_text(text)
        disguised = tmp_path / f"{suffix}.mp4"
        disguised.write_text(text)
        for source in (path, disguised, text.encode()):
            with pytest.raises(VideoDecodeError):
                load_frames(source)
    path = tmp_path / "list.m3u8"
    with av.open(str(path)) as container:  # without the guard ffmpeg follows it
        assert len(list(container.decode(video=0))) == 50
    for address in (f"concat:{secret}", f"subfile,,start,0,end,0,,:{secret}", f"file:{tmp_path / 'missing'}"):
        with pytest.raises(VideoDecodeError, match="no such file"):
            load_frames(address)


# --- damage ----------------------------------------------------------------------------------------------------------

CUT = {
    "h264 mkv": 50,
    "vp9 webm": 50,
    "mpeg4 avi": 50,
    "h264 flv": 50,
    "h264 ts": None,
    "h264 mp4, index first": 50,
    "h264 mp4, fragments": None,
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_short_gives_its_readable_frames(clip, tmp_path, name):
    """One warning with both counts, where the container states them; the sampler sees the readable count."""
    if name == "h264 mp4, index first":
        path = write_video(tmp_path / "whole.mp4", FRAMES, g=12, container_options={"movflags": "faststart"})
    else:
        path = clip(name)
    content = path.read_bytes()
    cut = tmp_path / f"cut{path.suffix}"
    cut.write_bytes(content[: int(0.6 * len(content)) // 188 * 188 + 17])
    with pytest.warns(VideoTruncatedWarning) as caught:
        frames, metadata = load_frames(cut, lambda metadata: range(metadata.total_num_frames))
    readable = metadata.total_num_frames
    assert len(caught) == 1 and f"{cut} is damaged or ends early: {readable} of " in str(caught[0].message)
    if CUT[name]:
        assert f" {readable} of {CUT[name]} frames" in str(caught[0].message)
    assert 0 < readable < 50 and len(frames) == readable
    whole = readable - 4  # the last pictures may be in parts, and pictures before them refer to those
    assert np.array_equal(frames[:whole], decode_all(path)[:whole])


@pytest.mark.parametrize("name", ["h264 mp4", "h264 mkv", "h264 ts", "mpeg4 avi", "vp9 webm", "h265 mp4", "gif"])
def test_damaged_bytes_do_no_harm(clip, name):
    """Whatever bytes are overwritten: frames of the right shape, or the one error."""
    content = clip(name).read_bytes()
    rng = np.random.default_rng(0)
    loaded = 0
    for _ in range(12):
        damaged = bytearray(content)
        start = int(rng.integers(len(content) // 4, len(content) - 200))
        damaged[start : start + 150] = rng.bytes(150)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VideoTruncatedWarning)
            try:
                frames, metadata = load_frames(bytes(damaged), lambda metadata: midpoints(metadata.total_num_frames))
            except VideoDecodeError:
                continue
        assert frames.shape == (16, metadata.height, metadata.width, 3)
        loaded += 1
    assert loaded > 3


def test_memory_threads_and_files_do_not_grow(clip):
    """2,000 decodes, failing ones among them, leave nothing behind."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    path = str(clip("h264 mp4, two frames"))
    broken = clip("h264 mp4").read_bytes()[:-2000]

    def decode(times: int) -> int:
        for number in range(times):
            load_frames(path, take([1]))
            if number % 10 == 0:
                with pytest.raises(VideoDecodeError):
                    load_frames(broken)
        return process.memory_info().rss

    after_200 = decode(200)
    files, threads = process.num_fds() if hasattr(process, "num_fds") else 0, process.num_threads()
    assert decode(1800) - after_200 < 8 << 20
    assert (process.num_fds() if hasattr(process, "num_fds") else 0) <= files
    assert process.num_threads() <= threads
