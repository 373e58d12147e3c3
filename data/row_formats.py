"""
Convert rows of training data, in any of the supported formats, to conversations in the form of `FEATURES`.

Training, inspection and publishing all parse rows here, so they reject the same rows with the same messages.
"""

import json
import math
import os
import re
from reprlib import repr as short_repr
from typing import Any

from datasets import Features, List, Value

from ..video_source_pllava import is_address

DEFAULT_QUESTION = "Describe the video."  # for captions, which come without a question
MEDIA_FIELDS = {
    "video": ("video", "videos", "mp4", "webm", "mkv", "avi", "mov", "gif"),
    "image": ("image", "images", "jpg", "png"),
}
ANSWER_FIELDS = ("answer", "caption", "text", "txt")
LLAVA_ROLES = {"human": "user", "gpt": "assistant"}
MAX_CHARACTERS = 200_000  # of all texts of a row: about 50,000 tokens, more than a model reads, and slow to tokenize

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
        "error": Value("string"),  # why the row cannot be used; its lists are empty then
    }
)


class RowError(ValueError):
    """The row cannot be trained on. The message names the field and what was expected there."""


def try_parse_row(
    row: Any, source: str, identity: str, folder: str, media_folder: str | None = None, location: str = ""
) -> dict[str, Any]:
    """
    Parse a row like [`parse_row`], but return a row with only an `error` if it cannot be used. Such rows are skipped
    like clips that cannot be read.

    Args:
        row: A row, or a line of a JSON Lines file as bytes.
        location: The row's file and line, for the error message.
    """
    try:
        row = _parse_json(row) if isinstance(row, bytes) else row
        return parse_row(row, source, identity, folder, media_folder)
    except RowError as error:
        message = f"{location}: {error}" if location else str(error)
        values = {"messages": [], "videos": [], "images": [], "source": source, "id": identity, "error": message}
        return {**dict.fromkeys(FEATURES), **values}


def _parse_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise RowError(f"the line is not JSON in UTF-8: {error}") from error


def parse_row(
    row: dict[str, Any], source: str, identity: str, folder: str = "", media_folder: str | None = None
) -> dict[str, Any]:
    """
    Convert a row of any supported format to the form of `FEATURES`. `<video>` and `<image>` in a question are
    placeholders of media; without any, the media precede the first question.

    Args:
        source: The name of the source, unless the row has a `source` field.
        folder: The folder of the row's file. Media paths are relative to it, unless `media_folder` is given.
        media_folder: The folder that media paths are relative to. Without it, the absolute `path` in rows of
            `pllava caption` is used.

    Raises:
        RowError: if the row's format is not known, or a field holds an unexpected value.
    """
    if not isinstance(row, dict):
        raise RowError(f"the row should be an object of named fields; got {short_repr(row)}")
    if "__key__" in row and row.get("json") is not None:  # WebDataset: the annotation is a file beside the video
        row = {**row, **_expect(row["json"], dict, "json")}
    if isinstance(row.get("video"), str) and os.path.isabs(str(row.get("path"))) and not media_folder:
        row = {**row, "video": row["path"]}
    media = _find_media(row, media_folder or folder)
    turns = {name: _parse_turns(row[name], name) for name in ("chosen", "rejected") if row.get(name) not in (None, [])}
    messages = _with_media_parts(_find_messages(row), media)
    if len(turns) == 1 or not turns and not any(message["role"] == "assistant" for message in messages):
        raise RowError("a conversation needs an answer of the assistant; preferences need `chosen` and `rejected`")
    all_messages = [*messages, *sum(turns.values(), [])]
    length = sum(len(part["text"] or "") for message in all_messages for part in message["content"])
    if length > MAX_CHARACTERS:
        raise RowError(f"its texts have {length:,} characters; at most {MAX_CHARACTERS:,} are allowed")
    return {
        "messages": messages,
        "chosen": turns.get("chosen"),
        "rejected": turns.get("rejected"),
        "videos": media["video"],
        "images": media["image"],
        "source": _expect(row["source"], str, "source") if isinstance(row.get("source"), str) else source,
        "id": identity,
        "error": None,
    }


