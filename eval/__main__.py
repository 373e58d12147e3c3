"""
`python -m pllava.eval`, or `accelerate launch -m pllava.eval` for several processes: the same as `pllava eval`, and
with `reproduce` as the first word the same as `pllava reproduce`.
"""

import sys

from pllava_cli import app

if __name__ == "__main__":
    arguments = sys.argv[1:]
    app(arguments if arguments[:1] == ["reproduce"] else ["eval", *arguments], prog_name="pllava")
