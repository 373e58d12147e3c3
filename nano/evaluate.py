"""
Held-out accuracy of nano for each type of question, with the controls that show whether it needs the video at all.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from .. import model_path
from ..video_decoding_pllava import load_frames
from . import world
from .card import MAIN, NO_VIDEO, SHUFFLED, write_card
from .data import read_questions, render

MAX_NEW_TOKENS = 64
# How many answers a question of each type allows; they are equally frequent, so a guess is right once in as many.
OPTIONS = {
    "direction": 2,
    "order": 2,
    "bounces": len(world.NUMBERS),
    "change": 2,
    "speed": 2,
    "colour": len(world.COLOURS),
    "shape": len(world.SHAPES),
    "count": len(world.NUMBERS),
    "position": len(world.ROWS) * len(world.COLUMNS),
}
Row = dict[str, Any]


def evaluate(model_name: str, clips: int, seed: int) -> None:
    """
    Asks one question of each type about each of `clips` held-out clips, and writes `evaluation.json` and the card into
    the checkpoint's folder.

    The same questions are asked through `generate` in batches of 16 and one by one, and through the
    "video-text-to-text" pipeline; then without a video, and with the frames in a random order.
    """
    path = Path(model_path(model_name))
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    with TemporaryDirectory() as directory:
        render(Path(directory), clips, seed)
        rows = one_of_each_type(read_questions(Path(directory)))
        ways: dict[str, Callable[[], Iterator[str]]] = {
            MAIN: lambda: generate(model, processor, rows, 16),
            "generate, one by one": lambda: generate(model, processor, rows, 1),
            "video-text-to-text pipeline": lambda: ask_pipeline(model, processor, rows),
            NO_VIDEO: lambda: generate(model, processor, rows, 16, see=None),
            SHUFFLED: lambda: generate(model, processor, rows, 16, see=shuffled),
        }
        seconds, accuracies = {}, {}
        for name, answers in ways.items():
            start = time.perf_counter()
            progress = tqdm(answers(), total=len(rows), desc=name, unit="question")
            accuracies[name] = accuracy(rows, [answer.strip() for answer in progress])
            seconds[name] = round(time.perf_counter() - start, 1)
    results = {
        "clips": clips,
        "seed": seed,
        "questions": {kind: sum(row["type"] == kind for row in rows) for kind in (*world.TYPES, "caption")},
        "clips_with_two_moving_shapes": sum(
            len(world.clip(seed, index)[0].acting(*world.MOTIONS)) > 1 for index in range(clips)
        ),
        "chance": {kind: 100 / options for kind, options in OPTIONS.items()},
        "accuracy": accuracies,
        "seconds": seconds,
    }
    (path / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_card(path, results)
    print(json.dumps(results, indent=2))


def one_of_each_type(rows: list[Row]) -> list[Row]:
    """The first of each clip's questions of a type, which are in a random order: a clip counts once for each type."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((row["video"], row["type"]), row)
    return list(first.values())


def frames_of(video: str, processor: Any) -> np.ndarray:
    """The frames of a clip that the model is shown, `(frames, height, width, 3)` uint8."""
    return load_frames(video, processor.video_processor.sample_frames)[0]


def shuffled(video: str, processor: Any) -> np.ndarray:
    """The clip's frames in a random order, by the clip's number: the same for each question, and in each run."""
    frames = frames_of(video, processor)
    return frames[np.random.default_rng(int(Path(video).stem)).permutation(len(frames))]


@torch.inference_mode()
def generate(
    model: Any, processor: Any, rows: list[Row], batch_size: int, see: Callable | None = frames_of
) -> Iterator[str]:
    """Greedy answers in the order of `rows`; `see` gives the frames of a clip, None asks without a video."""
    for start in range(0, len(rows), batch_size):
        chats = []
        for row in rows[start : start + batch_size]:
            media = [] if see is None else [{"type": "video", "video": see(row["video"], processor)}]
            chats.append([{"role": "user", "content": [*media, {"type": "text", "text": row["question"]}]}])
        inputs = processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "do_sample_frames": False},
        )
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        yield from processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def ask_pipeline(model: Any, processor: Any, rows: list[Row]) -> Iterator[str]:
    pipe = pipeline("video-text-to-text", model, processor=processor)
    stream = ({"video": row["video"], "text": row["question"]} for row in rows)
    for answer in pipe(stream, batch_size=16, max_new_tokens=MAX_NEW_TOKENS, generate_kwargs={"do_sample": False}):
        yield answer[0]["generated_text"]


def accuracy(rows: list[Row], answers: list[str]) -> dict[str, float]:
    """Per cent of exact answers for each type, and "mean": over the types of question, captions apart."""
    right = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        right[row["type"]].append(answer == row["answer"])
    percent = {kind: 100 * float(np.mean(right[kind])) for kind in (*world.TYPES, "caption") if kind in right}
    kinds = [kind for kind in world.TYPES if kind in percent]
    return {**percent, "mean": float(np.mean([percent[kind] for kind in kinds]))}
