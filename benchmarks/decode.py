"""Time how long it takes to read 16 frames of a video, beside transformers' PyAV reader, torchcodec and decord.

    python benchmarks/decode.py [--cache DIR] [--rounds N] [CLIP ...]

The first run encodes the clips, in a few minutes, and keeps them in the cache. Each round times every reader once, so
that other load on the machine affects all of them. Our frames are compared bit for bit with a full decode. torchcodec
and decord are timed if they can be imported.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from transformers.video_utils import VideoMetadata, load_video

from pllava.video_decoding_pllava import load_frames

FRAMES = 16
FPS = 30


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


X264 = {"preset": "veryfast", "x264-params": "scenecut=0"}
VP9 = {"deadline": "realtime", "cpu-used": "6", "b": "1000000", "g": "128"}
# name: seconds, height, width, file suffix, codec, codec options
CLIPS = {
    "h264 1080p 120 s, keyframe every 250": (120, 1080, 1920, "mp4", "libx264", {**X264, "g": "250"}),
    "h264 360p 10 s, x264's defaults": (10, 360, 640, "mp4", "libx264", {}),
    "h264 360p 10 s, one GOP": (10, 360, 640, "mp4", "libx264", {**X264, "g": "600"}),
    "h264 360p 10 s, one GOP, two slices": (10, 360, 640, "mp4", "libx264", {**X264, "g": "600", "slices": "2"}),
    "h264 360p 10 s, three GOPs": (10, 360, 640, "mp4", "libx264", {**X264, "g": "100"}),
    "h264 360p 10 s, keyframe every 30": (10, 360, 640, "mp4", "libx264", {**X264, "g": "30"}),
    "h265 360p 10 s, three GOPs": (10, 360, 640, "mp4", "libx265", {"preset": "veryfast", "g": "100"}),
    "vp9 360p 10 s, three GOPs": (10, 360, 640, "webm", "libvpx-vp9", VP9),
    "mpeg4 360p 10 s, keyframe every 12": (10, 360, 640, "avi", "mpeg4", {"b": "1500000", "g": "12"}),
}


def make_clip(cache: Path, name: str) -> Path:
    seconds, height, width, suffix, codec, options = CLIPS[name]
    path = cache / f"{name.replace(' ', '_').replace(',', '')}.{suffix}"
    if path.exists():
        return path
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


def segment_midpoints(metadata: VideoMetadata, **_) -> list[int]:
    segment = (metadata.total_num_frames - 1) / FRAMES
    return [int(segment / 2 + np.round(segment * i)) for i in range(FRAMES)]


def ours(path: str) -> np.ndarray:
    return load_frames(path, segment_midpoints)[0]


def transformers_pyav(path: str) -> np.ndarray:
    """Read with transformers' own reader, which needs a frame count in the header: webm and mkv have none."""
    return load_video(path, sample_indices_fn=segment_midpoints, backend="pyav")[0]


def torchcodec_reader(threads: int) -> Callable[[str], np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    def read(path: str) -> np.ndarray:
        decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=threads)
        metadata = VideoMetadata(total_num_frames=len(decoder))
        return decoder.get_frames_at(indices=segment_midpoints(metadata)).data.numpy()

    return read


def decord_reader() -> Callable[[str], np.ndarray]:
    import decord

    def read(path: str) -> np.ndarray:
        reader = decord.VideoReader(path)
        return reader.get_batch(segment_midpoints(VideoMetadata(total_num_frames=len(reader)))).asnumpy()

    return read


def available_readers() -> dict[str, Callable[[str], np.ndarray]]:
    readers = {"ours": ours, "transformers pyav": transformers_pyav}
    optional = {
        "torchcodec": lambda: torchcodec_reader(threads=1),  # the default
        "torchcodec, all threads": lambda: torchcodec_reader(threads=0),
        "decord": decord_reader,
    }
    for name, make in optional.items():
        try:
            readers[name] = make()
        except (ImportError, OSError, RuntimeError) as error:  # ffmpeg's shared libraries may be missing
            print(f"{name} cannot be imported: {str(error).splitlines()[0]}")
    return readers


def equals_full_decode(path: Path) -> bool:
    frames, metadata = load_frames(path, segment_midpoints)
    wanted = dict.fromkeys(metadata.frames_indices)
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                wanted[i] = frame.to_ndarray(format="rgb24")
    return np.array_equal(frames, np.stack([wanted[i] for i in metadata.frames_indices]))


def time_readers(readers: dict[str, Callable], path: Path, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each round by reader, without the readers that cannot read the clip."""
    times: dict[str, list[float]] = {}
    for name, read in readers.items():  # also warms the file cache
        try:
            if len(read(str(path))) == FRAMES:
                times[name] = []
        except Exception as error:  # a reader may fail in any way; the others are timed
            print(f"  {name} fails: {type(error).__name__}: {str(error).splitlines()[0]}")
    for _ in range(rounds):
        for name in times:
            started = time.perf_counter()
            readers[name](str(path))
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", metavar="CLIP", help="parts of the names of clips; all by default")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "pllava-benchmarks")
    parser.add_argument("--rounds", type=int, default=9, help="of a ten-second clip; a third of them for the long one")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    av.logging.set_level(None)
    readers = available_readers()
    print(f"{FRAMES} frames at segment midpoints, {os.cpu_count()} cores, PyAV {av.__version__}")
    for name in CLIPS:
        if args.clips and not any(part in name for part in args.clips):
            continue
        path = make_clip(args.cache, name)
        rounds = args.rounds if CLIPS[name][0] <= 10 else max(1, args.rounds // 3)
        print(f"\n{name} ({path.stat().st_size * 8 / CLIPS[name][0] / 1e6:.1f} Mbit/s), {rounds} rounds")
        times = time_readers(readers, path, rounds)
        own = statistics.median(times["ours"])
        for reader, values in times.items():
            median = statistics.median(values)
            print(f"  {reader:24} {median:8.1f} ms (best {min(values):8.1f})   ours / this: {own / median:.2f}")
        print(f"  equal to a full decode, bit for bit: {'yes' if equals_full_decode(path) else 'NO'}")


if __name__ == "__main__":
    main()
