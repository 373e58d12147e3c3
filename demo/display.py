"""Copies of media in formats that browsers play. Only people see them: the model reads the original."""

import io
import shutil
from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import av

from ..media import Media, MediaLimits, MediaRefused
from ..media.sandbox import run_limited
from ..video_decoding_pllava import FORMATS
from ..video_images_pllava import read_image

# What current versions of Chromium, Firefox and Safari all play. ffmpeg has one name for the containers mp4 and mov.
PLAYED = {"mov": ("h264", "av1"), "webm": ("vp8", "vp9", "av1")}
PLAYED_PIXELS = ("yuv420p", "yuvj420p")
SHOWN_IMAGES = {"gif": ".gif", "jpeg": ".jpg", "png": ".png", "webp": ".webp"}
SIDE, FPS, CRF = 640, 30, 26  # of a copy: pixels of its longer side, frames a second, x264's quality


def shown_copy(media: Media, path: Path, folder: Path, limits: MediaLimits) -> str | None:
    """
    Return the file that a browser shows for a medium that passed the gate: its own, or a copy that is written into
    `folder`; None if it cannot be made within the limits.

    Args:
        path: The medium's own file.
    """
    try:
        if media.kind == "image":
            suffix, content = SHOWN_IMAGES.get(media.format), b""
            if suffix is None:
                suffix, (_, content) = ".png", run_limited(copy_image, limits=limits, file=media.file)
        else:
            info, content = run_limited(copy_video, limits=limits, file=media.file)
            suffix = info["suffix"]
    except (MediaRefused, RuntimeError):  # a decoder's own error, such as of a file that is cut off
        return None
    if not content and path.suffix.lower() == suffix:
        return str(path)
    folder.mkdir(parents=True, exist_ok=True)
    shown = folder / f"{path.stem}{suffix}"
    if content:
        shown.write_bytes(content)
    else:
        shutil.copyfile(path, shown)  # the suffix, by which browsers are told what it is, was wrong
    return str(shown)


def copy_image(file: BinaryIO) -> tuple[dict[str, Any], memoryview]:
    """Return an image as a PNG."""
    copied = io.BytesIO()
    read_image(file).save(copied, "PNG")
    return {}, copied.getbuffer()


def copy_video(file: BinaryIO) -> tuple[dict[str, Any], memoryview | bytes]:
    """Return the suffix under which browsers play a video and, if they would not play it, an mp4 that they do."""
    with av.open(file, container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"}) as container:
        if container.format.name == "gif":
            return {"suffix": ".gif"}, b""
        if is_played(container, file):
            return {"suffix": ".webm" if container.format.name.startswith("matroska") else ".mp4"}, b""
        return {"suffix": ".mp4"}, transcode(container)


def is_played(container: av.container.InputContainer, file: BinaryIO) -> bool:
    """Whether browsers play a video as it is."""
    context = container.streams.video[0].codec_context
    position = file.tell()
    file.seek(0)
    is_webm = b"webm" in file.read(64)  # ffmpeg calls Matroska and WebM the same
    file.seek(position)
    name = "webm" if is_webm else container.format.name.split(",")[0]
    return context is not None and context.name in _decoders(PLAYED.get(name, ())) and context.pix_fmt in PLAYED_PIXELS


def _decoders(codecs: tuple[str, ...]) -> set[str]:
    return {*codecs, *("libdav1d" for codec in codecs if codec == "av1")}


def transcode(container: av.container.InputContainer) -> memoryview:
    """Encode a video as H.264 in an mp4, smaller, and without its sound."""
    source, copied = container.streams.video[0], io.BytesIO()
    scale = min(1, SIDE / max(source.width, source.height))
    width, height = (max(2, round(side * scale / 2) * 2) for side in (source.width, source.height))
    rate = min(source.average_rate or Fraction(FPS), Fraction(FPS))
    with av.open(copied, "w", "mp4") as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": str(CRF), "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = 1 / rate
        for number, frame in _at_rate(container, source, rate):
            picture = frame.reformat(width, height, "yuv420p")
            picture.pts, picture.time_base = number, 1 / rate
            picture.pict_type = 0  # not that of the source
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return copied.getbuffer()


def _at_rate(container: Any, source: Any, rate: Fraction) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield frames with ascending numbers at this rate; those that come too early are dropped."""
    numbers, last, first = count(), -1, None
    for frame in container.decode(source):
        if frame.time is None:
            number = next(numbers)
        else:
            first = frame.time if first is None else first
            number = round((frame.time - first) * rate)
        if number > last:
            last = number
            yield number, frame
