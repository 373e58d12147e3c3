"""`python -m pllava.caption`, or `accelerate launch -m pllava.caption` for several processes: as `pllava caption`."""

import sys

from pllava_cli import app

if __name__ == "__main__":
    app(["caption", *sys.argv[1:]], prog_name="pllava")
