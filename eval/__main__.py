"""`python -m pllava.eval`, or `accelerate launch -m pllava.eval` for several processes: the same as `pllava eval`."""

import typer

from pllava_cli.evaluate import evaluate

if __name__ == "__main__":
    typer.run(evaluate)
