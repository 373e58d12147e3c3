"""Small benchmarks in their original layouts, with clips of nano's synthetic scenes."""

import json
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from video_files import write_video

from pllava.eval import Benchmark, load_benchmark, load_prompts
from pllava.nano.world import drawing, questions, scenes

SCENES = 4


def benchmark(name: str) -> Benchmark:
    return load_benchmark(name, load_prompts())


def scene(index: int) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Return the frames of scene `index % SCENES` and the questions about it, the caption last."""
    drawn, asked = questions.clip(seed=7, index=index % SCENES)
    return drawing.draw(drawn), asked


class Clips:
    """Encode each scene in each format once, and link or copy it afterwards."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, index: int) -> Path:
        """Write a scene as a clip, in the format of the suffix; without a suffix, as a folder of frames."""
        cached = self.folder / f"{index % SCENES}{path.suffix}"
        if not cached.exists():
            self._encode(cached, scene(index)[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        if cached.is_dir():
            shutil.copytree(cached, path, dirs_exist_ok=True)
        elif not path.exists():
            os.link(cached, path)
        return path

    def _encode(self, path: Path, frames: np.ndarray) -> None:
        if path.suffix == ".gif":
            images = [Image.fromarray(frame) for frame in frames]
            images[0].save(path, save_all=True, append_images=images[1:], duration=1000 // scenes.FPS, loop=0)
        elif path.suffix == ".webm":
            write_video(path, frames, fps=scenes.FPS, codec="libvpx-vp9", deadline="realtime")
        elif path.suffix == ".avi":
            write_video(path, frames, fps=scenes.FPS, codec="mpeg4", qscale=2)
        elif path.suffix:
            write_video(path, frames, fps=scenes.FPS)
        else:
            path.mkdir()
            for number, frame in enumerate(frames, start=1):
                Image.fromarray(frame).save(path / f"{number:05d}.jpg")


def write_json(file: Path, rows: Sequence[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))


def write_mvbench(data: Path, per_task: int = 2) -> Path:
    """Write all 20 tasks. Each task's last clip is webm; Episodic Reasoning has folders of frames."""
    root, clips, rng = data / "MVBench", Clips(data / "made"), random.Random(0)
    for number, (name, task) in enumerate(benchmark("mvbench").tasks.items()):
        rows = []
        for index in range(per_task):
            suffix = "" if name == "Episodic Reasoning" else ".webm" if index == per_task - 1 else ".mp4"
            video = clips.write(root / task["media"] / f"clip_{number}_{index}{suffix}", number + index)
            drawn, _ = questions.clip(seed=7, index=(number + index) % SCENES)
            shapes = [actor.name for actor in drawn.actors]
            answer = rng.choice(shapes)
            others = [f"{colour} {shape}" for colour in scenes.COLOURS for shape in scenes.SHAPES]
            candidates = [answer, *rng.sample([other for other in others if other not in shapes], 3)]
            rng.shuffle(candidates)
            row = {"video": video.name, "question": "Which is there?", "candidates": candidates, "answer": answer}
            rows.append({**row, "start": 0.5, "end": 3.2} if task.get("sub_clips") else row)
        write_json(root / task["file"], rows)
    return root


def write_vcgbench(data: Path, per_file: int = 3) -> Path:
    root, clips = data / "VCGBench", Clips(data / "made")
    for name, task in benchmark("vcgbench").tasks.items():
        rows = []
        for index in range(per_file):
            clips.write(root / task["media"] / f"v_{index}{('.mp4', '.mkv')[index % 2]}", index)
            caption = scene(index)[1][-1]
            row = {"video_name": f"v_{index}", "A": caption["answer"]}
            questions = {"Q1": "Describe the video.", "Q2": "What can be seen?"}
            rows.append({**row, **(questions if name == "consistency_qa" else {"Q": "Describe the video."})})
        write_json(root / task["file"], rows)
    return root


VIDEOQA_FILES = {"msvd_qa": ".avi", "msrvtt_qa": ".mp4", "activitynet_qa": ".mkv", "tgif_qa": ".gif"}


def write_videoqa(data: Path, name: str, count: int = 4) -> Path:
    """Write one of the four sets. ActivityNet's files have a prefix that its questions lack; TGIF's clips are GIFs."""
    declared, clips = benchmark(name), Clips(data / "made")
    (task,) = declared.tasks.values()
    root, prefix = data / declared.folder, "v_" if name == "activitynet_qa" else ""
    questions, answers = [], []
    for index in range(count):
        clips.write(root / task["media"] / f"{prefix}vid{index}{VIDEOQA_FILES[name]}", index)
        asked = scene(index)[1][0]
        question_id = f"{name}_{index}"
        questions.append({"question_id": question_id, "video_name": f"vid{index}", "question": asked["question"]})
        answers.append({"question_id": question_id, "answer": asked["answer"], "type": 0})
    write_json(root / task["questions"], questions)
    write_json(root / task["answers"], answers[::-1])  # matched by id, not by order
    return root


def write_inter4k(data: Path, count: int = 3) -> Path:
    root, clips = data / "Recaption" / "Inter4K", Clips(data / "made")
    (task,) = benchmark("inter4k").tasks.values()
    for index in range(count):
        clips.write(root / task["media"] / f"{970 + index}.mp4", index)
    write_json(root / task["file"], [{"video_name": str(970 + index)} for index in range(count)])
    return root


def write_all(data: Path) -> Path:
    write_mvbench(data)
    write_vcgbench(data)
    for name in VIDEOQA_FILES:
        write_videoqa(data, name)
    write_inter4k(data)
    return data


def metrics(folder: Path) -> dict[str, Any]:
    """Read metrics.json in a results folder."""
    return json.loads((folder / "metrics.json").read_text())


def lines(folder: Path) -> list[dict[str, Any]]:
    """Read predictions.jsonl in a results folder."""
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
