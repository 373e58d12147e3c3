"""Find a benchmark's files on disk or on the Hub, unpack its archives, and find its clips."""

import os
import shutil
import zipfile
from functools import lru_cache
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from ...checkpoint_files import fetch
from ...files import VIDEO_SUFFIXES

PARTIAL, UNPACKED = ".zip.partial", ".zip.unpacked"  # replace an archive's suffix: its temporary folder, its marker


def find_folder(data: str, folder: str) -> Path:
    """
    Return `data`/`folder`, or `data` itself if it has no such folder.

    Args:
        data: A folder, or the id of a dataset on the Hub, which is downloaded and whose zip archives are unpacked.

    Raises:
        ValueError: if there is neither.
    """
    path = fetch(data, repo_type="dataset")
    if path != Path(data):
        unpack_archives(path)
    return path / folder if (path / folder).is_dir() else path


def unpack_archives(folder: Path) -> None:
    """Unpack the zip archives in a downloaded dataset, and those inside them, each once."""
    if _packed_archives(folder):
        with WeakFileLock(folder / ".unpacking.lock"):  # one process unpacks, the others wait
            _unpack_archives(folder)


def _packed_archives(folder: Path) -> list[Path]:
    archives = []
    # os.walk, unlike rglob, tolerates folders that another process moves away
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(PARTIAL)]
        archives += [Path(directory, name) for name in names if name.endswith(".zip")]
    return [archive for archive in sorted(archives) if not archive.with_suffix(UNPACKED).exists()]


def _unpack_archives(folder: Path) -> None:
    """Unpack each archive, and the archives inside it, to a temporary folder, and move each file into place whole."""
    for archive in _packed_archives(folder):
        temporary = archive.with_suffix(PARTIAL)
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
        with zipfile.ZipFile(archive) as content:
            content.extractall(temporary)  # never writes outside the folder, whatever the names inside
        _unpack_archives(temporary)
        for file in [path for path in temporary.rglob("*") if path.is_file()]:
            target = archive.parent / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
        shutil.rmtree(temporary)
        archive.with_suffix(UNPACKED).touch()


def find_video(folder: Path, *names: str) -> str:
    """
    Return the path of the clip in `folder` with one of the names, with or without suffix. If there is none, return the
    path where the first was expected, so that the sample is kept and reported as unreadable.
    """
    for name in names:
        if (folder / name).exists():
            return str(folder / name)
        if clips := _clips_by_name(folder).get(name):
            return str(min(clips, key=lambda path: VIDEO_SUFFIXES.index(path.suffix.lower())))
    return str(folder / names[0])


@lru_cache(maxsize=16)
def _clips_by_name(folder: Path) -> dict[str, list[Path]]:
    """Map the clips' names without suffix to their paths, at any depth."""
    clips: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            clips.setdefault(path.stem, []).append(path)
    return clips
