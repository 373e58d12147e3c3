"""
Video instructions of any format -> streams of conversations: `messages`, `videos` and `images`, nothing decoded.

A source is a file, a folder or a pattern of JSON, JSON Lines, Parquet or WebDataset files, or a dataset on the Hub.
Its rows may be VideoChat2-IT's (`QA`), LLaVA's (`conversations`), chats (`messages`), preferences (`prompt`, `chosen`,
`rejected`) or captions. `load_source` brings them to one form.
"""

import glob
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

DESCRIBE = "Describe the video."  # is asked where a source has captions and no questions
MEDIA = {
    "video": ("video", "videos", "mp4", "webm", "mkv", "avi", "mov", "gif"),
    "image": ("image", "images", "jpg", "png"),
}
ROLES = {"human": "user", "gpt": "assistant"}  # LLaVA's names
SUFFIXES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".tar": "webdataset"}

_MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
_CLIP = {"path": Value("string"), "bytes": Value("binary"), "start": Value("float64"), "end": Value("float64")}
FEATURES = Features(
    {
        "messages": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "videos": List(_CLIP),
        "images": List({"path": Value("string"), "bytes": Value("binary")}),
        "source": Value("string"),
        "id": Value("string"),
    }
)


@dataclass(frozen=True)
class Source:
    """
    Where video instructions are.

    Args:
        path (`str`): A file, a folder, a pattern (`shards/*.tar`) or a dataset id on the Hub.
        media (`str`, *optional*): The folder that the paths of videos and images are relative to; by default the one
            that the file is in.
        name (`str`, *optional*): How logs and reports call it; by default its file's name.
        split (`str`): Of a dataset on the Hub.
        weight (`float`, *optional*): Its share of a mixture, beside the others'.
        license (`str`, *optional*): A note for the card of what is trained on it.
    """

    path: str
    media: str | None = None
    name: str | None = None
    split: str = "train"
    weight: float | None = None
    license: str | None = None

    @property
    def title(self) -> str:
        return self.name or Path(self.path).stem

    @property
    def files(self) -> list[Path]:
        """The files, sorted; none for a dataset on the Hub."""
        path = Path(self.path)
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.suffix in SUFFIXES]
        else:
            found = [path] if path.is_file() else [Path(file) for file in glob.glob(self.path, recursive=True)]
        return sorted(found)


# --- reading ---------------------------------------------------------------------------------------------------------


def load_source(source: Source) -> Dataset | IterableDataset:
    """
    The rows of one source, in the form of `FEATURES`. JSON is read once into an Arrow file in the cache of `datasets`,
    which is mapped into memory and has a length; everything else is streamed.

    Raises:
        ValueError: if there is nothing there, or a row is of no known form; the message names file and row.
    """
    files = source.files
    kinds = {SUFFIXES.get(file.suffix) for file in files}
    if len(kinds) > 1 or None in kinds:
        raise ValueError(
            f"{source.path}: files of one kind are read, out of {', '.join(SUFFIXES)}; found "
            f"{sorted({file.suffix for file in files})}"
        )
    if kinds == {"json"}:
        # The time is part of the cache's key, so that a changed file is read anew
        described = tuple((str(file), file.stat().st_mtime_ns) for file in files)
        try:
            return Dataset.from_generator(
                _json_rows, features=FEATURES, gen_kwargs={"source": source, "files": described}
            )
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None  # says which row it is
    if not files and (len(Path(source.path).parts) > 2 or Path(source.path).suffix in SUFFIXES):
        raise ValueError(f"{source.path}: there is no such file, and it is no dataset id of the Hub either")
    if files:
        rows = load_dataset(kinds.pop(), data_files=[str(file) for file in files], split="train", streaming=True)
    else:
        rows = load_dataset(source.path, split=source.split, streaming=True)
    columns = rows.column_names or list(next(iter(rows.decode(False))))
    rows = rows.decode(False)  # leaves videos and images the bytes or paths that they are
    return rows.map(
        partial(_numbered_conversation, source=source), with_indices=True, features=FEATURES, remove_columns=columns
    )


def _json_rows(source: Source, files: tuple[tuple[str, int], ...]) -> Iterator[dict[str, Any]]:
    number = None
    for name, _ in files:
        file = Path(name)
        here = source if source.media else replace(source, media=str(file.parent))
        for number, row in enumerate(_read_json(file)):
            try:
                yield conversation(row, here, f"{file.name}#{number}")
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file}, row {number}: {error or type(error).__name__}") from error
    if number is None:
        raise ValueError(f"{source.path} has no rows")


def _read_json(file: Path) -> Iterable[dict[str, Any]]:
    if file.suffix == ".json":
        return json.loads(file.read_text(encoding="utf-8"))
    return _read_json_lines(file)


def _read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{file}, line {number} is no JSON: {error}") from error


def _numbered_conversation(row: dict[str, Any], index: int, source: Source) -> dict[str, Any]:
    identity = row.get("id") or index
    if "__key__" in row:  # of a WebDataset, unique in its shard
        identity = f"{Path(row['__url__']).name}/{row['__key__']}"
    return conversation(row, source, str(identity))


# --- one row ---------------------------------------------------------------------------------------------------------


