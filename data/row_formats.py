"""
A row of any known form -> a conversation, in the form of `FEATURES`. Whatever is wrong with a row is found here, so
that training, inspection and publishing pass over the same rows, and say which field of them should hold what.
"""

import json
import math
import os
import re
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any

from datasets import Features, List, Value

from ..video_source_pllava import is_address

if TYPE_CHECKING:
    from .sources import Source

DESCRIBE = "Describe the video."  # is asked where a source has captions and no questions
MEDIA = {
    "video": ("video", "videos", "mp4", "webm", "mkv", "avi", "mov", "gif"),
    "image": ("image", "images", "jpg", "png"),
}
ANSWERS = ("answer", "caption", "text", "txt")
ROLES = {"human": "user", "gpt": "assistant"}  # LLaVA's names
MAX_CHARACTERS = 200_000  # of a row's texts: 50,000 tokens, more than a model reads; longer ones take long to tokenise

_MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
_IMAGE = {"path": Value("string"), "bytes": Value("binary")}
_VIDEO = {**_IMAGE, "start": Value("float64"), "end": Value("float64")}
FEATURES = Features(
    {
        "messages": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "videos": List(_VIDEO),
        "images": List(_IMAGE),
        "source": Value("string"),
        "id": Value("string"),
        "error": Value("string"),  # why the row is no conversation; the lists are empty then
    }
)


class RowError(ValueError):
    """The row cannot be trained on. The message names the field and what was expected there."""


def read_conversation(row: Any, source: "Source", identity: str, folder: str, place: str = "") -> dict[str, Any]:
    """
    [`conversation`], or a row that holds nothing but the `error`: it is passed over like a clip that cannot be read.

    Args:
        row: As [`conversation`] takes it, or a line of a JSON Lines file.
        folder: Where that file is.
        place: Its file and line, for the error.
    """
    try:
        return conversation(_parse(row) if isinstance(row, bytes) else row, source, identity, folder)
    except RowError as error:
        empty = {**dict.fromkeys(FEATURES), "messages": [], "videos": [], "images": []}
        return {**empty, "source": source.title, "id": identity, "error": f"{place}: {error}" if place else str(error)}


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise RowError(f"this is no JSON in UTF-8: {error}") from error


def conversation(row: dict[str, Any], source: "Source", identity: str, folder: str = "") -> dict[str, Any]:
    """
    A row of any known form -> one of `FEATURES`. `<video>` and `<image>` in a text stand for media; where there are
    none, the media lead the first question. Paths of media are relative to `source.media`, or else to `folder`, unless
    a row of `pllava caption` says where its video is.

    Raises:
        RowError: if the row is of no known form, or a field holds something else than is expected there.
    """
    row = _record(row, "the row")
    if "__key__" in row and row.get("json") is not None:  # of a WebDataset: a file beside the video
        row = {**row, **_record(row["json"], "`json`")}
    if isinstance(row.get("video"), str) and os.path.isabs(str(row.get("path"))) and not source.media:
        row = {**row, "video": row["path"]}  # `pllava caption` notes where a video is, and how it was named
    media = _find_media(row, source.media or folder)
    turns = {name: _messages(row[name], name) for name in ("chosen", "rejected") if row.get(name) not in (None, [])}
    messages = _with_media_parts(_find_messages(row), media)
    if len(turns) == 1 or not turns and not any(message["role"] == "assistant" for message in messages):
        raise RowError("a conversation needs an answer of the assistant's; preferences need `chosen` and `rejected`")
    said = [*messages, *sum(turns.values(), [])]
    if (length := sum(len(part["text"] or "") for message in said for part in message["content"])) > MAX_CHARACTERS:
        raise RowError(f"its texts have {length:,} characters; at most {MAX_CHARACTERS:,} are read")
    return {
        "messages": messages,
        "chosen": turns.get("chosen"),
        "rejected": turns.get("rejected"),
        "videos": media["video"],
        "images": media["image"],
        "source": _text(row["source"], "source") if isinstance(row.get("source"), str) else source.title,
        "id": identity,
        "error": None,
    }


# --- messages --------------------------------------------------------------------------------------------------------


def _find_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    forms = ["QA", "messages", "conversations", *(["prompt"] if row.get("chosen") is not None else []), *ANSWERS]
    given = [name for name in forms if row.get(name) is not None]
    name = next((name for name in given if row[name] not in ("", [])), None)
    if name == "QA":
        return _question_answer_pairs(row["QA"])
    if name in ANSWERS:
        question = row.get("question") or row.get("prompt") or DESCRIBE
        return [_message("user", _text(question, "question"), "question"), _message("assistant", row[name], name)]
    if name is not None:
        return _messages(row[name], name, role="user")
    if given:
        raise RowError(f"`{given[0]}` is empty: there is nothing to learn")
    if isinstance(row.get("error"), str):  # as `pllava caption` notes a video that it could not read
        raise RowError(f"there is no caption: {_text(row['error'], 'error')[:500]}")
    raise RowError(
        "a row needs `messages`, `conversations`, `QA`, `answer`, `caption`, or `prompt`, `chosen` and `rejected`; "
        f"got the keys {str(sorted(row))[:200]}"
    )


