"""
Video instructions of any format -> streams of conversations: `messages`, `videos` and `images`, nothing decoded.

A source is a file, a folder or a pattern of JSON, JSON Lines, Parquet or WebDataset files, or a dataset on the Hub.
Its rows may be VideoChat2-IT's (`QA`), LLaVA's (`conversations`), chats (`messages`), preferences (`prompt`, `chosen`,
`rejected`) or captions. `load_source` brings them to one form.
"""

import glob
import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from ..video_source_pllava import is_address
from .row_formats import FEATURES, read_conversation

SUFFIXES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True)
class Source:
    """
    Where video instructions are.

    Args:
        path (`str`): A file, a folder, a pattern (`shards/*.tar`) or a dataset id on the Hub.
        media (`str`, *optional*): The folder that the paths of videos and images are relative to; by default the one
            that the file is in. Rows that `pllava caption` wrote say themselves where their videos are.
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
    The rows of one source, in the form of `FEATURES`; one that is no conversation has an `error`. JSON is read once
    into an Arrow file in the cache of `datasets`, which is mapped into memory and has a length; all else is streamed.

    Raises:
        ValueError: if there is nothing there, a file of JSON cannot be parsed, or not one of its rows can be used; the
            message names file and row.
    """
    files = source.files
    kinds = {SUFFIXES.get(file.suffix) for file in files}
    if len(kinds) > 1 or None in kinds:
        raise ValueError(
            f"{source.path}: files of one kind are read, out of {', '.join(SUFFIXES)}; found "
            f"{sorted({file.suffix for file in files})}"
        )
    if kinds == {"json"}:
        return _load_json(source, files)
    if not files and (len(Path(source.path).parts) > 2 or Path(source.path).suffix in SUFFIXES):
        raise ValueError(f"{source.path}: there is no such file, and it is no dataset id of the Hub either")
    if files:
        folder = os.path.commonpath([file.parent.absolute() for file in files])
        stream = load_dataset(kinds.pop(), data_files=[str(file) for file in files], split="train", streaming=True)
    else:
        folder = ""
        stream = load_dataset(source.path, split=source.split, streaming=True)
    stream = stream.decode(False)  # leaves videos and images the bytes or paths that they are
    columns = stream.column_names or list(next(iter(stream)))
    read = partial(_read_streamed, source=source, folder=folder)
    return stream.map(read, with_indices=True, features=FEATURES, remove_columns=columns)


def _load_json(source: Source, files: list[Path]) -> Dataset:
    # The cache knows when files were changed, and the code that read them: neither is served as it was before
    parts = (inspect.getmodule(read_conversation), is_address, _json_rows, _read_json)
    code = [inspect.getsource(part) for part in parts]
    fingerprint = Hasher.hash([source, [(str(file.absolute()), file.stat().st_mtime_ns) for file in files], code])
    try:
        return Dataset.from_generator(
            _json_rows, FEATURES, gen_kwargs={"source": source, "files": tuple(files)}, fingerprint=fingerprint
        )
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None  # names the file


def _json_rows(source: Source, files: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    read, usable, first_error = 0, 0, None
    for file in files:
        for number, (place, content) in enumerate(_read_json(file)):
            row = read_conversation(content, source, f"{file.name}#{number}", str(file.parent), f"{file}, {place}")
            read, usable = read + 1, usable + (row["error"] is None)
            first_error = first_error or row["error"]
            yield row
    if not read:
        raise ValueError(f"{source.path} has no rows")
    if not usable:
        raise ValueError(f"not one row of {read} can be used; the first: {first_error}")


def _read_json(file: Path) -> Iterator[tuple[str, Any]]:
    """Rows, or lines as they are, each with its place in the file."""
    if file.suffix == ".jsonl":
        with file.open("rb") as lines:
            yield from ((f"line {n}", line.strip()) for n, line in enumerate(lines, start=1) if line.strip())
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{file} is no JSON in UTF-8, or breaks off: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{file} should be a list of rows; it is a {type(content).__name__}")
    yield from ((f"row {number}", row) for number, row in enumerate(content))


def _read_streamed(row: dict[str, Any], index: int, source: Source, folder: str) -> dict[str, Any]:
    identity = row.get("id") or index
    if "__key__" in row:  # of a WebDataset, unique in its shard
        identity = f"{Path(row['__url__']).name}/{row['__key__']}"
    return read_conversation(row, source, str(identity), folder)


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
    """
    A file that a command line names: where it says, or else in this package, which has recipes and sources.

    Raises:
        ValueError: if it is in neither place.
    """
    for path in (Path(name), Path(__file__).parent.parent / name):
        if path.is_file():
            return path
    raise ValueError(f"{name}: there is no such file, and none that ships with the package is called so")