def conversation(row: dict[str, Any], source: Source, identity: str) -> dict[str, Any]:
    """
    A row of any known form -> one of `FEATURES`. `<video>` and `<image>` in a text stand for media; where there are
    none, the media lead the first question.

    Raises:
        ValueError: if the row is of no known form.
    """
    if isinstance(row.get("json"), dict):  # of a WebDataset: the annotation is a file beside the video
        row = {**row, **row["json"]}
    media = {kind: _find_media(row, kind, source) for kind in MEDIA}
    turns = {name: _messages(row[name]) for name in ("chosen", "rejected") if row.get(name)}
    return {
        "messages": _with_media_parts(_find_messages(row), media),
        "chosen": turns.get("chosen"),
        "rejected": turns.get("rejected"),
        "videos": media["video"],
        "images": [{key: image[key] for key in ("path", "bytes")} for image in media["image"]],
        "source": row.get("source") if isinstance(row.get("source"), str) else source.title,
        "id": identity,
    }


def _find_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    if row.get("QA"):
        instruction = row["QA"][0].get("i")
        messages = [_message("system", instruction)] if instruction else []
        for pair in row["QA"]:
            messages += [_message("user", pair.get("q") or ""), _message("assistant", pair["a"])]
        return messages
    for name in ("messages", "conversations", "prompt"):
        if row.get(name):
            return _messages(row[name], role="user")
    for name in ("answer", "caption", "text", "txt"):
        if row.get(name):
            return [_message("user", row.get("question") or DESCRIBE), _message("assistant", row[name])]
    raise ValueError(
        f"a row needs `messages`, `conversations`, `QA`, `prompt`, `answer` or `caption`; got the keys {sorted(row)}"
    )


def _messages(turns: Any, role: str = "assistant") -> list[dict[str, Any]]:
    """Messages as they are, LLaVA's turns, or one text, said by `role`."""
    if isinstance(turns, str):
        return [_message(role, turns)]
    return [
        _message(turn.get("role") or turn["from"], turn["content"] if "content" in turn else turn["value"])
        for turn in turns
    ]


def _message(role: str, content: Any) -> dict[str, Any]:
    if isinstance(content, str):
        pieces = re.split(r"(<video>|<image>)\s*", content)
        content = [{"type": piece[1:-1]} if piece in ("<video>", "<image>") else {"text": piece} for piece in pieces]
        content = [part for part in content if part.get("text") != ""] or [{"text": ""}]
    parts = [{"type": part.get("type") or "text", "text": part.get("text")} for part in content]
    return {"role": ROLES.get(role, role), "content": parts}


def _find_media(row: dict[str, Any], kind: str, source: Source) -> list[dict[str, Any]]:
    if "QA" in row and row.get(kind, "") is None:  # as in some released rows: reported when it is to be read
        return [dict.fromkeys(_CLIP)]
    found = next((row[name] for name in MEDIA[kind] if row.get(name) is not None), [])
    found = found if isinstance(found, list) else [found]
    bounds = {key: row.get(key) for key in ("start", "end")}
    return [_clip(item, source, bounds) for item in found]


def _clip(item: Any, source: Source, bounds: dict[str, float | None]) -> dict[str, Any]:
    clip = {"path": None, "bytes": None, **bounds}
    if isinstance(item, bytes):
        clip["bytes"] = item
    elif isinstance(item, str):
        clip["path"] = item
    else:
        clip |= {key: item[key] for key in clip if item.get(key) is not None}
    if clip["path"] and clip["bytes"] is None and "://" not in clip["path"]:
        clip["path"] = str(Path(source.media or ".") / clip["path"])
    return clip


def _with_media_parts(messages: list[dict[str, Any]], media: dict[str, list]) -> list[dict[str, Any]]:
    asked = next((message for message in messages if message["role"] == "user"), None)
    if asked is None:
        raise ValueError("a conversation needs a question of the user's")
    for kind, items in reversed(media.items()):
        named = sum(part["type"] == kind for message in messages for part in message["content"])
        if not named:
            asked["content"] = [{"type": kind, "text": None}] * len(items) + asked["content"]
        elif named != len(items):
            raise ValueError(f"the messages have {named} {kind} parts, but the row has {len(items)} {kind}s")
    return messages


# --- naming ----------------------------------------------------------------------------------------------------------


def read_sources(entries: list[str | dict[str, Any]], data_dir: str | None = None) -> list[Source]:
    """
    Sources as a recipe or a command line names them.

    Args:
        entries: Each a path or a dataset id, the fields of a [`Source`], or a `.yaml` file with a list of these.
        data_dir: The folder that relative paths start from.

    Raises:
        ValueError: if an entry has an unknown field, or no path.
    """
    sources = []
    for entry in entries:
        if isinstance(entry, str) and entry.endswith((".yaml", ".yml")):
            sources += read_sources(yaml.safe_load(find_file(entry).read_text(encoding="utf-8")), data_dir)
            continue
        values = {"path": entry} if isinstance(entry, str) else dict(entry)
        unknown = values.keys() - {field.name for field in fields(Source)}
        if unknown or "path" not in values:
            optional = ", ".join(field.name for field in fields(Source)[1:])
            raise ValueError(f"A source of training data has a `path`, and can have {optional}; got {values}")
        if data_dir is not None:
            moved = {name: str(Path(data_dir, values[name])) for name in ("path", "media") if values.get(name)}
            values = {"media": str(data_dir), **values, **moved}
        sources.append(Source(**values))
    return sources


def find_file(name: str) -> Path:
    """A file that a command line names: where it says, or else in this package, which has recipes and sources."""
    path = Path(name)
    return path if path.exists() else Path(__file__).parent.parent / path
