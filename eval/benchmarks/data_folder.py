"""Where a benchmark's files are: on the disk, on the Hub, in archives."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock

from ...checkpoint_files import fetch
from ...files import VIDEO_SUFFIXES

PARTIAL, UNPACKED = ".zip.partial", ".zip.unpacked"  # in the place of an archive's suffix


def find_folder(data: str, folder: str) -> Path:
    """
    Where a benchmark's files are: `data`/`folder`, or `data` itself if there is no such folder in it.

    Args:
        data: A folder, or the id of a dataset on the Hub. That is fetched, and zip archives in it are unpacked.

    Raises:
        ValueError: if there is neither.
    """
    path = fetch(data, repo_type="dataset")
    if path != Path(data):
        _unpack(path)
    return path / folder if (path / folder).is_dir() else path


def _unpack(folder: Path) -> None:
    """
    Unpacks each zip archive beside itself, once: a file that is written last says that it is done. One process does
    it, and the others wait.
    """
    if _packed(folder):
        with WeakFileLock(folder / ".unpacking.lock"):
            _unpack_archives(folder)


def _packed(folder: Path) -> list[Path]:
    """The archives that are not unpacked yet."""
    found = []
    # Unlike a pattern, it passes over folders that another process moves away
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(PARTIAL)]
        found += [Path(inside, name) for name in names if name.endswith(".zip")]
    return [archive for archive in sorted(found) if not archive.with_suffix(UNPACKED).exists()]


def _unpack_archives(folder: Path) -> None:
    for archive in _packed(folder):
        _unpack_archive(archive)
        archive.with_suffix(UNPACKED).touch()


def _unpack_archive(archive: Path) -> None:
    """Each file appears whole, and those of archives in it with them: written under another name, and moved."""
    beside = archive.with_suffix(PARTIAL)
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    with zipfile.ZipFile(archive) as content:
        content.extractall(beside)  # which keeps to that folder, whatever names are inside
    _unpack_archives(beside)
    for file in [path for path in beside.rglob("*") if path.is_file()]:
        target = archive.parent / file.relative_to(beside)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(beside)


def read_json(file: Path) -> list[dict[str, Any]]:
    """
    Raises:
        ValueError: if the file is not there, or no list of objects.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must be a list of objects")
    return rows


@lru_cache(maxsize=16)
def _clips_by_name(folder: Path) -> dict[str, list[Path]]:
    """The clips in a folder and the folders in it, by their names without suffix."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    return found


def find_video(folder: Path, *names: str) -> str:
    """
    The clip in `folder` that has one of the names, which may lack their suffix. If none is there, the path of the
    first as it would be: so that the sample is kept, and reported as one that cannot be read.
    """
    for name in names:
        if (folder / name).exists():
            return str(folder / name)
        if found := _clips_by_name(folder).get(name):
            return str(min(found, key=lambda path: VIDEO_SUFFIXES.index(path.suffix.lower())))
    return str(folder / names[0])
