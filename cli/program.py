"""Command-line programs whose errors are one line, `Error: ...`, instead of a usage text or a traceback."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException


def make_program(help: str, **options: Any) -> typer.Typer:
    """Return an application, or a group of its commands. `options` are those of `typer.Typer`."""
    return typer.Typer(
        help=help,
        cls=Program,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_show_locals=False,
        **options,
    )


class UsageError(TyperException):
    """Options that are wrong or contradict each other: exit code 2, as for an unknown option."""

    exit_code = 2


def refuse_passed(context: typer.Context, unused: set[str], reason: str) -> None:
    """
    Raises:
        UsageError: if a parameter in `unused` was passed: it would have no effect, for the `reason`.
    """
    passed = {
        each.name: each.opts[0] if each.param_type_name == "option" else each.metavar
        for each in context.command.params
        if context.get_parameter_source(each.name).name != "DEFAULT"
    }
    if names := [written for name, written in passed.items() if name in unused]:
        raise UsageError(f"{reason}: leave {', '.join(names)} out")


class Program(TyperGroup):
    """A group of commands. Without a command, it shows its help."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        try:
            result = super().main(*args, standalone_mode=False, **kwargs)
        except TyperException as error:
            _exit(error.format_message(), error.exit_code)
        except typer.Abort:
            _exit("aborted", 1)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            _exit(str(error) or type(error).__name__, 1)
        if standalone_mode:
            sys.exit(result)
        return result


def _exit(message: str, code: int) -> None:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)
