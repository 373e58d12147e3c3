"""`pllava serve`: a model behind an OpenAI-compatible server."""

from typing import Annotated

import typer

from .. import options
from ..program import UsageError

SERVER = "Server"


def serve(
    context: typer.Context,
    model: options.ModelArgument = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on.", metavar="ADDRESS", rich_help_panel=SERVER)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0: a free one.", metavar="N", rich_help_panel=SERVER)
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="The key that requests must carry. Other users of this machine see it here, not in the environment.",
            envvar="PLLAVA_API_KEY",
            metavar="KEY",
            rich_help_panel=SERVER,
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            help="The model's name in requests.",
            metavar="NAME",
            show_default="the last part of --adapter or MODEL",
            rich_help_panel=SERVER,
        ),
    ] = None,
    max_requests: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests in progress, waiting ones included; further ones are refused.",
            metavar="N",
            rich_help_panel=SERVER,
        ),
    ] = 32,
    allowed_media_domains: options.AllowedMediaDomains = [],  # noqa: B006
    allowed_local_media_path: options.AllowedLocalMediaPath = [],  # noqa: B006
) -> None:
    """
    Serve a model to OpenAI's clients: /v1/chat/completions with videos and images.

    Media are read only from data: URIs, and from the hosts and folders allowed here. Ctrl-C lets running answers end.
    """
    from pllava.extras import needs_extra

    with needs_extra("serve"):
        from pllava.serving.server import bind, is_local, serve

    from pllava.adapters import plain_model
    from pllava.media import MediaGate
    from pllava.result_files.formatting import model_name as model_name_of

    model_options: options.ModelOptions = context.obj
    if api_key == "":
        raise UsageError("The API key is empty: leave it out, or set one")
    address = bind(host, port)  # before the model is loaded, which may take minutes
    gate = MediaGate(allowed_media_domains, allowed_local_media_path)
    checkpoint, processor = model_options.read()
    name = served_model_name or model_name_of(checkpoint.adapter or checkpoint.model)
    if api_key is None and not is_local(address):
        typer.echo(
            f"Warning: everyone who reaches {host}:{port} can use the model: set PLLAVA_API_KEY, or leave --host out",
            err=True,
        )
    serve(name, plain_model(model_options.load(processor)), processor, gate, address, max_requests, api_key)
