"""`pllava convert`: convert a PLLaVA or LLaVA checkpoint into a directory that `from_pretrained` loads."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Directory or Hub id of an official PLLaVA, an output of the original's training script, a llava-hf "
            "image model, or a PLLaVA of this project (nano is the one in the package).",
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
) -> None:
    """Convert a PLLaVA or LLaVA checkpoint into a directory that `from_pretrained` loads."""
    from pllava import model_path
    from pllava.convert import convert

    convert(
        model_path(source), out, base and model_path(base), adapter, alpha, keep_adapter, revision, report=typer.echo
    )
    typer.echo(f"{out} is ready: from_pretrained({str(out)!r})")
