"""`python -m pllava.eval`, and `accelerate launch -m pllava.eval`: the same as `pllava eval`."""

import typer

from pllava_cli.evaluate import evaluate

if __name__ == "__main__":
    typer.run(evaluate)
