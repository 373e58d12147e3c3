"""A results gallery with synthetic samples, as `pllava gallery` writes it, and a check of its shape."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from video_files import moving_frames, write_video

FRAMES, WIDTH, HEIGHT, SECONDS = 8, 160, 120, 4  # of the clip and its strip
STRIP, VIDEO = "frames/ab/strip.webp", "clips/ab/clip.mp4"
TASKS = ("action sequence", "direction", "counting", "object interaction", "order of events", "colour")
LETTERS = "ABCD"
OPTIONS = ("left", "right", "up", "down")
ATTACK = "<img src=x onerror=\"document.title='attacked'\"><script>document.title='attacked'</script>"
ARABIC = "يتحرك المربع الأحمر من اليسار إلى اليمين ثم يتوقف."
LONG = "The red square moves slowly from the left side of the picture to its right side. " * 60
NUMBER, TEXT = (int, float), (str, None)

# The data's shape. A dictionary is an object with these fields, a list any number of what it holds, a tuple a choice.
MAYBE_NUMBER, INTERVAL = (*NUMBER, None), ([NUMBER], None)
ROW = {
    "name": str,
    "samples": (int, None),
    "runs": [({"value": NUMBER, "interval": INTERVAL}, None)],
    "paper": [{"name": str, "value": NUMBER}],
    "chance": MAYBE_NUMBER,
}
RUN = {"name": str, "model": str, "settings": dict, "coverage": str, "problems": [str]}
DIFFERENCE = {"task": str, "samples": int, "difference": NUMBER, "interval": INTERVAL, "p": NUMBER}
STRIP_FIELDS = {"file": str, "count": int, "width": int, "height": int, "times": [MAYBE_NUMBER]}
SPAN = {"start": MAYBE_NUMBER, "end": MAYBE_NUMBER, "seconds": MAYBE_NUMBER}
CLIP = {"name": str, "strip": (STRIP_FIELDS, None), "video": TEXT, "video_start": NUMBER, "problem": TEXT} | SPAN
ANSWER = {
    "texts": [str],
    "parsed": TEXT,
    "status": str,
    "score": MAYBE_NUMBER,
    "notes": [str],
    "verdicts": [{"aspect": str, "score": MAYBE_NUMBER, "right": (bool, None), "reason": TEXT}],
    "clip": (int, None),
}
SAMPLE = {
    "id": str,
    "task": str,
    "clip": int,
    "questions": [str],
    "options": [str],
    "reference": str,
    "disagreement": NUMBER,
    "answers": [(ANSWER, None)],
}
BENCHMARK = {
    "name": str,
    "title": str,
    "measure": TEXT,
    "unit": str,
    "runs": [RUN],
    "tasks": [ROW],
    "aspects": [ROW],
    "overall": ROW,
    "comparisons": [{"first": int, "second": int, "rows": [DIFFERENCE]}],
    "clips": [CLIP],
    "samples": [SAMPLE],
}
GALLERY = {"version": int, "title": str, "created": str, "chat": TEXT, "benchmarks": [BENCHMARK]}


def check_shape(value: Any, shape: Any = GALLERY, place: str = "gallery") -> list[str]:
    """List where a value differs from a shape: ["gallery.benchmarks[0].unit is 5"]."""
    if isinstance(shape, tuple):
        found = [check_shape(value, each, place) for each in shape]
        return min(found, key=len)
    if isinstance(shape, dict) and isinstance(value, dict):
        if value.keys() != shape.keys():
            return [f"{place} has the fields {sorted(value)} instead of {sorted(shape)}"]
        return [error for name in shape for error in check_shape(value[name], shape[name], f"{place}.{name}")]
    if isinstance(shape, list) and isinstance(value, list):
        return [error for i, each in enumerate(value) for error in check_shape(each, shape[0], f"{place}[{i}]")]
    fits = value is None if shape is None else isinstance(shape, type) and type(value) is shape
    return [] if fits else [f"{place} is {value!r:.60}"]


def make_gallery(samples: int = 40, runs: int = 2, seed: int = 0, chat: str | None = None) -> dict[str, Any]:
    """Return a gallery of one benchmark. The first five samples are special: see `special_samples`."""
    return {
        "version": 1,
        "title": "nano, with and without video",
        "created": "2026-11-27T08:00:00+00:00",
        "chat": chat,
        "benchmarks": [make_benchmark("nano", samples, runs, seed)],
    }


def make_benchmark(name: str, samples: int, runs: int, seed: int = 0) -> dict[str, Any]:
    draw = random.Random(seed)
    rows = special_samples(runs)[:samples]
    rows += [make_sample(draw, index, runs) for index in range(len(rows), samples)]
    tasks = [row for task in TASKS if (row := task_row(task, [s for s in rows if s["task"] == task], runs))["samples"]]
    names = ["nano", "no video", "shuffled frames", "alpha 4"]
    return {
        "name": name,
        "title": f"{name.capitalize()}, held-out clips",
        "measure": "accuracy",
        "unit": "%",
        "runs": [
            {
                "name": names[run],
                "model": f"pllava/{names[run].replace(' ', '-')}",
                "settings": {"frames": "16", "pooling": "average-16x12x12", "prompts": "3c1f0a2b"},
                "coverage": f"100.0% ({samples} of {samples})",
                "problems": ["2 unreadable"] if run else [],
            }
            for run in range(runs)
        ],
        "tasks": tasks,
        "aspects": [],
        "overall": task_row("all", rows, runs),
        "comparisons": [compare(rows, first, second) for second in range(runs) for first in range(second)],
        "clips": [make_clip(index) for index in range(3 + samples // 3)],
        "samples": rows,
    }


def make_sample(draw: random.Random, index: int, runs: int) -> dict[str, Any]:
    reference = draw.choice(OPTIONS)
    answers = [make_answer(draw, reference) if draw.random() > 0.02 else None for _ in range(runs)]
    statuses = [answer and answer["status"] for answer in answers]
    return {
        "id": f"{index:05d}",
        "task": TASKS[index % len(TASKS)],
        "clip": 2 + index // 3,
        "questions": [
            f"Which way does the {draw.choice(('red', 'blue', 'green'))} square go, seen from frame {index}?"
        ],
        "options": list(OPTIONS),
        "reference": reference,
        "disagreement": 0 if len(set(statuses)) == 1 else 1 + statuses.count("right") / 10,
        "answers": answers,
    }


def make_answer(draw: random.Random, reference: str) -> dict[str, Any]:
    status = draw.choices(("right", "wrong", "unreadable"), (6, 3, 1))[0]
    chosen = {
        "right": reference,
        "wrong": draw.choice([option for option in OPTIONS if option != reference]),
        "unreadable": None,
    }[status]
    return {
        "texts": [
            f"({LETTERS[OPTIONS.index(chosen)]}) {chosen}" if chosen else "The answer is not clear from the frames."
        ],
        "parsed": f"option ({LETTERS[OPTIONS.index(chosen)]})" if chosen else "no single option named",
        "status": status,
        "score": float(status == "right"),
        "notes": ["no option is named"] if chosen is None else [],
        "verdicts": [],
        "clip": None,
    }


def special_samples(runs: int) -> list[dict[str, Any]]:
    """Markup as an answer; right-to-left text; a long answer; two questions with a judge's verdicts; no answer."""

    def answer(*texts: str, status: str = "wrong", **fields: Any) -> dict[str, Any]:
        empty = {"parsed": None, "score": 0.0, "notes": [], "verdicts": [], "clip": None}
        return {"texts": list(texts), "status": status} | empty | fields

    def sample(name: str, task: str, question: str, reference: str, *answers: dict | None, **fields: Any) -> dict:
        given = [*answers, *(answer(reference, status="right", score=1.0) for _ in range(runs))][:runs]
        common = {"id": name, "task": task, "clip": 0, "questions": [question], "options": [], "reference": reference}
        return common | {"disagreement": 1.5, "answers": given} | fields

    verdicts = [
        {"aspect": "correctness", "score": 4.0, "right": None, "reason": "Both name the square and its way."},
        {"aspect": "match", "score": None, "right": True, "reason": None},
    ]
    judged = answer("It goes right.", "To the right.", status="right", score=0.8, verdicts=verdicts)
    questions = ["Where does it go?", "In which direction does the square move?"]
    cut = answer("", status="unreadable", notes=["The clip could not be decoded: 3 of 16 frames are damaged."])
    return [
        sample("attack", "colour", f"What colour? {ATTACK}", "red", answer(ATTACK, parsed=ATTACK)),
        sample("arabic", "direction", "إلى أين يتحرك المربع؟", ARABIC, answer(ARABIC, status="right", score=1.0)),
        sample("long", "counting", "Describe the video in detail.", LONG[:400], answer(LONG, notes=["cut at 1024"])),
        sample("judged", "direction", "", "It moves to the right.", judged, questions=questions),
        sample("none", "order of events", "What comes first?", "the square", cut, None, clip=1),
    ]


