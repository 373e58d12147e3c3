"""Copies of the repository, to build and install."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a working tree has besides: environments, caches, builds, and the clips and models of trainings
UNTRACKED = (".git", ".venv*", ".*_cache", "*.egg-info", "__pycache__", "build", "dist", "node_modules", "nano-*")


def copy_repository(folder: Path, *ignored: str) -> Path:
    """Copy the repository to `folder`, without files and folders of the names, or patterns, `ignored`."""
    return Path(shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*UNTRACKED, *ignored)))