# --- messages --------------------------------------------------------------------------------------------------------


def _find_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Parse the messages of the first known format whose field is in the row. New formats are added here."""
    preference = ["prompt"] if row.get("chosen") is not None else []
    fields = ["QA", "messages", "conversations", *preference, *ANSWER_FIELDS]
    present = [field for field in fields if row.get(field) is not None]
    field = next((field for field in present if row[field] not in ("", [])), None)
    if field == "QA":
        return _parse_question_answer_pairs(row["QA"])
    if field in ANSWER_FIELDS:
        question = row.get("question") or row.get("prompt") or DEFAULT_QUESTION
        return [_text_message("user", question, "question"), _message("assistant", row[field], field)]
    if field is not None:
        return _parse_turns(row[field], field, role="user")
    if present:
        raise RowError(f"`{present[0]}` is empty: there is nothing to learn")
    if isinstance(row.get("error"), str):  # `pllava caption` could not read the video
        raise RowError(f"there is no caption: {_expect(row['error'], str, 'error')[:500]}")
    raise RowError(
        "a row needs `messages`, `conversations`, `QA`, `answer`, `caption`, or `prompt`, `chosen` and `rejected`; "
        f"got the keys {str(sorted(row))[:200]}"
    )


def _parse_question_answer_pairs(pairs: Any) -> list[dict[str, Any]]:
    """Parse VideoChat2-IT's `QA`: questions `q` and answers `a`, with an instruction `i` in the first pair."""
    pairs = [_expect(pair, dict, f"QA[{number}]") for number, pair in enumerate(_expect(pairs, list, "QA"))]
    instruction = pairs[0].get("i")
    messages = [_text_message("system", instruction, "QA[0].i")] if instruction else []
    for number, pair in enumerate(pairs):
        messages.append(_text_message("user", pair.get("q") or "", f"QA[{number}].q"))
        messages.append(_text_message("assistant", pair.get("a"), f"QA[{number}].a"))
    return messages


def _parse_turns(turns: Any, field: str, role: str = "assistant") -> list[dict[str, Any]]:
    """Parse chat messages, LLaVA's turns, or a single text by `role`."""
    if isinstance(turns, str):
        return [_message(role, turns, field)]
    messages = []
    for number, turn in enumerate(_expect(turns, list, field)):
        name = f"{field}[{number}]"
        turn = _expect(turn, dict, name)
        speaker = turn.get("role") or turn.get("from")
        content = turn.get("value") if turn.get("content") is None else turn["content"]
        if speaker is None or content is None:
            raise RowError(f"`{name}` needs `role` and `content` (or `from` and `value`); got {short_repr(turn)}")
        messages.append(_message(_expect(speaker, str, f"{name}.role"), content, f"{name}.content"))
    return messages


def _text_message(role: str, text: Any, field: str) -> dict[str, Any]:
    return _message(role, _expect(text, str, field), field)


def _message(role: str, content: Any, field: str) -> dict[str, Any]:
    role = LLAVA_ROLES.get(role, role)
    if not isinstance(content, list):
        text = _expect(content, str, field)
        pieces = re.split(r"(<video>|<image>)\s*", text) if role == "user" else [text]
        content = [{"type": piece[1:-1]} if piece in ("<video>", "<image>") else {"text": piece} for piece in pieces]
        content = [part for part in content if part.get("text") != ""] or [{"text": ""}]
    parts = [_parse_part(part, f"{field}[{number}]") for number, part in enumerate(content)]
    if role == "assistant" and not "".join(part["text"] or "" for part in parts).strip():
        raise RowError(f"`{field}` is empty: there is nothing to learn")
    return {"role": role, "content": parts}


