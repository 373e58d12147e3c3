"""`pllava convert`: convert a PLLaVA or LLaVA checkpoint into a directory that `from_pretrained` loads."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Directory or Hub id of an image model (LLaVA-1.5, LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision, "
            "LLaVA-Interleave, ViP-LLaVA, BakLLaVA, TinyLLaVA, original LLaVA), an official PLLaVA, an output of the "
            "original's training script, or a PLLaVA of this project (nano is the one in the package).",
            metavar="SOURCE",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The directory to write.", metavar="OUT")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of SOURCE on the Hub.", metavar="NAME")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The image model that was trained, if SOURCE has only LoRA and projector.", metavar="NAME"),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="The PEFT adapter to merge, if SOURCE is a PLLaVA of this project; on the Hub also "
            "ORG/NAME@REVISION/FOLDER.",
            metavar="NAME",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Strength of the LoRA: W = W0 + alpha / r * B A.",
            metavar="NUMBER",
            show_default="4, or the one of --adapter",
        ),
    ] = None,
    keep_adapter: Annotated[
        bool,
        typer.Option("--keep-adapter", help="Write the LoRA to OUT/adapter as a PEFT adapter, unmerged."),
    ] = False,
    vision_tower: Annotated[
        str | None,
        typer.Option(
            help="Directory or Hub id of the vision tower, if SOURCE has its name only: a CLIP, a SigLIP or a LLaVA "
            "with safetensors weights.",
            metavar="NAME",
            show_default="the one that SOURCE names",
        ),
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(
            help="Frames per clip.", metavar="NUMBER", min=1, show_default="16, or those of the training on videos"
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="average, slowfast or merge, or with a shape: average-16x12x12, slowfast-4x12x24+16x4x4.",
            metavar="NAME",
            show_default="average, or that of the training on videos",
        ),
    ] = None,
) -> None:
    """Convert a PLLaVA or LLaVA checkpoint into a directory that `from_pretrained` loads."""
    from pllava import model_path
    from pllava.convert import convert

    convert(
        model_path(source),
        out,
        base and model_path(base),
        adapter,
        alpha,
        keep_adapter,
        revision,
        vision_tower=vision_tower,
        num_frames=num_frames,
        pooling=pooling,
        report=typer.echo,
    )
    typer.echo(f"{out} is ready: from_pretrained({str(out)!r})")
