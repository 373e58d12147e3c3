"""
Sources of training data: what a user can name, and how their rows are loaded as conversations (see `row_formats`).

A source is a file, a folder or a pattern of JSON, JSON Lines, Parquet or WebDataset files, or a dataset on the Hub.
Its rows may be VideoChat2-IT's (`QA`), LLaVA's (`conversations`), chats (`messages`), preferences (`prompt`, `chosen`,
`rejected`) or captions. Videos and images are not decoded here.
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
from .row_formats import FEATURES, try_parse_row

SUFFIXES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True)
class Source:
    """
    One source of training data.

    Args:
        path (`str`): A file, a folder, a pattern (`shards/*.tar`) or a dataset id on the Hub.
        media (`str`, *optional*): The folder that paths of videos and images are relative to; by default the folder of
            the annotation file. Rows written by `pllava caption` contain the absolute paths of their videos.
        name (`str`, *optional*): The name in logs and reports; by default the name of the file.
        split (`str`): The split of a dataset on the Hub.
        weight (`float`, *optional*): The weight in a mixture, relative to the other sources.
        license (`str`, *optional*): A note for the cards of the datasets and models that are made from it.
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
        """The files, sorted; empty for a dataset on the Hub."""
        path = Path(self.path)
        if path.is_dir():
            return sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        return [path] if path.is_file() else sorted(map(Path, glob.glob(self.path, recursive=True)))


def read_sources(entries: list[str | dict[str, Any]], data_dir: str | None = None) -> list[Source]:
    """
    Parse the sources of a recipe or a command line.

    Args:
        entries: Each is a path or a dataset id, the fields of a [`Source`], or a `.yaml` file with a list of these.
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
        _, *optional = [field.name for field in fields(Source)]
        if "path" not in values or values.keys() - {"path", *optional}:
            raise ValueError(
                f"A source of training data has a `path`, and can have {', '.join(optional)}; got {values}"
            )
        if data_dir is not None:
            moved = {name: str(Path(data_dir, values[name])) for name in ("path", "media") if values.get(name)}
            values = {"media": str(data_dir), **values, **moved}
        sources.append(Source(**values))
    return sources


def find_file(name: str) -> Path:
    """
    Find a file by its path, or else by its path inside this package, which contains recipes and lists of sources.

    Raises:
        ValueError: if there is neither.
    """
    for path in (Path(name), Path(__file__).parent.parent / name):
        if path.is_file():
            return path
    raise ValueError(f"{name}: there is no such file, and none of the package's own files has this name")


def load_source(source: Source) -> Dataset | IterableDataset:
    """
    Load the rows of a source in the form of `FEATURES`. Rows that cannot be used have an `error`. JSON files are
    converted once to a memory-mapped Arrow file in the cache of `datasets`; all other formats are streamed.

    Raises:
        ValueError: if there are no files, a JSON file cannot be parsed, or none of the rows can be used. The message
            names the file and the row.
    """
    files = source.files
    kinds = {SUFFIXES.get(file.suffix) for file in files}
    if len(kinds) > 1 or None in kinds:
        raise ValueError(
            f"{source.path}: the files of a source must all be of one kind, out of {', '.join(SUFFIXES)}; found "
            f"{sorted({file.suffix for file in files})}"
        )
    if kinds == {"json"}:
        return _load_json(source, files)
    if not files and (len(Path(source.path).parts) > 2 or Path(source.path).suffix in SUFFIXES):
        raise ValueError(f"{source.path}: there is no such file, and it is not a dataset id of the Hub either")
    if files:
        folder = os.path.commonpath([file.parent.absolute() for file in files])
        stream = load_dataset(kinds.pop(), data_files=[str(file) for file in files], split="train", streaming=True)
    else:
        folder = ""
        stream = load_dataset(source.path, split=source.split, streaming=True)
    stream = stream.decode(False)  # videos and images stay bytes or paths
    columns = stream.column_names or list(next(iter(stream)))
    parse = partial(_parse_streamed, source=source, folder=folder)
    return stream.map(parse, with_indices=True, features=FEATURES, remove_columns=columns)


def _load_json(source: Source, files: list[Path]) -> Dataset:
    # The cached rows are not used again after the files, or the code that parses them, have changed
    code = [
        inspect.getsource(part) for part in (inspect.getmodule(try_parse_row), is_address, _parse_json, _read_json)
    ]
    fingerprint = Hasher.hash([source, [(str(file.absolute()), file.stat().st_mtime_ns) for file in files], code])
    try:
        return Dataset.from_generator(
            _parse_json, FEATURES, gen_kwargs={"source": source, "files": tuple(files)}, fingerprint=fingerprint
        )
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None  # the cause names the file


def _parse_json(source: Source, files: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    count, usable, first_error = 0, 0, None
    for file in files:
        for number, (location, content) in enumerate(_read_json(file)):
            identity, folder = f"{file.name}#{number}", str(file.parent)
            row = try_parse_row(content, source.title, identity, folder, source.media, f"{file}, {location}")
            count, usable = count + 1, usable + (row["error"] is None)
            first_error = first_error or row["error"]
            yield row
    if not count:
        raise ValueError(f"{source.path} has no rows")
    if not usable:
        raise ValueError(f"none of the {count} rows can be used; the first error: {first_error}")


def _read_json(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield parsed rows, or unparsed lines, each with its location in the file."""
    if file.suffix == ".jsonl":
        with file.open("rb") as lines:
            yield from ((f"line {n}", line.strip()) for n, line in enumerate(lines, start=1) if line.strip())
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{file} is not JSON in UTF-8, or is truncated: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{file} should be a list of rows; it is a {type(content).__name__}")
    yield from ((f"row {number}", row) for number, row in enumerate(content))


def _parse_streamed(row: dict[str, Any], index: int, source: Source, folder: str) -> dict[str, Any]:
    identity = row.get("id") or index
    if "__key__" in row:  # of a WebDataset row; it is unique within its shard
        identity = f"{Path(row['__url__']).name}/{row['__key__']}"
    return try_parse_row(row, source.title, str(identity), folder, source.media)
