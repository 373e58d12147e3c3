"""Conversations that are kept below a folder, and found again by an id that nobody can guess."""

import json
import re
import secrets
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock

from ..files import read_object
from .conversation import Answer, Medium, Turn

ID = re.compile(r"([0-9a-f]{8,12})-[A-Za-z0-9_-]{22}")  # when it was stored, in seconds, and 16 random bytes
FILE = "conversation.json"


class Shelf:
    """
    Args:
        folder: Where conversations are kept, each in a folder of its own with its media.
        max_days: After so many days a conversation is deleted.
        max_bytes: Of the media of one conversation.
        max_total_bytes: Of all conversations.
    """

    def __init__(
        self, folder: Path, max_days: float = 30, max_bytes: int = 200_000_000, max_total_bytes: int = 20_000_000_000
    ):
        self.folder, self.max_days = folder, max_days
        self.max_bytes, self.max_total_bytes = max_bytes, max_total_bytes
        self._lock = Lock()

    def store(self, turns: list[Turn]) -> str:
        """
        Store a conversation and return its id.

        Raises:
            ValueError: if it is empty, too large, or there is no more space.
        """
        if not any(turn.answers for turn in turns):
            raise ValueError("There is no answer to share yet: ask a question first.")
        files = list(dict.fromkeys(path for turn in turns for medium in turn.media for path in _paths(medium)))
        size = sum(Path(file).stat().st_size for file in files)
        if size > self.max_bytes:
            raise ValueError(f"This conversation has {_mb(size)} of media; up to {_mb(self.max_bytes)} can be shared.")
        with self._lock:
            self.delete_expired()
            stored = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
            if stored + size > self.max_total_bytes:
                raise ValueError("The space for shared conversations is full: try again when older ones have expired.")
            name = f"{int(time.time()):08x}-{secrets.token_urlsafe(16)}"
            partial = self.folder / f".{name}"
            partial.mkdir(parents=True)
            # Numbers keep files with the same name apart
            copies = {file: f"{number}-{Path(file).name}" for number, file in enumerate(files)}
            for file, copy in copies.items():
                shutil.copyfile(file, partial / copy)
            rows = [asdict(_with_paths(turn, copies)) for turn in turns]
            (partial / FILE).write_text(json.dumps({"turns": rows}, ensure_ascii=False), encoding="utf-8")
            partial.rename(self.folder / name)  # whole, or not at all
        return name

    def load(self, name: str, uploads: Path) -> list[Turn]:
        """
        Read a conversation. Its media are copied into `uploads`, where the server may show them.

        Raises:
            ValueError: if there is no such conversation, or it has expired.
        """
        match = ID.fullmatch(name)
        if match and self._age_days(match[1]) > self.max_days:
            raise ValueError(f"This conversation has expired: conversations are kept for {self.max_days:g} days.")
        if not match or not (self.folder / name / FILE).is_file():
            raise ValueError("There is no such conversation on this server: the link may be incomplete.")
        source, target = self.folder / name, uploads / f"shared-{name}"
        target.mkdir(parents=True, exist_ok=True)
        places = {}
        for file in source.iterdir():
            places[file.name] = str(target / file.name)
            if file.name != FILE:
                shutil.copyfile(file, target / file.name)
        return [_with_paths(_turn(row), places) for row in read_object(source / FILE, "turns")["turns"]]

    def delete_expired(self) -> None:
        for folder in self.folder.glob("*-*"):
            match = ID.fullmatch(folder.name.removeprefix("."))
            if match and self._age_days(match[1]) > self.max_days:
                shutil.rmtree(folder, ignore_errors=True)

    def _age_days(self, stamp: str) -> float:
        return (time.time() - int(stamp, 16)) / 86_400


def _paths(medium: Medium) -> list[str]:
    return [path for path in (medium.path, medium.shown) if path]


def _with_paths(turn: Turn, places: dict[str, str]) -> Turn:
    media = (replace(m, path=places[m.path], shown=m.shown and places[m.shown]) for m in turn.media)
    return replace(turn, media=tuple(media))


def _turn(row: dict) -> Turn:
    media = tuple(Medium(**medium) for medium in row["media"])
    return Turn(**{**row, "media": media, "answers": tuple(Answer(**answer) for answer in row["answers"])})


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
