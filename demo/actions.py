"""What the page does: takes questions, answers, changes and shares conversations. It knows no layout."""

import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import gradio as gr

from ..media import MediaGate
from . import display, worlds
from .conversation import Answer, Medium, Settings, Turn, cut_newest_video, media_of, true_answer
from .engine import Engine, Seen, named
from .sharing import Shelf

logger = logging.getLogger(__name__)
MAX_QUESTION = 4000  # characters


@dataclass(frozen=True)
class Asked:
    """What the settings on the page say: for the model, for the newest video, and the alphas to answer at."""

    settings: Settings
    start: float | None
    end: float | None
    alphas: tuple[float | None, ...]

    @classmethod
    def read(
        cls,
        num_frames: int | None,
        start: str,
        end: str,
        pooling: str,
        temperature: float,
        max_new_tokens: int,
        system: str,
        alpha: float | None = None,
        compare: bool = False,
        other_alpha: float | None = None,
    ) -> "Asked":
        """Read the values of the page's fields; a `ValueError` if one cannot be read."""
        settings = Settings(num_frames, pooling.strip() or None, temperature, int(max_new_tokens), system or "")
        bounds = read_number("Start", start), read_number("End", end)
        return cls(settings, *bounds, (alpha, other_alpha) if compare else (alpha,))


