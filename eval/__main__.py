"""`python -m pllava.eval`, or `accelerate launch -m pllava.eval` for several processes: the same as `pllava eval`."""

import sys

from pllava_cli import app

if __name__ == "__main__":
    app(["eval", *sys.argv[1:]], prog_name="pllava")
