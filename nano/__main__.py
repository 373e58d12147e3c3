"""`python -m pllava.nano render | train | evaluate | study | demo`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pllava_cli.program import make_program

from ..extras import needs_extra
from .training.recipe import RECIPE, read_recipe

app = make_program(__doc__, add_completion=False)

Seed = Annotated[int, typer.Option(help="The same seed gives the same clips and questions.")]
TRAIN_SEED, HELD_OUT_SEED = 0, 1


@app.command()
def render(
    directory: Annotated[Path, typer.Argument(help="The folder for clips/*.mp4 and questions.jsonl.")],
    clips: Annotated[int, typer.Option(min=1, help="How many clips.")] = 100,
    seed: Seed = HELD_OUT_SEED,
) -> None:
    """Render clips of the synthetic world, with all questions about them."""
    from .world.rendering import render

    typer.echo(f"Wrote {render(directory, clips, seed)}")


@app.command()
def train(
    output: Annotated[Path, typer.Option(help="The folder for the merged checkpoint.")] = Path("nano/checkpoint"),
    work: Annotated[Path, typer.Option(help="The folder for training clips and models.")] = Path("nano-training"),
    backbone: Annotated[str, typer.Option(help="clip-llama, or siglip-qwen3.")] = "clip-llama",
    recipe: Annotated[Path, typer.Option(help="Steps, batches and exercises of all stages.")] = RECIPE,
    seed: Seed = TRAIN_SEED,
) -> None:
    """Train a checkpoint from scratch; with the defaults, the one that ships with the project."""
    with needs_extra("train"):
        from .training.train import train

    train(output, work, backbone, read_recipe(recipe), seed)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="The checkpoint to evaluate; its card is rewritten.")] = "nano",
    clips: Annotated[int, typer.Option(min=1, help="Held-out clips.")] = 1000,
    seed: Seed = HELD_OUT_SEED,
) -> None:
    """Measure the accuracy on held-out clips, with and without the video, and write it into the checkpoint's card."""
    from .evaluate import evaluate

    evaluate(model, clips, seed)


@app.command()
def study(
    quick: Annotated[bool, typer.Option("--quick", help="A smaller study: most verdicts stay open.")] = False,
    work: Annotated[Path, typer.Option(help="The folder for clips, models and answers.")] = Path("nano-study"),
    output: Annotated[
        Path | None, typer.Option(help="The folder for report.md and verdicts.json.", show_default="WORK/report")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs side by side, one thread each.")] = os.cpu_count() or 1,
) -> None:
    """Ask the paper's own questions of models that are trained for it. A study that was stopped continues."""
    with needs_extra("train"):
        from .study.conduct import conduct
        from .study.settings import read_study

    conduct(read_study(quick=quick), work, output or work / "report", processes)


@app.command()
def demo(seed: Seed = 12) -> None:
    """Caption a clip that nano was not trained on, and answer all questions about it."""
    from .demo import demo

    demo(seed)


app()
