"""`pllava push` and `pllava card`: a model or an adapter on the Hub, and its card before that."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .program import UsageError

Folder = Annotated[
    str,
    typer.Argument(
        help="The folder of a model, an adapter or a processor; nano is the one in the package.", metavar="DIR"
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        help="The Hub id of the model that it was trained on or made from, if that was local.", metavar="NAME"
    ),
]

Results = Annotated[
    Path | None,
    typer.Option(help="Results of `pllava eval`, for the card; push publishes them, too.", metavar="FOLDER"),
]


def push(
    directory: Folder,
    repo_id: Annotated[
        str, typer.Argument(help="The repository on the Hub; it is created if there is none.", metavar="USER/NAME")
    ],
    base_model: BaseModel = None,
    results: Results = None,
    private: Annotated[bool, typer.Option("--private", help="Create a new repository as a private one.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(help="The branch; it is created if there is none.", metavar="NAME", show_default="main"),
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    space: Annotated[bool, typer.Option("--space", help="Publish a Space, too, where it can be tried.")] = False,
    collection: Annotated[
        str | None, typer.Option(help="Add it to this collection on the Hub.", metavar="USER/SLUG")
    ] = None,
) -> None:
    """
    Publish a model or an adapter, with its code, processor and card.

    Everything arrives in one commit. A push that was cut goes on when it is run again.
    """
    if create_pr and (revision or results or space or collection):
        raise UsageError(
            "--create-pr opens a pull request against main: leave --revision, --results, --space and --collection out"
        )
    from pllava import model_path
    from pllava.hub_cards.publishing import push

    pushed = push(
        model_path(directory),
        repo_id,
        base_model,
        results,
        private,
        revision,
        create_pr,
        space,
        collection,
        report=typer.echo,
    )
    for address in [pushed.model.pr_url] if create_pr else pushed.addresses:
        typer.echo(address)


def card(
    directory: Folder,
    repo_id: Annotated[
        str | None,
        typer.Option(help="The repository on the Hub.", metavar="USER/NAME", show_default="the folder's name"),
    ] = None,
    base_model: BaseModel = None,
    results: Results = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check metadata, links and snippets; it asks the Hub.")
    ] = False,
) -> None:
    """Print the card with which a model or an adapter is published, or check it."""
    from pllava import model_path
    from pllava.hub_cards.checking import check_card
    from pllava.hub_cards.publishing import staged

    report = partial(typer.echo, err=True)
    with staged(model_path(directory), repo_id, base_model, results, report=report) as folder:
        if not check:
            typer.echo((folder / "README.md").read_text(encoding="utf-8"))
            return
        problems = list(check_card(folder))
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo("metadata, links and snippets are valid")