def make_clip(index: int) -> dict[str, Any]:
    """Clip 0 has a video and its strip; clip 1 neither, since it is damaged; all others have the strip."""
    times = [round(frame * SECONDS / FRAMES, 3) for frame in range(FRAMES)]
    strip = {"file": STRIP, "count": FRAMES, "width": WIDTH, "height": HEIGHT, "times": times}
    return {
        "name": f"clips/{index:05d}.mp4",
        "start": None,
        "end": None,
        "seconds": float(SECONDS) if index < 2 else 4.0 + index % 90,
        "strip": None if index == 1 else strip,
        "video": None if index else VIDEO,
        "video_start": 0.0,
        "problem": "The clip is damaged: no frame could be decoded." if index == 1 else None,
    }


def task_row(name: str, samples: Iterable[dict[str, Any]], runs: int) -> dict[str, Any]:
    samples = list(samples)
    values = []
    for run in range(runs):
        scores = [100.0 * (s["answers"][run]["status"] == "right") for s in samples if s["answers"][run]]
        mean, half = (float(np.mean(scores)), 196 * 0.5 / len(scores) ** 0.5) if scores else (0.0, 0.0)
        values.append(
            {"value": mean, "interval": [max(0.0, mean - half), min(100.0, mean + half)]} if scores else None
        )
    paper = [
        {"name": "PLLaVA 7B", "value": 46.6},
        {"name": "PLLaVA 34B", "value": 58.1},
        {"name": "GPT-4V", "value": 43.5},
    ]
    return {"name": name, "samples": len(samples), "runs": values, "paper": paper, "chance": 25.0}


