"""Encoded clips for the benchmarks: a camera that moves over a textured plane."""

import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

FPS = 30
X264 = {"preset": "veryfast", "x264-params": "scenecut=0"}
VP9 = {"deadline": "realtime", "cpu-used": "6", "b": "1000000", "g": "128"}
# name: seconds, height, width, file suffix, codec, codec options
SHORT = {
    "h264 360p 10 s, x264's defaults": (10, 360, 640, "mp4", "libx264", {}),
    "h264 360p 10 s, one GOP": (10, 360, 640, "mp4", "libx264", {**X264, "g": "600"}),
    "h264 360p 10 s, one GOP, two slices": (10, 360, 640, "mp4", "libx264", {**X264, "g": "600", "slices": "2"}),
    "h264 360p 10 s, one GOP, no B-frames": (10, 360, 640, "mp4", "libx264", {**X264, "g": "600", "bf": "0"}),
    "h264 360p 10 s, three GOPs": (10, 360, 640, "mp4", "libx264", {**X264, "g": "100"}),
    "h264 360p 10 s, keyframe every 30": (10, 360, 640, "mp4", "libx264", {**X264, "g": "30"}),
    "h265 360p 10 s, three GOPs": (10, 360, 640, "mp4", "libx265", {"preset": "veryfast", "g": "100"}),
    "vp9 360p 10 s, three GOPs": (10, 360, 640, "webm", "libvpx-vp9", VP9),
    "mpeg4 360p 10 s, keyframe every 12": (10, 360, 640, "avi", "mpeg4", {"b": "1500000", "g": "12"}),
}
LONG = {"h264 1080p 120 s, keyframe every 250": (120, 1080, 1920, "mp4", "libx264", {**X264, "g": "250"})}
CLIPS = SHORT | LONG


def scene(seconds: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield frames of a camera that moves over a textured plane, with sensor noise and a patch that crosses them."""
    rng = np.random.default_rng(0)
    plane = np.full((2 * height, 2 * width, 3), 110.0, np.float32)
    for grain, strength in ((160, 60), (40, 40), (8, 20), (2, 9)):
        shape = (2 * height // grain + 1, 2 * width // grain + 1, 3)
        noise = rng.normal(0, strength, shape).astype(np.float32)
        plane += noise.repeat(grain, 0).repeat(grain, 1)[: 2 * height, : 2 * width]
    plane = np.clip(plane, 0, 245).astype(np.uint8)
    sensor = [rng.integers(0, 10, (height, width, 3), dtype=np.uint8) for _ in range(5)]
    patch = plane[: height // 4, : width // 4][::-1]
    for i in range(seconds * FPS):
        y, x = int((np.sin(i / 90) + 1) * height / 2), int((np.cos(i / 70) + 1) * width / 2)
        frame = plane[y : y + height, x : x + width] + sensor[i % 5]
        y, x = i * 5 % (3 * height // 4), i * 7 % (3 * width // 4)
        frame[y : y + height // 4, x : x + width // 4] = patch
        yield frame


def make_clip(cache: Path, name: str) -> Path:
    """Return the file of a clip of `CLIPS`, which is encoded if the cache lacks it."""
    seconds, height, width, suffix, codec, options = CLIPS[name]
    stem = "_".join(re.findall(r"\w+", name))
    path = cache / f"{stem}.{suffix}"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    print(f"making {path} ...", flush=True)
    unfinished = path.with_suffix(f".unfinished.{suffix}")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_type = "FRAME"  # as in the ffmpeg command; PyAV's default encodes in slices
        for image in scene(seconds, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return unfinished.rename(path)
