"""Ask the study's runs about held-out clips and images. Each answer is stored once, by the runner of `pllava eval`."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from ...eval import LocalModel, Variant, evaluate, load_benchmark, load_prompts
from ...files import read_lines, replace_file, to_lines
from ...pooling_pllava import AveragePooling
from ...processing_pllava import PllavaProcessor
from ..world import drawing, questions, scenes
from ..world.rendering import one_of_each_type, render
from .settings import CLIPS, NOTHING, Run, Setting
from .workshop import Workshop


def held_out(workshop: Workshop, about: str) -> Path:
    """Return the folder of clips or stills that no run is trained on, with one question of each type about each."""
    counts = workshop.study.held_out
    folder = workshop.folder / "held-out" / f"{about}-{counts[about]}-{counts['seed']}"
    if not (folder / "questions.jsonl").exists():
        if about == CLIPS:
            render(folder, counts[about], counts["seed"], one_of_each=True)
        else:
            render_stills(folder, counts[about], counts["seed"])
    return folder


def render_stills(directory: Path, count: int, seed: int) -> None:
    """Write `count` videos of a single frame, with one question of each type about it as an image."""
    (directory / "clips").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        rng = random.Random(f"still/{seed}/{index}")
        scene, frame = scenes.sample_scene(rng), rng.randrange(scenes.NUM_FRAMES)
        name = f"clips/{index:05d}.mp4"
        drawing.write_clip(directory / name, drawing.draw_frame(scene, frame)[None])
        rows += [{"video": name, **row} for row in questions.image_questions(scene, frame, rng)]
    replace_file(directory / "questions.jsonl", to_lines(one_of_each_type(rows)))


def ask(
    workshop: Workshop,
    run: Run,
    model: PreTrainedModel | PeftModel,
    processor: PllavaProcessor,
    settings: Sequence[Setting],
) -> None:
    """Let a trained run, as loaded, answer in all settings in which answers are missing."""
    folder, benchmark = workshop.folder_of(run), load_benchmark("nano", load_prompts())
    adapter = None if run.start == NOTHING else str(folder / "model")
    for name in dict.fromkeys(setting.folder for setting in settings):
        together = [setting for setting in settings if setting.folder == name]
        answerer = LocalModel(model, processor, adapter, together[0].template, batch_size=32, num_workers=0)
        variants = list(dict.fromkeys(variant(workshop, setting) for setting in together))
        data = str(held_out(workshop, together[0].about))
        evaluate(benchmark, answerer, data, folder / "answers" / name, variants)


def answers(workshop: Workshop, run: Run, setting: Setting) -> list[dict[str, Any]]:
    """Return the rows of predictions.jsonl."""
    folder = workshop.folder_of(run) / "answers" / setting.folder / "nano" / variant(workshop, setting).name
    return read_lines(folder / "predictions.jsonl", "video", "task", "prediction", "correct")


def variant(workshop: Workshop, setting: Setting) -> Variant:
    recipe = workshop.recipe
    return setting.variant(recipe.video_stage.lora_r, str(AveragePooling(recipe.image_stage.pooling_shape)))
