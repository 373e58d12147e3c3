"""A thousand damaged files of the formats of ffmpeg and PIL: each is decoded, or raises a `VideoDecodeError`."""

import random
import sys
from pathlib import Path

import pytest
from decode_files import MAX_MEMORY, MAX_SECONDS, decode_files
from mutations import MUTATIONS
from PIL import Image
from video_files import animation, moving_frames, write_video

FILES = 1000
FRAMES = moving_frames(30)
VIDEOS = {
    "mp4": {"g": 10},
    "fragments.mp4": {"g": 10, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "front.mp4": {"g": 10, "container_options": {"movflags": "faststart"}, "audio": True},
    "mov": {"g": 10},
    "mkv": {"g": 10},
    "webm": {"codec": "libvpx-vp9", "g": 10, "deadline": "realtime", "cpu_used": 8},
    "avi": {"codec": "mpeg4", "g": 10},
    "ts": {"g": 10},
    "flv": {"g": 10},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "wmv": {"codec": "wmv2", "g": 10},
    "mpg": {"codec": "mpeg1video", "fps": 25, "g": 10},
}
# PIL can read and write all of these, unless it is limited to a few formats.
IMAGES = ("png", "jpg", "webp", "bmp", "gif", "tiff", "spider", "dds", "im", "sgi", "eps", "pcx", "ico", "tga", "ppm")
HANDMADE = {
    "qoi": b"qoif" + bytes([0, 0, 0, 64, 0, 0, 0, 48, 3, 0]) + bytes(200) + bytes(7) + b"\1",
    "wmf": b"\xd7\xcd\xc6\x9a"
    + bytes(2)
    + bytes([0, 0, 0, 0, 64, 0, 48, 0, 96, 0])
    + bytes(6)
    + b"\1\0\x09\0"
    + bytes(60),
    "long.gif": animation(64, 48, 400),
}


def seeds(folder: Path) -> dict[str, bytes]:
    """Return intact files by suffix."""
    files = {
        suffix: write_video(folder / f"seed.{suffix}", FRAMES, **options).read_bytes()
        for suffix, options in VIDEOS.items()
    }
    images = [Image.fromarray(frame) for frame in FRAMES[:3]]
    for suffix in IMAGES:
        mode = "L" if suffix == "spider" else "RGB"
        file = folder / f"still.{suffix}"
        images[0].convert(mode).save(file, format={"spider": "SPIDER"}.get(suffix))
        files[f"still.{suffix}"] = file.read_bytes()
    for suffix in ("png", "webp", "gif"):
        images[0].save(folder / f"moving.{suffix}", save_all=True, append_images=images[1:])
        files[f"moving.{suffix}"] = (folder / f"moving.{suffix}").read_bytes()
    return files | HANDMADE


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_mutated_files_are_decoded_or_raise_a_decode_error(tmp_path):
    rng, intact = random.Random(14), seeds(tmp_path)
    paths = []
    for number in range(FILES):
        name, content = rng.choice(list(intact.items()))
        mutated = rng.choice(MUTATIONS)(bytearray(content), rng, rng.choice(list(intact.values())))
        suffix = rng.choice([*VIDEOS, *IMAGES]) if rng.random() < 0.2 else name
        paths.append(tmp_path / f"{number}.{suffix}")
        paths[-1].write_bytes(mutated)
    outcomes = decode_files(paths)
    assert {str(path): outcome.raised for path, outcome in outcomes.items() if outcome.raised} == {}
    refused = sum(outcome.error is not None for outcome in outcomes.values())
    seconds = max(outcome.seconds for outcome in outcomes.values())
    memory = max(outcome.memory for outcome in outcomes.values())
    print(
        f"{len(outcomes)} files: {len(outcomes) - refused} decoded, {refused} refused; at most "
        f"{seconds:.1f} s and {memory} MiB"
    )
    assert len(outcomes) == FILES and 200 < refused < 800
    assert seconds < MAX_SECONDS and memory < MAX_MEMORY
    assert all(str(path) in outcome.error for path, outcome in outcomes.items() if outcome.error)
