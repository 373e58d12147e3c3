"""
Measure nano with other poolings than the one that it was trained with: the accuracy on held-out clips for each type of
question, the time to read a clip, and what the same pooling costs at 7B. docs/draw_poolings.py draws what this writes.

    python benchmarks/poolings.py --clips 300
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

import pllava
from pllava.environment import hardware, library_versions
from pllava.eval import LocalModel, Variant, evaluate, load_benchmark, load_prompts
from pllava.files import replace_file
from pllava.model_pooling import choose_pooling, pooled
from pllava.modeling_pllava import PllavaModel
from pllava.nano.world.rendering import render
from pllava.pooling_pllava import Pooling

FILE = Path(__file__).parents[1] / "docs" / "figures" / "poolings.json"
HELD_OUT_SEED, ROUNDS = 1, 30
# Of 16 frames with 6 x 6 patches. nano was trained with the first
POOLINGS = """
average-16x3x3 average-8x3x3 average-4x3x3 average-16x2x2 average-8x6x6 average-16x6x6
slowfast-4x3x6+16x1x1 slowfast-4x6x6+16x2x2 slowfast-4x6x6+16x3x3
merge-12x3x3 merge-8x3x3 merge-4x3x3 merge-8x6x6
""".split()


def measure_answers(
    poolings: list[Pooling], model: PreTrainedModel, processor: ProcessorMixin, clips: int
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each pooling. As for nano's card, each clip has one question of each type."""
    variants = [Variant(f"pooling={pooling}", pooling=str(pooling)) for pooling in poolings]
    with TemporaryDirectory() as folder:
        render(Path(folder), clips, HELD_OUT_SEED, one_of_each=True)
        benchmark, answerer = load_benchmark("nano", load_prompts()), LocalModel(model, processor)
        metrics = evaluate(benchmark, answerer, folder, Path(folder, "results"), variants, seed=HELD_OUT_SEED)
    return {str(pooling): metrics[variant.name] for pooling, variant in zip(poolings, variants, strict=True)}


@torch.inference_mode()
def measure_seconds(
    poolings: list[Pooling], model: PreTrainedModel, processor: ProcessorMixin
) -> dict[str, dict[str, list[float]]]:
    """
    Return the seconds that one clip and a question take up to the first word of the answer, in each round: those of
    the vision tower, projector and pooling, those of the language model, and their total. A round measures all
    poolings, so that a busy moment of the machine slows all of them.
    """
    seconds = {str(pooling): {"vision": [], "language_model": [], "total": []} for pooling in poolings}
    frames = torch.rand(1, processor.num_frames, 3, model.config.image_size, model.config.image_size)
    content = [{"type": "video"}, {"type": "text", "text": "How many shapes are there in all?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    for number in tqdm(range(ROUNDS + 1), desc="timing", unit="round"):
        for pooling in poolings:
            text = prompt.replace(processor.video_token, processor.video_token * pooling.num_tokens)
            ids = processor.tokenizer(text, return_tensors="pt").input_ids
            with pooled(model, pooling):
                features, vision = timed(model.get_video_features, frames)
                options = {"mm_encoder_outputs": {"video": features}, "use_cache": True, "logits_to_keep": 1}
                _, language_model = timed(model, ids, **options)
            measured = {"vision": vision, "language_model": language_model, "total": vision + language_model}
            for part, value in measured.items() if number > 0 else ():  # the first round warms up
                seconds[str(pooling)][part].append(value)
    return seconds


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    return function(*args, **kwargs), time.perf_counter() - began


@torch.no_grad()
def cost_at_7b(poolings: list[Pooling], grid: int) -> dict[str, dict[str, Any]]:
    """
    Compute what these poolings of `grid` x `grid` patches cost PLLaVA-7B, which has 24 x 24: tokens, and the
    operations of the vision part and of the language model, counted on a model without memory for its weights.
    """
    costs = {}
    with torch.device("meta"):
        model = PllavaModel(pllava.PllavaConfig())
        size, width = model.config.image_size, model.config.text_config.hidden_size
        for pooling in poolings:
            scale = model.config.patch_grid // grid
            shapes = [(frames, rows * scale, columns * scale) for frames, rows, columns in pooling.shapes]
            scaled = type(pooling)(shapes if len(shapes) > 1 else shapes[0], pooling.num_frames)
            frames = torch.empty(1, pooling.num_frames, 3, size, size)
            with FlopCounterMode(display=False) as vision:
                model.get_video_features(frames)
            with FlopCounterMode(display=False) as language_model:
                model.language_model(inputs_embeds=torch.empty(1, scaled.num_tokens, width))
            counters = {"vision": vision, "language_model": language_model}
            teraflop = {part: counter.get_total_flops() / 1e12 for part, counter in counters.items()}
            costs[str(pooling)] = {"pooling": str(scaled), "tokens": scaled.num_tokens, "teraflop": teraflop}
    return costs


def main(clips: Annotated[int, typer.Option(min=2, help="Held-out clips.")] = 300) -> None:
    """Measure nano with several poolings, and write docs/figures/poolings.json."""
    model, processor = pllava.load_model(pllava.NANO), AutoProcessor.from_pretrained(pllava.NANO)
    poolings, trained = [choose_pooling(model.config, name) for name in POOLINGS], str(model.config.video_pooling)
    costs, seconds = cost_at_7b(poolings, model.config.patch_grid), measure_seconds(poolings, model, processor)
    metrics = measure_answers(poolings, model, processor, clips)
    points = [
        {
            "pooling": str(pooling),
            "tokens": pooling.num_tokens,
            "accuracy": {
                name: [values["accuracy"], *values["accuracy_ci"]]
                for name, values in {"all": metrics[str(pooling)], **metrics[str(pooling)]["per_task"]}.items()
            },
            "seconds": {part: quantiles(values, n=4) for part, values in seconds[str(pooling)].items()},
            "at_7b": costs[str(pooling)],
        }
        for pooling in poolings
    ]
    chance = {task: values["chance"] for task, values in metrics[trained]["per_task"].items() if "chance" in values}
    machine = {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        **library_versions(["torch", "transformers"]),
    }
    facts = {"clips": clips, "seed": HELD_OUT_SEED, "rounds": ROUNDS, "machine": machine, "trained_with": trained}
    replace_file(FILE, json.dumps({**facts, "chance": chance, "points": points}, indent=1) + "\n")
    typer.echo(f"Wrote {FILE}")


if __name__ == "__main__":
    typer.run(main)
