"""Ask the study's runs about held-out clips and images. Each answer is stored once, by the runner of `pllava eval`."""

import random
from collections import defaultdict
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
    folder, counts = _held_out_folder(workshop, about), workshop.study.held_out
    most_shapes = workshop.recipe.video_stage.most_shapes
    if not (folder / "questions.jsonl").exists():
        if about == CLIPS:
            render(folder, counts[about], counts["seed"], most_shapes, one_of_each=True)
        else:
            render_stills(folder, counts[about], counts["seed"], most_shapes)
    return folder


def _held_out_folder(workshop: Workshop, about: str) -> Path:
    counts, most_shapes = workshop.study.held_out, workshop.recipe.video_stage.most_shapes
    return workshop.folder / "held-out" / f"{about}-{counts[about]}-{counts['seed']}-{most_shapes}"


def render_stills(directory: Path, count: int, seed: int, most_shapes: int) -> None:
    """Write `count` videos of a single frame, with one question of each type about it as an image."""
    (directory / "clips").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        rng = random.Random(f"still/{seed}/{index}")
        scene, frame = scenes.sample_scene(rng, most_shapes), rng.randrange(scenes.NUM_FRAMES)
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
    benchmark = load_benchmark("nano", load_prompts())
    adapter = None if run.start == NOTHING else str(workshop.folder_of(run) / "model")
    by_folder: dict[Path, list[Setting]] = defaultdict(list)
    for setting in settings:
        by_folder[_results(workshop, run, setting)].append(setting)
    for out, together in by_folder.items():
        answerer = LocalModel(model, processor, adapter, together[0].template, batch_size=32, num_workers=0)
        variants = list(dict.fromkeys(variant(workshop, setting) for setting in together))
        evaluate(benchmark, answerer, str(held_out(workshop, together[0].about)), out, variants)


def answers(workshop: Workshop, run: Run, setting: Setting) -> list[dict[str, Any]]:
    """Return the rows of predictions.jsonl."""
    return read_lines(answers_folder(workshop, run, setting) / "predictions.jsonl", "task", "prediction", "correct")


def answers_folder(workshop: Workshop, run: Run, setting: Setting) -> Path:
    """Return the folder of a run's answers in a setting. When they are complete, it has a `metrics.json`."""
    return _results(workshop, run, setting) / "nano" / variant(workshop, setting).name


def _results(workshop: Workshop, run: Run, setting: Setting) -> Path:
    """Return the folder with the answers to the same questions under the same template."""
    name = _held_out_folder(workshop, setting.about).name
    return workshop.folder_of(run) / "answers" / f"{name}-{setting.template or 'training'}"


def variant(workshop: Workshop, setting: Setting) -> Variant:
    recipe = workshop.recipe
    return setting.variant(recipe.video_stage.lora_r, str(AveragePooling(recipe.image_stage.pooling_shape)))
