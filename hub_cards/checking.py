"""Checking a card before it is published: its metadata, its links and its snippets."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, ModelCard, constants

from ..origins import CARD
from .uploading import HUB_ERRORS

LINK = re.compile(r"\]\(([^)\s]+)\)")
SNIPPET = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
REPOSITORY = re.compile(r"https://huggingface\.co/(datasets/|spaces/)?([\w.-]+/[\w.-]+)")
REPO_TYPES = {"datasets/": "dataset", "spaces/": "space", "": "model"}


def check_card(directory: Path) -> Iterator[str]:
    """Yield what is wrong with the card of the model in `directory`. It asks the Hub."""
    card = ModelCard.load(directory / CARD, ignore_metadata_errors=True)
    yield from _check_metadata(card)
    for link in LINK.findall(card.text):
        yield from _check_link(link, directory)
    for language, code in SNIPPET.findall(card.text):
        yield from _check_snippet(language, code)


def _check_metadata(card: ModelCard) -> Iterator[str]:
    try:
        card.validate()
    except ValueError as error:
        yield f"metadata: {' '.join(str(error).split())}"
    except HUB_ERRORS as error:
        yield f"metadata: not checked, {constants.ENDPOINT} cannot be asked ({error})"


def _check_link(link: str, directory: Path) -> Iterator[str]:
    if link.startswith("#"):
        return
    parts = urlsplit(link)
    if not parts.scheme:
        if not (directory / parts.path).exists():
            yield f"link: {link} is not in {directory}"
    elif parts.scheme != "https" or not parts.netloc:
        yield f"link: {link} is not an https address"
    elif match := REPOSITORY.fullmatch(link):
        try:
            exists = HfApi().repo_exists(match[2], repo_type=REPO_TYPES[match[1] or ""])
        except HUB_ERRORS as error:
            yield f"link: {link} was not checked, {constants.ENDPOINT} cannot be asked ({error})"
        else:
            if not exists:
                yield f"link: {link} is not on the Hub, or your token cannot see it"


def _check_snippet(language: str, code: str) -> Iterator[str]:
    try:
        if language == "python":
            compile(code, "<snippet>", "exec")
        else:
            shlex.split(code, comments=True)
    except (SyntaxError, ValueError) as error:
        yield f"snippet: {error}: {code.strip().splitlines()[0]} ..."
