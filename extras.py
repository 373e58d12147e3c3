"""Errors that name the extra (`pllava[eval]`, `pllava[train]`) to install where an optional dependency is missing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """
    Wrap the imports of a package whose dependencies are optional. `python -m pllava.train` imports the package before
    its `__main__`, while `sys.argv[0]` is "-m": a missing module then ends the program with one line.

    Raises:
        ModuleNotFoundError: if a module is missing; the message names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{error}; install it with `pip install 'pllava[{extra}]'`"
        if sys.argv[0] == "-m":
            sys.exit(f"Error: {message}")
        raise ModuleNotFoundError(message, name=error.name) from error
