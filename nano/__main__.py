"""`python -m pllava.nano render | train | evaluate | demo`."""

from pathlib import Path
from typing import Annotated

import typer

from pllava_cli.program import make_program

from ..extras import needs_extra

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
    from .data import render

    typer.echo(f"Wrote {render(directory, clips, seed)}")


@app.command()
def train(
    output: Annotated[Path, typer.Option(help="The folder for the merged checkpoint.")] = Path("nano/checkpoint"),
    work: Annotated[Path, typer.Option(help="The folder for training clips and stage 1.")] = Path("nano-training"),
    backbone: Annotated[str, typer.Option(help="clip-llama, or siglip-qwen3.")] = "clip-llama",
    clips: Annotated[int, typer.Option(min=1, help="Training clips to render, unless WORK has some.")] = 12_000,
    image_steps: Annotated[int, typer.Option(min=1, help="Steps of 64 images, stage 1.")] = 1500,
    video_steps: Annotated[int, typer.Option(min=1, help="Steps of 16 videos, stage 2.")] = 7500,
    seed: Seed = TRAIN_SEED,
) -> None:
    """Train a checkpoint from scratch; with the defaults, the one that ships with the project."""
    with needs_extra("train"):
        from .train import train

    train(output, work, backbone, clips, image_steps, video_steps, seed)


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
def demo(seed: Seed = 12) -> None:
    """Caption a clip that nano was not trained on, and answer all questions about it."""
    from .demo import demo

    demo(seed)


app()