def _question_answer_pairs(pairs: Any) -> list[dict[str, Any]]:
    """VideoChat2-IT's: an instruction `i` in the first of them, questions `q` and answers `a`."""
    pairs = [_record(pair, f"`QA[{number}]`") for number, pair in enumerate(_list(pairs, "QA"))]
    instruction = pairs[0].get("i")
    messages = [_message("system", _text(instruction, "QA[0].i"), "QA[0].i")] if instruction else []
    for number, pair in enumerate(pairs):
        messages.append(_message("user", _text(pair.get("q") or "", f"QA[{number}].q"), f"QA[{number}].q"))
        messages.append(_message("assistant", _text(pair.get("a"), f"QA[{number}].a"), f"QA[{number}].a"))
    return messages


def _messages(turns: Any, field: str, role: str = "assistant") -> list[dict[str, Any]]:
    """Messages as they are, LLaVA's turns, or one text, said by `role`."""
    if isinstance(turns, str):
        return [_message(role, turns, field)]
    messages = []
    for number, turn in enumerate(_list(turns, field)):
        place = f"{field}[{number}]"
        turn = _record(turn, f"`{place}`")
        said_by = turn.get("role") or turn.get("from")
        content = turn.get("value") if turn.get("content") is None else turn["content"]
        if said_by is None or content is None:
            raise RowError(f"`{place}` needs `role` and `content` (or `from` and `value`); got {short_repr(turn)}")
        messages.append(_message(_text(said_by, f"{place}.role"), content, f"{place}.content"))
    return messages


def _message(role: str, content: Any, field: str) -> dict[str, Any]:
    if not isinstance(content, list):
        text = _text(content, field)
        pieces = re.split(r"(<video>|<image>)\s*", text) if ROLES.get(role, role) == "user" else [text]
        content = [{"type": piece[1:-1]} if piece in ("<video>", "<image>") else {"text": piece} for piece in pieces]
        content = [part for part in content if part.get("text") != ""] or [{"text": ""}]
    parts = [_part(part, f"{field}[{number}]") for number, part in enumerate(content)]
    role = ROLES.get(role, role)
    if role == "assistant" and not "".join(part["text"] or "" for part in parts).strip():
        raise RowError(f"`{field}` is empty: there is nothing to learn")
    return {"role": role, "content": parts}


def _part(part: Any, field: str) -> dict[str, Any]:
    kind = _record(part, f"`{field}`").get("type") or "text"
    if kind not in ("text", *MEDIA):
        raise RowError(f"`{field}.type` should be text, video or image; got {short_repr(kind)}")
    return {"type": kind, "text": _text(part.get("text"), f"{field}.text") if kind == "text" else None}


def _with_media_parts(messages: list[dict[str, Any]], media: dict[str, list]) -> list[dict[str, Any]]:
    asked = next((message for message in messages if message["role"] == "user"), None)
    if asked is None:
        raise RowError("a conversation needs a question of the user's")
    for kind, items in reversed(media.items()):
        named = sum(part["type"] == kind for message in messages for part in message["content"])
        if not named:
            asked["content"] = [{"type": kind, "text": None}] * len(items) + asked["content"]
        elif named != len(items):
            raise RowError(f"the messages have {named} {kind} parts, but the row has {len(items)} {kind}s")
    return messages


# --- media -----------------------------------------------------------------------------------------------------------


def _find_media(row: dict[str, Any], folder: str) -> dict[str, list[dict[str, Any]]]:
    named = [name for names in MEDIA.values() for name in names if name in row]
    if named and all(row[name] is None for name in named):  # as in some of VideoChat2-IT's: not to be taken for text
        raise RowError(f"`{named[0]}` is null: name a file, or leave the field out of a row without one")
    return {kind: _media_of_kind(row, kind, folder) for kind in MEDIA}


def _media_of_kind(row: dict[str, Any], kind: str, folder: str) -> list[dict[str, Any]]:
    name = next((name for name in MEDIA[kind] if row.get(name) is not None), None)
    if name is None:
        return []
    items = row[name] if isinstance(row[name], list) else [row[name]]
    bounds = {key: _seconds(row.get(key), key) for key in ("start", "end")} if kind == "video" else {}
    return [_medium(item, folder, bounds, f"{name}[{number}]") for number, item in enumerate(items)]


def _medium(item: Any, folder: str, bounds: dict[str, float | None], field: str) -> dict[str, Any]:
    """A path, the bytes of a file, or both in a dict, which can have bounds of its own."""
    if isinstance(item, bytes | str):
        item = {"bytes" if isinstance(item, bytes) else "path": item}
    item = _record(item, f"`{field}`")
    path, content = item.get("path"), item.get("bytes")
    if not path and content is None:
        raise RowError(f"`{field}` should name a file; got {short_repr(item)}")
    if not isinstance(content, bytes | None):
        raise RowError(f"`{field}.bytes` should be bytes; got {short_repr(content)}")
    if path and _text(path, f"{field}.path") and content is None and not is_address(path):
        path = os.path.join(folder, path)
    own = {key: _seconds(item.get(key), f"{field}.{key}") for key in bounds}
    return {"path": path, "bytes": content, **{key: bounds[key] if own[key] is None else own[key] for key in bounds}}


# --- what a field should hold ----------------------------------------------------------------------------------------


def _record(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(f"{name} should be an object of named fields; got {short_repr(value)}")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(f"`{field}` should be a list; got {short_repr(value)}")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"`{field}` should be text; got {short_repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"`{field}` should be Unicode text; character {error.start} is half of a pair") from error
    return value


def _seconds(value: Any, field: str) -> float | None:
    if value is None:
        return None
    try:
        if not isinstance(value, bool | str) and math.isfinite(seconds := float(value)):
            return seconds
    except (OverflowError, TypeError):
        pass
    raise RowError(f"`{field}` should be a number of seconds; got {short_repr(value)}")
