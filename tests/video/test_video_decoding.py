"""Frames decoded by seeking and skipping equal those of a plain decode, bit for bit, in any container and codec."""

from __future__ import annotations

import os
import random
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import decode_all, moving_frames, packets, remux, set_mp4_matrix, take, write_video

import pllava.video_decoding_pllava as decoding
from pllava.video_decoding_pllava import VideoTruncatedWarning, load_frames
from pllava.video_source_pllava import VideoDecodeError

FRAMES = moving_frames(50)
UNEVEN_TIMES = [40 * i + 13 * (i % 3) + (500 if i > 20 else 0) for i in range(len(FRAMES))]
INTERLACED = {"flags": "+ildct+ilme", "x264_params": "tff=1"}


def encoded(suffix: str, frames: np.ndarray = FRAMES, **options) -> Callable[[Path], Path]:
    return lambda folder: write_video(folder / f"clip.{suffix}", frames, **options)


def copied(suffix: str, skip: int = 0, shift: int = 0, **options) -> Callable[[Path], Path]:
    """Copy the packets of an H.264 mp4 without the first `skip`, or with PTS that start `shift` frames before zero."""

    def build(folder: Path) -> Path:
        source = write_video(folder / "source.mp4", FRAMES, g=12, **options)
        target = remux(source, folder / f"clip.{suffix}", skip, shift)
        if target.stat().st_size < source.stat().st_size // 2:
            pytest.skip("PyAV 14.0 writes copied packets empty")
        return target

    return build


