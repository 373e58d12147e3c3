"""
The `pllava` command.

It is a package beside `pllava`, not in it: importing that loads torch and transformers, and `pllava --help` should not
wait for them. The commands import what they need when they run.
"""

import typer

from .caption import caption
from .chat import chat
from .convert import convert
from .data import data
from .evaluate import evaluate

app = typer.Typer(
    help="PLLaVA: ask about videos, caption them, evaluate models, convert checkpoints, and check training data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(chat)
app.command()(caption)
app.command("eval")(evaluate)
app.command()(convert)
app.add_typer(data, name="data")
