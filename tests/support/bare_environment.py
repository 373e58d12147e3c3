"""
A user's environment without this project: Python with transformers, torch, torchvision and av, what these require, and
nothing else. Packages come from the environment of the tests, so nothing is installed.
"""

import os
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BARE = ("transformers", "torch", "torchvision", "av")


def run_bare(
    script: str | Path, *arguments: object, packages: tuple[str, ...] = (), cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """
    Run Python code, or the script of a `Path`, in that environment.

    Args:
        arguments: `sys.argv[1:]`.
        packages: Distributions that are there, too, with what they require.
        cwd: By default an empty folder.
        environment: Variables beside those of this process.
    """
    code = [str(script.resolve())] if isinstance(script, Path) else ["-c", script]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as empty:
        return subprocess.run(
            # Neither site-packages (-S), nor those of the user (-s), nor the script's folder (-P) are searched
            [sys.executable, "-S", "-s", "-P", *code, *map(str, arguments)],
            cwd=cwd or empty,
            env={**inherited, **environment, "PYTHONPATH": _packages_folder(packages).name},
            capture_output=True,
            text=True,
            timeout=300,
        )


@cache
def _packages_folder(packages: tuple[str, ...]) -> tempfile.TemporaryDirectory:
    """Return a folder of links to the files of the distributions."""
    folder = tempfile.TemporaryDirectory(prefix="bare_")
    wanted = _closure([*BARE, *packages])
    others = {entry for each in distributions() if _name(each) not in wanted for entry in _entries(each)}
    for name in wanted:
        each = distribution(name)
        for entry in _entries(each) - others:
            link = Path(folder.name, entry)
            if not link.is_symlink():  # a namespace that several distributions share
                link.symlink_to(each.locate_file(entry))
        for file in each.files:
            if file.parts[0] in others:  # a namespace that distributions outside the environment share, too
                link = Path(folder.name, file)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(each.locate_file(file))
    return folder


def _closure(requirements: list[str]) -> set[str]:
    """Return the names of the distributions that fulfil the requirements, and of those that they require."""
    seen, todo = set(), [Requirement(each) for each in requirements]
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key not in seen:
                seen.add(key)
                nested = map(Requirement, distribution(requirement.name).requires or [])
                todo += [each for each in nested if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def _entries(each: Distribution) -> set[str]:
    """Return the names in site-packages that belong to a distribution."""
    return {file.parts[0] for file in each.files or []} - {"..", "__pycache__"}


def _name(each: Distribution) -> str:
    return canonicalize_name(each.metadata["Name"])
