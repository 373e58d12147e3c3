"""`pllava demo`: a chat about videos in the browser."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .. import options
from ..program import UsageError

SERVER, MEDIA = "Server", "Media"


def demo(
    context: typer.Context,
    model_name: Annotated[
        str | None,
        typer.Argument(
            help="Directory or Hub id of a PLLaVA; nano is the small one in the package.",
            metavar="MODEL",
            show_default="nano, or the base of --adapter",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on; 0.0.0.0 lets other machines in.",
            metavar="ADDRESS",
            rich_help_panel=SERVER,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, metavar="N", show_default="the first free one from 7860", rich_help_panel=SERVER
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where uploads, for a day, and shared conversations, for 30 days, are kept.",
            metavar="DIR",
            show_default="pllava-demo in the Hub's cache",
            rich_help_panel=SERVER,
        ),
    ] = None,
    allowed_media_domains: Annotated[
        list[str],
        typer.Option(
            help="A host from which a link (?video=URL) may open videos and images; repeat it for more.",
            metavar="HOST",
            show_default="none",
            rich_help_panel=MEDIA,
        ),
    ] = [],  # noqa: B006
    allowed_local_media_path: Annotated[
        list[Path],
        typer.Option(
            help="A folder of this machine from which a link may open files; repeat it for more.",
            metavar="DIR",
            show_default="none",
            rich_help_panel=MEDIA,
        ),
    ] = [],  # noqa: B006
) -> None:
    """
    Chat about videos and images in the browser.

    The page shows the frames that the model saw and the prompt that it got. With an adapter, alpha can be set there.
    """
    from huggingface_hub.constants import HF_HOME

    model_options: options.ModelOptions = context.obj
    if model_name and model_options.model:
        raise UsageError(f"MODEL and --model are the same option; got {model_name} and {model_options.model}")
    model_options = replace(model_options, model=model_options.model or model_name)
    folder = (folder or Path(HF_HOME) / "pllava-demo").resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")  # the one way to tell Gradio

    from pllava.demo.page import build_demo, launch_options
    from pllava.media import MediaGate
    from pllava.origins import published_name

    links = MediaGate(allowed_media_domains, allowed_local_media_path)
    checkpoint, processor = model_options.read()
    name = published_name(checkpoint.adapter or checkpoint.model)
    page = build_demo(model_options.load(), processor, name, folder / "shared", links=links)
    _, address, _ = page.launch(
        server_name=host, server_port=port, quiet=True, prevent_thread_lock=True, **launch_options()
    )
    typer.echo(f"{name} answers at {address}. Ctrl-C ends it.")
    page.block_thread()