class Actions:
    """
    Args:
        engine: Answers.
        uploads: The folder of uploads, from which `gate` reads.
        links: The gate for media that an address names (`?video=...`).
        shelf: Keeps shared conversations.
    """

    def __init__(self, engine: Engine, gate: MediaGate, uploads: Path, links: MediaGate, shelf: Shelf):
        self.engine, self.gate, self.uploads, self.links, self.shelf = engine, gate, uploads, links, shelf
        self._stops = tempfile.TemporaryDirectory(prefix="pllava-stops-")

    # --- media ---

    def receive(self, path: str) -> Medium:
        """Return an uploaded file as a medium; a `ValueError` if it is refused."""
        file = Path(path)
        if known := self.rolled(file):
            return known
        with named(path, file.name):
            media = self.gate.read(path)
        with media.file:
            shown = display.shown_copy(media, file, self.uploads / "shown" / file.parent.name, self.gate.limits)
        return Medium(path, media.kind, file.name, shown)

    def rolled(self, file: Path) -> Medium | None:
        """Return a clip or picture of nano's world that `roll` or the examples wrote, with its true answers."""
        match = re.fullmatch(r"world-(\d{1,6})\.(mp4|png)", file.name)
        if match is None or file.parent != self.uploads / "worlds":
            return None
        make = worlds.roll if match[2] == "mp4" else worlds.picture
        return make(file.parent, int(match[1]))

    def roll(self) -> Medium:
        return worlds.roll(self.uploads / "worlds")

    def preview(self, medium: Medium) -> list[Seen]:
        """Return what the model will see of a medium, without settings of the page."""
        with errors_for_people():
            return self.engine.prepare([Turn("", (medium,))], Settings()).seen

    def fetch(self, reference: str) -> str:
        """Copy the medium that an address names to the uploads, if its gate allows it, and return its path."""
        media = self.links.read(reference)
        name = re.sub(r"[^\w.-]+", "_", unquote(urlsplit(media.name).path).rsplit("/", 1)[-1])[-80:].lstrip(".")
        folder = self.uploads / f"linked-{secrets.token_urlsafe(16)}"
        folder.mkdir(parents=True)
        with media.file, (folder / (name or media.kind)).open("wb") as copy:
            shutil.copyfileobj(media.file, copy)
        return copy.name

    def open_shared(self, name: str) -> list[Turn]:
        return self.shelf.load(name, self.uploads)

    # --- questions ---

    def take(self, message: dict[str, Any], turns: list[Turn], values: tuple) -> list[Turn]:
        """
        Add a question with its media to a conversation, after a look at everything that could be wrong with it.

        Args:
            message: Its "text" and the paths of its "files".

        Raises:
            gr.Error: one sentence, if something is wrong; nothing has changed then.
        """
        with errors_for_people():
            text = message["text"].strip()
            if len(text) > MAX_QUESTION:
                raise ValueError(f"The question has {len(text):,} characters; up to {MAX_QUESTION:,} are taken.")
            media = tuple(self.receive(path) for path in message["files"])
            if not text and not media:
                raise ValueError("Write a question first.")
            if not media_of(turns) and not media:
                raise ValueError("There is no video or image yet: add one, record one, or roll a clip.")
            kinds = {medium.kind for medium in media}
            text = text or ("Describe the image." if kinds == {"image"} else "Describe the video.")
            answered = [turn for turn in turns if turn.answers]
            return self.ask_again([*answered, Turn(text, media)], values)

    def edit(self, turns: list[Turn], text: str, values: tuple) -> list[Turn]:
        """Ask the last question in other words."""
        if not text.strip():
            raise _error("Write a question first.")
        return self.ask_again([*turns[:-1], replace(turns[-1], question=text.strip())], values)

    def ask_again(self, turns: list[Turn], values: tuple) -> list[Turn]:
        """Check the settings and the media for the last question, which loses the answers that it has."""
        with errors_for_people():
            asked = Asked.read(*values)
            for alpha in asked.alphas:
                self.engine.check(asked.settings, alpha)
            turns = cut_newest_video(turns, asked.start, asked.end)
            turns = [*turns[:-1], replace(turns[-1], answers=(), truth=true_answer(turns, turns[-1].question))]
            self.engine.prepare(turns, asked.settings)
            return turns

    def answer(
        self, turns: list[Turn], stop: str, values: tuple
    ) -> Iterator[tuple[list[Turn], list[Seen] | None, str | None]]:
        """
        Answer the last question. Yields the conversation as it grows and, first, what the model saw and its prompt.

        Raises:
            gr.Error: one sentence, if it fails.
        """
        asked = Asked.read(*values)
        *before, last = turns
        answers: tuple[Answer, ...] = ()
        with errors_for_people():
            for column, alpha in enumerate(asked.alphas):
                prepared = self.engine.prepare(turns, asked.settings, column)
                yield turns, prepared.seen, prepared.prompt
                for answer in self.engine.answer(prepared, alpha, self._stop_file(stop)):
                    rest = tuple(Answer(alpha=value) for value in asked.alphas[column + 1 :])
                    turns = [*before, replace(last, answers=(*answers, answer, *rest))]
                    yield turns, None, None
                answers = (*answers, answer)

    # A visit has a file that says "stop", see `Engine.answer`, and one that says that its conversation was left

    def start(self, visit: str) -> None:
        """Forget that this visit's last answer was stopped."""
        self._stop_file(visit).unlink(missing_ok=True)
        self._left_file(visit).unlink(missing_ok=True)

    def stop(self, visit: str) -> None:
        self._stop_file(visit).touch()

    def leave(self, visit: str) -> None:
        """Stop this visit's answer, and show no more of it."""
        self._left_file(visit).touch()
        self.stop(visit)

    def is_left(self, visit: str) -> bool:
        return self._left_file(visit).exists()

    def _left_file(self, visit: str) -> Path:
        return Path(self._stops.name, f"{visit}.left")

    def _stop_file(self, visit: str) -> Path:
        return Path(self._stops.name, visit)


def read_number(name: str, text: str) -> float | None:
    """Return the number that somebody wrote, None for nothing; a `ValueError` if it is not one that fits."""
    if not text.strip():
        return None
    try:
        number = float(text)
        if 0 <= number < 1e6:  # not NaN either
            return number
    except ValueError:
        pass
    raise ValueError(f"{name} is a number from 0 on; got {text!r}.")


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn an error into a `gr.Error` with one sentence; unexpected ones are logged."""
    try:
        yield
    except gr.Error:
        raise
    except ValueError as error:
        raise _error(" ".join(str(error).split())) from error
    except Exception as error:
        logger.exception("A question could not be answered")
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise _error("There is not enough memory for this: take fewer frames, or a coarser pooling.") from error
        raise _error("The server could not answer this; its log says why.") from error


def _error(message: str) -> gr.Error:
    return gr.Error(message, duration=None, print_exception=False)
