"""What `pip install pllava` leaves out: a program says in one line which extra has it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def name_extra(error: ModuleNotFoundError, extra: str) -> str:
    """What to install where a module is missing."""
    return f"{error}; `pip install 'pllava[{extra}]'` has all that this needs"


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """
    Around the imports of a package. `python -m PACKAGE` imports it before the program that it looks for in it, with
    "-m" for the program's name: there the line is all that is said.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if sys.argv[0] == "-m":
            sys.exit(f"Error: {name_extra(error, extra)}")
        raise
