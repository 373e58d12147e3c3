"""Draw scenes of nano's world as frames, and encode frames as mp4 files."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from .scenes import COLOURS, FPS, NUM_FRAMES, RADIUS, SIZE, Actor, Scene


def draw(scene: Scene) -> np.ndarray:
    """Draw all frames of a scene, `(NUM_FRAMES, SIZE, SIZE, 3)` uint8 RGB."""
    return np.stack([draw_frame(scene, frame) for frame in range(NUM_FRAMES)])


def draw_frame(scene: Scene, frame: int) -> np.ndarray:
    """Draw one frame of a scene, `(SIZE, SIZE, 3)` uint8 RGB."""
    image = Image.new("RGB", (SIZE, SIZE), (scene.ground,) * 3)
    canvas = ImageDraw.Draw(image)
    for actor in scene.actors:
        if (centre := actor.path[frame]) is not None:
            _draw_shape(canvas, actor, *centre)
    return np.asarray(image)


def _draw_shape(canvas: ImageDraw.ImageDraw, actor: Actor, x: float, y: float) -> None:
    fill, r, arm = COLOURS[actor.colour], RADIUS, RADIUS / 3
    if actor.shape == "ring":
        canvas.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=6)
    elif actor.shape == "square":
        canvas.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=fill)
    elif actor.shape == "triangle":
        canvas.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=fill)
    else:
        canvas.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
        canvas.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Encode `(frames, height, width, 3)` uint8 RGB as an H.264 mp4. The same frames give the same bytes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        stream.codec_context.thread_count = 1  # the frames are too small for more
        for frame in frames:
            # The encoder's own conversion to yuv420p differs by a few bytes from run to run
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=stream.pix_fmt)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
