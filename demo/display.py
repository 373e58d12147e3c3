"""Copies of media in formats that browsers play. Only people see them: the model reads the original."""

import io
from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import av
from PIL import Image, ImageOps

from ..media.limits import MediaLimits, MediaRefused
from ..media.sandbox import ProcessEnded, run_limited
from ..video_decoding_pllava import FORMATS
from ..video_images_pllava import IMAGE_FORMATS

# What current versions of Chromium, Firefox and Safari all play. ffmpeg has one name for the containers mp4 and mov.
PLAYED = {"mov": ("h264", "av1"), "webm": ("vp8", "vp9", "av1")}
PLAYED_PIXELS = ("yuv420p", "yuvj420p")
SHOWN_IMAGES = {"GIF": ".gif", "JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
SIDE, FPS, CRF = 640, 30, 26  # of a copy: pixels of its longer side, frames a second, x264's quality


def is_image(file: BinaryIO) -> bool:
    """Whether a file is a still image; an animation is a video. Only its header is read."""
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            return getattr(image, "n_frames", 1) == 1
    except Exception:  # PIL's plugins raise nearly every kind of exception for broken files
        return False
    finally:
        file.seek(0)


def inspect(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """
    Return the kind of a file ("video" or "image"), the suffix under which a browser shows it and, if it would not show
    it, the bytes of a copy that it does.
    """
    kind = "image" if is_image(file) else "video"
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            if suffix := SHOWN_IMAGES.get(image.format):
                return {"kind": kind, "suffix": suffix}, b""
            copied = io.BytesIO()
            ImageOps.exif_transpose(image).convert("RGB").save(copied, "PNG")
            return {"kind": kind, "suffix": ".png"}, copied.getbuffer()
    except (OSError, ValueError, SyntaxError):
        file.seek(0)
    with av.open(file, container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"}) as container:
        if not container.streams.video:
            raise MediaRefused("it has no video in it")
        if is_played(container, file):
            return {"kind": kind, "suffix": ".webm" if container.format.name.startswith("matroska") else ".mp4"}, b""
        return {"kind": kind, "suffix": ".mp4"}, transcode(container)


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


def describe(path: Path, folder: Path, limits: MediaLimits) -> tuple[str, str | None]:
    """
    Return the kind of a file that passed the gate, and the file that a browser shows: the same, or a copy that is
    written into `folder`; None if making the copy exceeds a limit.

    Raises:
        MediaRefused: if it is neither an image nor a video.
    """
    with path.open("rb") as file:
        try:
            info, content = run_limited(inspect, limits=limits, file=file)
        except ProcessEnded:
            file.seek(0)
            return ("image" if is_image(file) else "video"), None
        except (MediaRefused, RuntimeError) as error:
            raise MediaRefused(f"{path.name} is neither a video nor an image that can be read here.") from error
    if not content and path.suffix.lower() == info["suffix"]:
        return info["kind"], str(path)
    folder.mkdir(parents=True, exist_ok=True)
    shown = folder / f"{path.stem}{info['suffix']}"
    shown.write_bytes(content or path.read_bytes())
    return info["kind"], str(shown)
