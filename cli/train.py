"""`pllava train`: `python -m pllava.train` under another name."""

import sys
import traceback
from typing import Annotated

import typer

# For the command: all options but --dpo, and --help too, are those of the training's own parser
PASS_OPTIONS_ON = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def train(
    context: typer.Context,
    dpo: Annotated[bool, typer.Option("--dpo", help="Direct preference optimization.")] = False,
) -> None:
    """
    Fine-tune a model; `pllava train --help` lists the options. --dpo trains on preferences.

    For several processes, use `accelerate launch -m pllava.train`.
    """
    from pllava.train.__main__ import DPOConfig, SFTConfig, main

    sys.argv = ["pllava train", *context.args]
    try:
        main(DPOConfig if dpo else SFTConfig)
    except Exception:
        traceback.print_exc()  # unlike in other commands: it is needed to find out why hours of training failed
        raise typer.Exit(1) from None
