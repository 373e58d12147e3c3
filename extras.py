"""Errors that name the extra (`pllava[eval]`, `pllava[train]`) to install where an optional dependency is missing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def name_extra(error: ModuleNotFoundError, extra: str) -> str:
    """Return a message with the missing module and the extra that installs it."""
    return f"{error}; install it with `pip install 'pllava[{extra}]'`"


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """
    Wrap the imports of a package whose dependencies are optional. `python -m pllava.train` imports the package before
    its `__main__`, while `sys.argv[0]` is "-m": a missing module then ends the program with one line.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if sys.argv[0] == "-m":
            sys.exit(f"Error: {name_extra(error, extra)}")
        raise
