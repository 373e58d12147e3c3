"""
The `pllava` command.

It is a package beside `pllava`, not in it: importing `pllava` loads torch and transformers, and `pllava --help` should
not wait for them. The commands import what they need when they run.
"""

import logging
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from . import caption, chat, convert, data, evaluate, publish, train
from .apps import demo, gallery, serve
from .evaluate import reproduce
from .options import ModelCommand
from .program import make_program

# torchao, which transformers imports if it is installed, makes torch log two lines about a deprecation at each start
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
# PEFT imports bitsandbytes if it is installed, which warns on some CPUs that it lacks an optional package
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT and TRL cause some of transformers', for developers

app = make_program("PLLaVA: ask about videos, caption them, train, evaluate and convert models.")
app.command("chat", cls=ModelCommand)(chat.chat)
app.command("caption", cls=ModelCommand)(caption.caption)
app.command("convert")(convert.convert)
app.add_typer(data.data, name="data")
app.command("train", **train.PASS_OPTIONS_ON)(train.train)
app.command("eval", cls=ModelCommand)(evaluate.evaluate)
app.command("reproduce", cls=ModelCommand)(reproduce.reproduce)
app.command("demo", cls=ModelCommand)(demo.demo)
app.command("gallery")(gallery.gallery)
app.command("serve", cls=ModelCommand)(serve.serve)
app.command("push")(publish.push)
app.command("card")(publish.card)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("pllava"))
        raise typer.Exit


@app.callback()
def _program_options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...