def compare(samples: list[dict[str, Any]], first: int, second: int) -> dict[str, Any]:
    rows = []
    for task in (*TASKS, "all"):
        both = [
            s["answers"]
            for s in samples
            if task in (s["task"], "all") and s["answers"][first] and s["answers"][second]
        ]
        if both:
            changes = [100.0 * ((a[second]["status"] == "right") - (a[first]["status"] == "right")) for a in both]
            mean, half = float(np.mean(changes)), 196 * float(np.std(changes)) / 100 / len(changes) ** 0.5 + 0.1
            interval, p = [mean - half, mean + half], 0.0004 if abs(mean) > half else 0.42
            rows.append({"task": task, "samples": len(both), "difference": mean, "interval": interval, "p": p})
    return {"first": first, "second": second, "rows": rows}


def write_gallery(folder: Path, page: Path, gallery: dict[str, Any]) -> Path:
    """Write a gallery with its page, one strip and one H.264 clip, and return the page's path."""
    for file in ("data/gallery.js", STRIP, VIDEO):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / "data/gallery.js").write_text(f"window.PLLAVA_GALLERY = {json.dumps(gallery)};\n", encoding="ascii")
    frames = moving_frames(SECONDS * 10, HEIGHT, WIDTH)
    Image.fromarray(np.hstack(frames[:: len(frames) // FRAMES][:FRAMES])).save(folder / STRIP)
    write_video(folder / VIDEO, frames, fps=10)
    return Path(shutil.copy(page, folder / "index.html"))