# Decoded by index
INDEXED = {
    "h264 mp4": encoded("mp4", g=12),
    "h264 mp4, one GOP": encoded("mp4", g=1000),
    "h264 mp4, b-frames": encoded("mp4", g=12, bf=8, x264_params="b-adapt=0:b-pyramid=normal:scenecut=0"),
    "h264 mp4, no b-frames": encoded("mp4", g=12, bf=0),
    "h264 mp4, no b-frames, one GOP": encoded("mp4", g=1000, bf=0, x264_params="scenecut=0"),
    "h264 mp4, no b-frames, a long and a short GOP": encoded("mp4", g=45, bf=0, x264_params="scenecut=0"),
    "h264 mp4, keyframes only": encoded("mp4", g=1),
    "h264 mp4, open GOP": encoded("mp4", g=12, x264_params="open-gop=1:bframes=4:b-adapt=0:scenecut=0"),
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
    "h265 mp4, closed GOP": encoded("mp4", codec="libx265", g=12, x265_params="log-level=none:open-gop=0"),
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
# Decoded in full: their packets are not a reliable index
DECODED_IN_FULL = {
    "gif": encoded("gif", codec="gif", pix_fmt="rgb8"),
    "h264 avi": encoded("avi", g=12),
    "h264 elementary stream": encoded("h264", g=12),
    "h264 mkv, cut at an open GOP": copied("mkv", 12, x264_params="open-gop=1:bframes=4:b-adapt=0:scenecut=0"),
    "h264 mp4, cut by an edit list": copied("mp4", shift=5),
    "h264 mp4, cut in a GOP": copied("mp4", skip=5),
    "h264 ts, cut in a GOP": copied("ts", skip=5),
    "h264 ts, interlaced": encoded("ts", g=12, **INTERLACED),
    "h265 elementary stream": encoded("hevc", codec="libx265", g=12, x265_params="log-level=none"),
    "mpeg4 avi, b-frames": encoded("avi", codec="mpeg4", g=12, bf=2),
    "wmv": encoded("wmv", codec="wmv2", g=12),
}
# Decoded by index or in full, depending on the wanted frames
EITHER_WAY = {
    "h264 mp4, intra refresh": encoded("mp4", g=12, x264_params="intra-refresh=1"),
    "mpeg1 mpg": encoded("mpg", codec="mpeg1video", fps=25, g=12, bf=2),
}
CLIPS = {**INDEXED, **DECODED_IN_FULL, **EITHER_WAY}


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Callable[[str], Path]:
    """Return the path of a clip in CLIPS, which is encoded when it is first requested."""

    @cache
    def encode(name: str) -> Path:
        try:
            return CLIPS[name](tmp_path_factory.mktemp("clip"))
        except av.codec.codec.UnknownCodecError as error:
            pytest.skip(f"this PyAV has no encoder {error}")

    return encode


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """Counts of opened files, decoded GOPs, those by frame threads, frames that they yielded, and full decodes."""
    counts = dict.fromkeys(("opened", "gops", "gops by frame threads", "decoded", "full decodes"), 0)
    frames_of_gop = decoding._frames_of_gop

    def count_frames(stream, *args):
        counts["gops"] += 1
        counts["gops by frame threads"] += stream.codec_context.thread_type.name == "AUTO"
        for frame in frames_of_gop(stream, *args):
            counts["decoded"] += 1
            yield frame

    def counting(key, function):
        def call(*args):
            counts[key] += 1
            return function(*args)

        return call

    monkeypatch.setattr(decoding, "_frames_of_gop", count_frames)
    for name, key in {"_decode_everything": "full decodes", "open_stream": "opened"}.items():
        monkeypatch.setattr(decoding, name, counting(key, getattr(decoding, name)))
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


def test_only_gops_with_wanted_frames_are_decoded(tmp_path, calls):
    path = write_video(tmp_path / "clip.mp4", moving_frames(600), g=20, x264_params="scenecut=0")
    frames, _ = load_frames(path, take([5, 305, 311, 590]))
    assert np.array_equal(frames, decode_all(path)[[5, 305, 311, 590]])
    assert calls["gops"] == 3
    assert 4 <= calls["decoded"] < 40
    assert calls["opened"] == 1  # too little work for a second thread


def test_non_reference_frames_are_skipped(tmp_path, calls):
    path = write_video(tmp_path / "clip.mp4", moving_frames(200), g=1000, bf=3, x264_params="b-adapt=0:scenecut=0")
    wanted = midpoints(200, 8)
    frames, _ = load_frames(path, take(wanted))
    assert np.array_equal(frames, decode_all(path)[wanted])
    assert calls["gops"] == 1
    assert calls["decoded"] < 0.6 * 200  # with three B-frames in a row, two are not referred to


@pytest.mark.parametrize(("count", "gop"), [(600, 100), (90, 10)])
def test_threads_share_the_gops(tmp_path, calls, monkeypatch, count, gop):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    path = write_video(tmp_path / "clip.mp4", moving_frames(count), g=gop, x264_params="scenecut=0")
    before, wanted = threading.active_count(), slice(gop // 2, None, gop // 2)
    frames, _ = load_frames(path, take(range(count)[wanted]))
    assert np.array_equal(frames, decode_all(path)[wanted])
    assert calls["opened"] == 2 and calls["full decodes"] == 0
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("cores", "options", "by_frame_threads"),
    [
        (2, {"g": 1000, "bf": 0}, True),
        (2, {"g": 90, "bf": 0}, True),  # a long GOP and a short one
        (2, {"g": 25, "bf": 0}, False),  # enough GOPs for all threads
        (2, {"g": 1000, "bf": 3}, False),  # non-reference frames are skipped instead
        (1, {"g": 1000, "bf": 0}, False),
    ],
)
def test_frame_threads_where_gops_cannot_be_shared_and_frames_not_skipped(
    tmp_path, calls, monkeypatch, cores, options, by_frame_threads
):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    path = write_video(tmp_path / "clip.mp4", moving_frames(100), x264_params="scenecut=0", **options)
    wanted = midpoints(100)
    frames, _ = load_frames(path, take(wanted))
    assert np.array_equal(frames, decode_all(path)[wanted])
    assert calls["gops by frame threads"] == (calls["gops"] if by_frame_threads else 0)


def test_wrong_index_leads_to_a_full_decode(clip, calls, monkeypatch):
    """The decoder contradicts an index with a wrong keyframe."""
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
def test_missing_frame_leads_to_a_full_decode(clip, calls, monkeypatch, name, lost):
    """Even if the missing frame is not wanted: a decoder that drops one frame may have dropped others."""
    frames_of_gop = decoding._frames_of_gop

    def losing(stream, index, *args):
        return (frame for frame in frames_of_gop(stream, index, *args) if index.display_index[frame.pts] != lost)

    monkeypatch.setattr(decoding, "_frames_of_gop", losing)
    frames, _ = load_frames(clip(name), take([20]))
    assert calls["full decodes"] == 1
    assert np.array_equal(frames[0], decode_all(clip(name))[20])


def temporal_layers(path: Path) -> set[int]:
    """Return the temporal layers of the NAL units of an HEVC mp4."""
    layers = set()
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            data, position = bytes(packet), 0
            while position < len(data):
                if data[position + 4] >> 1 < 32:  # a slice
                    layers.add((data[position + 5] & 7) - 1)
                position += 4 + int.from_bytes(data[position : position + 4], "big")
    return layers


def test_hevc_frames_are_skipped_only_without_temporal_layers(clip):
    for name in ("h265 mp4", "h265 mp4, ten bits, three layers", "h265 ts"):
        with av.open(str(clip(name))) as container:
            skipped = name != "h265 ts" and len(temporal_layers(clip(name))) == 1  # PyAV 14's x265 writes one layer
            assert decoding._can_skip(container.streams.video[0]) == skipped, name


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1)])
def test_display_matrix_is_applied(tmp_path, matrix):
    """(x, y) is shown at (ax + cy, bx + dy): rotations and flips, as phones write them."""
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


