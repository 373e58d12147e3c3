"""
Run nano on the clip of `python -m pllava.nano demo` and write docs/figures/demo.gif: the clip, and beside it questions
with nano's answers by greedy decoding. A wrong answer is red.

    python docs/draw_demo.py
"""

import tempfile
from pathlib import Path
from textwrap import wrap

import matplotlib
import numpy as np
from figure_style import DARK, FIGURES
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from pllava import NANO
from pllava.nano.demo import demo_clip
from pllava.nano.world import drawing

SEED = 12  # of `python -m pllava.nano demo`
SCALE = 2  # pixels of the file for each displayed pixel
WIDTH, HEIGHT, MARGIN, CLIP_SIDE, LINE = 680, 398, 18, 288, 20
SHOWN = ("bounces", "change", "direction", "speed", "position", "count")  # types of questions, beside the caption
LOOPS = 3
PAUSE = 10  # frames from one question to the next
FRAME_MS, END_MS = 120, 4000  # how long a frame is shown, and the last one
FONT_SIZE = 14
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def main() -> None:
    scene, rows = demo_clip(SEED)
    frames = drawing.draw(scene)
    caption, *shown = (next(row for row in rows if row["type"] == kind) for kind in ("caption", *SHOWN))
    answers = ask(frames, [row["question"] for row in (caption, *shown)])
    for row, answer in zip((caption, *shown), answers, strict=True):
        print(f"{row['question']} {answer}" + (f" (wrong: {row['answer']})" if answer != row["answer"] else ""))

    pictures = []
    for number in range(LOOPS * len(frames)):
        answered = number / PAUSE - 0.5
        pictures.append(draw(frames[number % len(frames)], [caption, *shown], answers, answered))
    palette = pictures[-1].quantize(128, dither=Image.Dither.NONE)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    FIGURES.mkdir(exist_ok=True)
    file = FIGURES / "demo.gif"
    durations = [FRAME_MS] * (len(pictures) - 1) + [END_MS]
    pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    print(f"Wrote {file}, {file.stat().st_size / 1000:.0f} kB")


def ask(frames: np.ndarray, texts: list[str]) -> list[str]:
    """Return nano's answers about a clip, which it reads from an mp4 file."""
    model, processor = AutoModelForImageTextToText.from_pretrained(NANO), AutoProcessor.from_pretrained(NANO)
    pipe = pipeline("video-text-to-text", model, processor=processor)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "demo.mp4"
        drawing.write_clip(file, frames)
        answers = pipe([str(file)] * len(texts), texts, batch_size=len(texts), generate_kwargs={"do_sample": False})
    return [answer[0]["generated_text"].strip() for answer in answers]


def draw(frame: np.ndarray, rows: list[dict[str, str]], answers: list[str], answered: float) -> Image.Image:
    """Draw one frame with the questions beside it: those up to number `answered` have their answers, too."""
    picture = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), DARK.page)
    clip = Image.fromarray(frame).resize((SCALE * CLIP_SIDE,) * 2, Image.Resampling.NEAREST)
    picture.paste(clip, (SCALE * MARGIN, SCALE * MARGIN))
    canvas = ImageDraw.Draw(picture)
    # The caption stands below the clip, the other questions to its right
    left, pitch = 2 * MARGIN + CLIP_SIDE, CLIP_SIDE / (len(rows) - 1)
    places = [(MARGIN, MARGIN + CLIP_SIDE + 14)] + [(left, MARGIN + pitch * row) for row in range(len(rows) - 1)]
    for number, (row, answer, (x, y)) in enumerate(zip(rows, answers, places, strict=True)):
        if answered >= number - 0.5:
            write(canvas, x, y, row["question"], DARK.muted)
        if answered >= number:
            for line, part in enumerate(wrap(answer, 80), start=1):
                write(canvas, x, y + LINE * line, part, DARK.text if answer == row["answer"] else "#ff7b72", "-Bold")
    return picture


def write(canvas: ImageDraw.ImageDraw, x: float, y: float, content: str, color: str, style: str = "") -> None:
    font = ImageFont.truetype(FONTS / f"DejaVuSans{style}.ttf", SCALE * FONT_SIZE)
    canvas.text((SCALE * x, SCALE * y), content, fill=color, font=font)


if __name__ == "__main__":
    main()
