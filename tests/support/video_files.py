"""Write video files for tests with PyAV, and decode them in the plainest way."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving_frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Return `count` different RGB frames, (count, height, width, 3) uint8: a moving texture and a bright bar."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8)
    texture = coarse.repeat(-(-height // 8) + 1, 0).repeat(-(-width // 8) + 1, 1)
    frames = np.stack([np.roll(texture, (2 * i, 3 * i), (0, 1))[:height, :width] for i in range(count)])
    for i in range(count):
        frames[i, :, i % width] = 255
        frames[i, i // width % height] = (255, i % 256, 0)
    return frames


def write_video(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    fps: int | Fraction = 24,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container_options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    audio: bool = False,
    **codec_options: str | int,
) -> Path:
    """Encode RGB `frames`, each (H, W, 3) uint8, to `path` and return it.

    `times` are the frames' PTS in milliseconds, for a variable frame rate. `audio` adds a track of faint noise.
    `codec_options` are passed to the encoder, with hyphens for underscores (`x264_params` is "x264-params").
    """
    options = {name.replace("_", "-"): str(value) for name, value in codec_options.items()}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1  # with several threads, each run encodes other bytes
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("mp2" if Path(path).suffix == ".ts" else "aac", rate=44100) if audio else None
        count = 0
        for count, image in enumerate(frames, start=1):
            if count == 1:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[count - 1]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _add_noise(container, sound, seconds=float(count / Fraction(fps)))
    return Path(path)


def _add_noise(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    rng = np.random.default_rng(1)
    name = stream.codec_context.format.name
    for start in range(0, int(seconds * 44100), 1152):
        noise = rng.normal(0, 0.01, (2, 1152))
        noise = noise.astype(np.float32) if name.startswith("flt") else (noise * 32767).astype(np.int16)
        samples = noise if name.endswith("p") else noise.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=name, layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 44100, start, Fraction(1, 44100)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def remux(source: Path, target: Path, skip: int = 0, shift: int = 0) -> Path:
    """Copy the video packets of `source` to `target`, without the first `skip`, with PTS `shift` frames earlier.

    Frames with a negative PTS stay in the file. An mp4 hides them with an edit list.
    """
    options = {"avoid_negative_ts": "disabled"} if shift else {}
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options) as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        earlier = int(shift / stream.average_rate / stream.time_base)
        for number, packet in enumerate(reader.demux(stream)):
            if number >= skip and packet.size:
                packet.pts, packet.dts = packet.pts - earlier, packet.dts - earlier
                packet.stream = copy
                writer.mux(packet)
    return target


def set_mp4_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the display matrix (a, b, c, d) of an mp4's first track: (x, y) is shown at (ax + cy, bx + dy)."""
    a, b, c, d = (value << 16 for value in matrix)
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd") + 4
    start = header + (52 if content[header] == 1 else 40)  # version 1 has 64-bit times
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def animation(width: int, height: int, frames: int) -> bytes:
    """Return a GIF in which each frame changes one pixel, so that it takes 23 bytes at any size."""
    header = b"GIF89a" + struct.pack("<2H3B", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\x04\x0a\0\0\0" + b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return header + frame * frames + b"\x3b"


def white_png(width: int, height: int) -> bytes:
    """Return a white PNG. Unlike PIL, this does not need all pixels in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deflate = zlib.compressobj(9)
    line = b"\0" + b"\xff" * -(-width // 8)
    pixels = b"".join([*(deflate.compress(line) for _ in range(height)), deflate.flush()])
    header = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def take(indices: Sequence[int]) -> Callable[..., Sequence[int]]:
    """Return a sampler for `load_frames` that takes these frames."""
    return lambda metadata: indices


def packets(path: str | os.PathLike) -> list[tuple[int | None, bool]]:
    """Return the PTS and the keyframe flag of each video packet, in decode order."""
    with av.open(str(path)) as container:
        return [(packet.pts, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


def decode_all(path: str | os.PathLike, keep_going: bool = False) -> np.ndarray:
    """Return every frame of `path`, (n, H, W, 3) uint8. `keep_going` ignores packets that cannot be decoded."""
    frames = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
            except av.FFmpegError:
                if not keep_going:
                    raise
    return np.stack(frames)
