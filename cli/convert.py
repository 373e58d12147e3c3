"""`pllava convert`: any PLLaVA or LLaVA checkpoint into one directory that `from_pretrained` loads."""

from pathlib import Path
from typing import Annotated

import typer

from .options import said_without_traceback


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Directory or Hub id: an official PLLaVA, an output of the original's training script, a llava-hf "
            "image model, or a PLLaVA of this project."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The directory to write.")],
    base: Annotated[
        str | None, typer.Option(help="The image model that was trained, where SOURCE is LoRA and projector only.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="The PEFT adapter to merge, where SOURCE is a PLLaVA of this project.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Strength of the LoRA, W = W0 + alpha / r * B A; by default 4, or the adapter's own."),
    ] = None,
    keep_adapter: Annotated[
        bool,
        typer.Option("--keep-adapter", help="Write the LoRA as a PEFT adapter, OUT/adapter; merge nothing."),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Of SOURCE on the Hub: a branch, tag or commit.")] = None,
) -> None:
    """Convert a checkpoint of any kind into one that `from_pretrained` loads."""
    with said_without_traceback():
        from pllava.convert import convert

        convert(source, out, base, adapter, alpha, keep_adapter, revision, report=typer.echo)
    typer.echo(f"{out} is ready: from_pretrained({str(out)!r})")
