"""Time how long the gate for media takes to read a clip or an image, beside reading it in the same process.

    python benchmarks/media_gate.py [--cache DIR] [--rounds N]

Each round times both once, so that other load on the machine affects both. "gate" waits before each file, as a server
does between requests: the process that reads it was forked before. "gate, at once" does not, as in a batch job.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from decode import make_clip
from PIL import Image

from pllava import PllavaVideoProcessor
from pllava.media import MediaGate, MediaLimits
from pllava.media.decoding import sample_frames
from pllava.media.sandbox import run_limited
from pllava.video_images_pllava import read_image

PAUSE = 0.2  # seconds in which the next process is forked


def do_nothing() -> None:
    run_limited(tuple, ({}, b""), limits=MediaLimits())


def make_files(cache: Path) -> dict[str, Path]:
    cache.mkdir(parents=True, exist_ok=True)
    photograph = cache / "photograph.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).resize((4032, 3024), Image.Resampling.BICUBIC).save(photograph)
    return {
        "h264 360p 10 s, one GOP": make_clip(cache, "h264 360p 10 s, one GOP"),
        "h264 360p 10 s, keyframe every 30": make_clip(cache, "h264 360p 10 s, keyframe every 30"),
        "vp9 360p 10 s, three GOPs": make_clip(cache, "vp9 360p 10 s, three GOPs"),
        "photograph, 12 megapixels": photograph,
    }


def milliseconds(read: Callable[[], object]) -> float:
    began = time.perf_counter()
    read()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "pllava" / "benchmark_clips")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    files, processor = make_files(args.cache), PllavaVideoProcessor()
    gate, began = MediaGate(allowed_local_media_path=[args.cache]), time.perf_counter()
    do_nothing()
    print(f"the first process, after the imports of the fork server: {time.perf_counter() - began:.1f} s")

    def waited(read: Callable[[], object]) -> float:
        time.sleep(PAUSE)
        return milliseconds(read)

    times = [waited(do_nothing) for _ in range(args.rounds)]
    print(f"a process that does nothing: {statistics.median(times):.1f} ms\n")
    print(f"{'file':36}{'in process':>12}{'gate':>10}{'ratio':>8}{'gate, at once':>15}{'ratio':>8}   (ms, median)")
    for name, path in files.items():
        is_image = path.suffix == ".jpg"
        direct = (lambda p=path: read_image(p)) if is_image else (lambda p=path: sample_frames(processor, str(p)))
        gated = (lambda p=path: gate.load_image(p)) if is_image else (lambda p=path: gate.load_video(p, processor))
        direct(), gated()
        rounds = [(milliseconds(direct), waited(gated), milliseconds(gated)) for _ in range(args.rounds)]
        base, patient, at_once = (statistics.median(column) for column in zip(*rounds, strict=True))
        row = f"{name:36}{base:12.1f}{patient:10.1f}{patient / base:8.2f}"
        print(f"{row}{at_once:15.1f}{at_once / base:8.2f}")


if __name__ == "__main__":
    main()
