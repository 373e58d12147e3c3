"""`pllava demo`: a chat about videos in the browser."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .. import options

SERVER = "Server"


def demo(
    context: typer.Context,
    model: options.ModelArgument = None,
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
    allowed_media_domains: options.AllowedMediaDomains = [],  # noqa: B006
    allowed_local_media_path: options.AllowedLocalMediaPath = [],  # noqa: B006
) -> None:
    """
    Chat about videos and images in the browser.

    The page shows the frames that the model saw and the prompt that it got. With an adapter, alpha can be set there.
    """
    from huggingface_hub.constants import HF_HOME

    model_options: options.ModelOptions = context.obj
    folder = (folder or Path(HF_HOME) / "pllava-demo").resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")  # the one way to tell Gradio

    from pllava.demo.page import build_demo, launch_options
    from pllava.media import MediaGate
    from pllava.origins import published_name

    links = MediaGate(allowed_media_domains, allowed_local_media_path)
    checkpoint, processor = model_options.read()
    name = published_name(checkpoint.adapter or checkpoint.model)
    page = build_demo(model_options.load(processor), processor, name, folder / "shared", links=links)
    _, address, _ = page.launch(
        server_name=host, server_port=port, quiet=True, prevent_thread_lock=True, **launch_options()
    )
    typer.echo(f"{name} answers at {address}. Ctrl-C ends it.")
    page.block_thread()