def test_metadata_describes_the_video(clip):
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


def test_frame_indices_are_checked_and_default_to_all(clip):
    path = clip("h264 mp4")
    assert load_frames(path)[1].frames_indices == list(range(50))
    assert load_frames(path, take(np.linspace(0, 49, 4, dtype=int)))[1].frames_indices == [0, 16, 32, 49]
    for wrong in (50, -1):
        with pytest.raises(ValueError, match=f"Frame {wrong} "):
            load_frames(path, take([3, wrong]))
    with pytest.raises(ZeroDivisionError):
        load_frames(path, lambda metadata: 1 // 0)


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
def test_truncated_file_gives_its_readable_frames(clip, tmp_path, name):
    """One warning gives both counts, if the container states them; the sampler gets the readable count."""
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
    whole = readable - 4  # the last frames may be incomplete, and the frames before may refer to them
    assert np.array_equal(frames[:whole], decode_all(path)[:whole])


@pytest.mark.parametrize("name", ["h264 mp4", "h264 mkv", "h264 ts", "mpeg4 avi", "vp9 webm", "h265 mp4", "gif"])
def test_damaged_file_gives_frames_or_an_error(clip, name):
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


def test_frame_threads_conceal_no_damage(tmp_path, monkeypatch):
    """They repair damaged frames in another way than a plain decode, which has to be repeated then."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    path = write_video(tmp_path / "clip.mp4", FRAMES, g=1000, bf=0, x264_params="scenecut=0")
    sizes = [packet.size for packet in av.open(str(path)).demux(video=0)]
    content, start = path.read_bytes(), path.read_bytes().index(b"mdat") + 4 + sizes[0]
    rng = random.Random(0)
    for _ in range(10):
        damaged = bytearray(content)
        damaged[rng.randrange(start, start + sum(sizes[1:]))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VideoTruncatedWarning)
            frames, _ = load_frames(path)
        assert np.array_equal(frames, decode_all(path, keep_going=True))


def test_decoding_leaks_no_memory_threads_or_files(clip):
    """After 2,000 decodes, some of which fail."""
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
