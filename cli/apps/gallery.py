"""`pllava gallery`: results of `pllava eval` in the browser, or as a static site."""

import webbrowser
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from ..program import UsageError

SHOWN_PROBLEMS = 5
DEFAULT_PORT = 7870


def gallery(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that `pllava eval` wrote: an --out, a benchmark's folder in it, or a control's or a sweep "
            "value's in that. Runs of the same benchmark are compared.",
            metavar="RESULTS",
        ),
    ],
    export: Annotated[
        Path | None,
        typer.Option(help="Write a static site into this folder instead of serving one.", metavar="FOLDER"),
    ] = None,
    clips: Annotated[bool, typer.Option("--clips", help="Copy the clips into the --export, too.")] = False,
    chat: Annotated[
        str | None, typer.Option(help="The address of a `pllava demo`, for links to it.", metavar="URL")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Where to serve.", metavar="N", show_default=str(DEFAULT_PORT)),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
) -> None:
    """Look at the results of evaluations: each clip, what the models answered, and how two runs differ."""
    if chat is not None and (urlsplit(chat).scheme not in ("http", "https") or not urlsplit(chat).netloc):
        raise UsageError(f"--chat {chat}: give the address that `pllava demo` prints, as in http://127.0.0.1:7860")
    if export is None and clips:
        raise UsageError("--clips is about an --export: a gallery that is served plays the clips from where they are")
    if export is not None and (port is not None or not browser):
        raise UsageError("--port and --no-browser are about a gallery that is served: leave them out with --export")
    if export is not None:
        _export(results, export, clips, chat)
    else:
        _serve(results, DEFAULT_PORT if port is None else port, chat, browser)


def _export(results: list[Path], folder: Path, clips: bool, chat: str | None) -> None:
    from pllava.gallery.exporting import export_gallery

    done = export_gallery(results, folder, clips, chat)
    _print_problems(done.problems)
    content = f"{_count(done.samples, 'sample')}, {_count(done.runs, 'run')}, {_count(done.clips, 'clip')}"
    size = f"{done.size / 1e6:.1f} MB in {_count(done.files, 'file')}"
    typer.echo(f"{folder}: {content}; {size}. Open {folder / 'index.html'}")


def _serve(results: list[Path], port: int, chat: str | None, browser: bool) -> None:
    from pllava.gallery.local_server import GalleryServer

    with GalleryServer(results, port, chat) as server:
        _print_problems(server.problems)
        typer.echo(f"The gallery is at {server.address} until you press Ctrl-C")
        if browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("\nThe gallery is closed")


def _print_problems(problems: dict[str, str]) -> None:
    for name, problem in list(problems.items())[:SHOWN_PROBLEMS]:
        typer.echo(f"{name}: {problem}", err=True)
    if problems:
        typer.echo(f"Clips with a problem: {len(problems)}. The page shows what it is", err=True)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
