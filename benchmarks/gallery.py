"""
Measure the export of a gallery: its time, again when all frames are there, and its size. Two runs answer 4,000
questions of 20 tasks about 50 clips of 640 x 360 pixels. The peer reads the same frames of each clip once, in one
process, and does nothing with them.

    python benchmarks/gallery.py
"""

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import typer
from tqdm import tqdm

from pllava.eval import Sample, Variant, evaluate, load_benchmark, load_prompts
from pllava.eval.models.answerer import Answer, Timing, Work
from pllava.files import to_lines
from pllava.gallery.exporting import export_gallery
from pllava.video_decoding_pllava import load_frames
from pllava.video_sampling_pllava import sample_frames

TASKS, OPTIONS, FRAMES = 20, ("ran", "sat", "fell", "left"), 16
DECLARED = "title: Synthetic\nread: rows\nscore: multiple_choice\ntasks: {all: {file: questions.jsonl}}\n"


class Guesser:
    """Answers most questions correctly."""

    def __init__(self, name: str):
        self.name, self.timing = name, Timing()

    def describe(self, variant: Variant) -> dict[str, Any]:
        return {"model": self.name, "num_frames": FRAMES, "sampling": "uniform", "pooling": "average-16x12x12"}

    def answers(self, work: Work) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]:
        draw = random.Random(self.name)
        for sample in work.samples:
            chosen = sample.reference if draw.random() < 0.6 else draw.choice(sample.options)
            text = (
                f"({'ABCD'[sample.options.index(chosen)]}) {chosen}, since that is what the person in the clip does."
            )
            yield work.variants[0], [(sample, Answer((text,)))]


def write_clip(file: Path, seed: int, seconds: int = 6, fps: int = 25) -> None:
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (45, 80, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "g": "50"})
        stream.height, stream.width, stream.pix_fmt = *texture.shape[:2], "yuv420p"
        for number in range(seconds * fps):
            frame = np.ascontiguousarray(np.roll(texture, (number, 3 * number), (0, 1)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def main(samples: int = 4000, clips: int = 50) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{number:03d}.mp4" for number in range(clips)]
        for number, file in enumerate(tqdm(files, desc="Writing clips", unit="clip")):
            write_clip(file, number)
        rows = [
            {
                "video": files[number % clips].name,
                "type": f"task {number % TASKS}",
                "question": f"Question {number}: what does the person in the clip do after the first event?",
                "answer": OPTIONS[number % 3],
                "options": list(OPTIONS),
            }
            for number in range(samples)
        ]
        (folder / "questions.jsonl").write_text(to_lines(rows), encoding="utf-8")
        (folder / "synthetic.yaml").write_text(DECLARED, encoding="utf-8")
        benchmark = load_benchmark(str(folder / "synthetic.yaml"), load_prompts())
        results = [folder / "first", folder / "second"]
        for out in results:
            evaluate(benchmark, Guesser(out.name), str(folder), out)

        began = time.perf_counter()
        for file in files:
            load_frames(str(file), partial(sample_frames, num_frames=FRAMES))
        peer = time.perf_counter() - began
        times = []
        for _ in range(2):
            began = time.perf_counter()
            export = export_gallery(results, folder / "gallery")
            times.append(time.perf_counter() - began)
        data = (folder / "gallery" / "data" / "gallery.js").stat().st_size
    first, again = times
    print(f"{export.samples:,} samples, {export.runs} runs, {export.clips} clips")
    print(f"export           {first:6.1f} s, {first / peer:.2f} of reading the frames in one process ({peer:.1f} s)")
    print(f"export again     {again:6.1f} s, {again / peer:.2f}")
    print(
        f"size             {export.size / 1e6:6.1f} MB in {export.files} files, of which {data / 1e6:.1f} MB are data"
    )


if __name__ == "__main__":
    typer.run(main)