def _parse_part(part: Any, field: str) -> dict[str, Any]:
    kind = _expect(part, dict, field).get("type") or "text"
    if kind not in ("text", *MEDIA_FIELDS):
        raise RowError(f"`{field}.type` should be text, video or image; got {short_repr(kind)}")
    return {"type": kind, "text": _expect(part.get("text"), str, f"{field}.text") if kind == "text" else None}


def _with_media_parts(messages: list[dict[str, Any]], media: dict[str, list]) -> list[dict[str, Any]]:
    """Put media without placeholders before the first question; check the number of placeholders otherwise."""
    question = next((message for message in messages if message["role"] == "user"), None)
    if question is None:
        raise RowError("a conversation needs a question of the user")
    for kind, items in reversed(media.items()):
        placeholders = sum(part["type"] == kind for message in messages for part in message["content"])
        if not placeholders:
            question["content"] = [{"type": kind, "text": None}] * len(items) + question["content"]
        elif placeholders != len(items):
            raise RowError(f"the messages have {placeholders} {kind} parts, but the row has {len(items)} {kind}s")
    return messages


# --- media -----------------------------------------------------------------------------------------------------------


def _find_media(row: dict[str, Any], folder: str) -> dict[str, list[dict[str, Any]]]:
    present = [field for fields in MEDIA_FIELDS.values() for field in fields if field in row]
    if present and all(row[field] is None for field in present):  # as in some VideoChat2-IT rows, which are not text
        raise RowError(f"`{present[0]}` is null: name a file, or omit the field from a row without media")
    return {kind: _parse_media(row, kind, folder) for kind in MEDIA_FIELDS}


def _parse_media(row: dict[str, Any], kind: str, folder: str) -> list[dict[str, Any]]:
    field = next((field for field in MEDIA_FIELDS[kind] if row.get(field) is not None), None)
    if field is None:
        return []
    items = row[field] if isinstance(row[field], list) else [row[field]]
    bounds = {key: _as_seconds(row.get(key), key) for key in ("start", "end")} if kind == "video" else {}
    return [_parse_medium(item, folder, bounds, f"{field}[{number}]") for number, item in enumerate(items)]


def _parse_medium(item: Any, folder: str, bounds: dict[str, float | None], field: str) -> dict[str, Any]:
    """Parse a path, the bytes of a file, or a dict of both, which may have its own `start` and `end`."""
    if isinstance(item, bytes | str):
        item = {"bytes" if isinstance(item, bytes) else "path": item}
    item = _expect(item, dict, field)
    path, content = item.get("path"), item.get("bytes")
    if not path and content is None:
        raise RowError(f"`{field}` should name a file; got {short_repr(item)}")
    if content is not None:
        _expect(content, bytes, f"{field}.bytes")
    if path and _expect(path, str, f"{field}.path") and content is None and not is_address(path):
        path = os.path.join(folder, path)
    own = {key: _as_seconds(item.get(key), f"{field}.{key}") for key in bounds}
    return {"path": path, "bytes": content, **{key: bounds[key] if own[key] is None else own[key] for key in bounds}}


# --- types of fields -------------------------------------------------------------------------------------------------

TYPES = {dict: "an object of named fields", list: "a list", str: "text", bytes: "bytes"}


def _expect(value: Any, expected: type, field: str) -> Any:
    if not isinstance(value, expected):
        raise RowError(f"`{field}` should be {TYPES[expected]}; got {short_repr(value)}")
    if expected is str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(f"`{field}` should be Unicode text; character {error.start} is a lone surrogate") from error
    return value


def _as_seconds(value: Any, field: str) -> float | None:
    if value is None:
        return None
    try:
        if not isinstance(value, bool | str) and math.isfinite(seconds := float(value)):
            return seconds
    except (OverflowError, TypeError):
        pass
    raise RowError(f"`{field}` should be a number of seconds; got {short_repr(value)}")
