"""Read images with PIL: still images, and animated images and folders of images as videos."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.video_utils import VideoMetadata

from .video_frames_pllava import CollectorFactory, Frames
from .video_source_pllava import MAX_PIXELS, Source, VideoSource, resolve

IMAGE_ADVICE = "Give a whole image file (bmp, gif, jpeg, png or webp)."
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # PIL's other formats include EPS, which is executed
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")  # in a folder that is a video
IMAGES_FPS = 3.0  # images have no frame rate; MVBench's folders hold three frames per second


@dataclass
class ImagesMetadata(VideoMetadata):
    """Metadata of images. Where the files are numbered from 1, a sub-clip's seconds count from number 0."""

    numbered_from: int = 0


def read_image(image: VideoSource) -> Image.Image:
    """Read a still image: a path, URL, bytes or binary file object. Returns RGB, rotated as its EXIF data says.

    Raises:
        VideoDecodeError: if the file does not exist, is not an image, is broken, or exceeds a limit of
            `video_source_pllava.py`.
    """
    source = resolve(image, IMAGE_ADVICE)
    with source.reading():
        try:
            opened = open_image(source)
        except UnidentifiedImageError:
            raise source.error("it is not an image of these formats") from None
        with opened:
            return _as_rgb(opened)


def load_image_folder(source: Source, new_collector: CollectorFactory) -> Frames:
    """Read a folder of images, in natural order, as a video of `IMAGES_FPS`."""

    def natural(name: str) -> list[int | str]:  # 2.jpg before 10.jpg
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    names = sorted((name for name in os.listdir(source.content) if name.lower().endswith(IMAGE_SUFFIXES)), key=natural)
    if not names:
        raise source.error(f"the folder holds no images ({', '.join(IMAGE_SUFFIXES)})")
    numbers = re.findall(r"\d+", names[0])
    numbered_from = 1 if numbers and int(numbers[-1]) == 1 else 0

    def read(index: int) -> Image.Image:
        return read_image(os.path.join(source.content, names[index]))

    return _load_images(source, new_collector, len(names), read, numbered_from)


def load_image_file(source: Source, new_collector: CollectorFactory) -> Frames | None:
    """Read an image file (a still image, or an animated WebP or PNG) as a video; `None` if it is not an image."""
    try:
        image = open_image(source)
    except UnidentifiedImageError:
        return None

    def read(index: int) -> Image.Image:
        image.seek(index)
        source.check_size(*image.size)
        return _as_rgb(image)

    with image:
        return _load_images(source, new_collector, getattr(image, "n_frames", 1), read)


def _load_images(
    source: Source,
    new_collector: CollectorFactory,
    count: int,
    read: Callable[[int], Image.Image],
    numbered_from: int = 0,
) -> Frames:
    first = read(0)
    size, seconds = first.size, count / IMAGES_FPS
    collector = new_collector(ImagesMetadata(count, IMAGES_FPS, *size, seconds, "pil", numbered_from=numbered_from))
    for index in sorted(collector.rows):  # PIL decodes an animation from its beginning to go back
        image = read(index) if index else first
        if image.size != size:
            raise source.error(f"image {index} is {image.size}, the first is {size}")
        collector.add(index, np.array(image))
    return collector.result()


def open_image(source: Source) -> Image.Image:
    """Open an image, or an animation, and check its size. `UnidentifiedImageError` if it is neither."""
    file = source.content if isinstance(source.content, str) else source.open()
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:  # PIL's own limit is higher
        raise source.error(f"it has more than {MAX_PIXELS:,} pixels") from error
    source.check_size(*image.size)
    source.check_work(getattr(image, "n_frames", 1), *image.size)
    return image


def _as_rgb(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")
