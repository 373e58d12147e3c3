"""Copies of media in formats that browsers play. Only people see them: the model reads the original."""

import io
import shutil
from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from ..media import Media, MediaLimits, MediaRefused
from ..media.browsers import played_suffix
from ..media.sandbox import run_limited
from ..video_decoding_pllava import FORMATS
from ..video_frames_pllava import as_displayed
from ..video_images_pllava import read_image

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
    if suffix := played_suffix(file):
        return {"suffix": suffix}, b""
    with av.open(file, container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"}) as container:
        return {"suffix": ".mp4"}, transcode(container)


def transcode(container: av.container.InputContainer) -> memoryview:
    """Encode a video as H.264 in an mp4, smaller, upright, and without its sound."""
    source, copied = container.streams.video[0], io.BytesIO()
    scale = min(1, SIDE / max(source.width, source.height))
    size = [max(2, round(side * scale / 2) * 2) for side in (source.width, source.height)]
    rate = min(source.average_rate or Fraction(FPS), Fraction(FPS))
    with av.open(copied, "w", "mp4") as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": str(CRF), "preset": "ultrafast"})
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = 1 / rate
        for number, frame in _at_rate(container, source, rate):
            image = as_displayed(frame.reformat(*size, "rgb24").to_ndarray(), frame)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            if not stream.codec_context.is_open:
                stream.width, stream.height = picture.width, picture.height
            picture.pts, picture.time_base = number, 1 / rate
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
