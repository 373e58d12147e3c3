"""
The gallery's page in distributions: setup.cfg names these commands for setuptools, so that `python -m build` and
`pip install .` build the page first. An editable install does without; `make gallery` builds it.
"""

import shutil
import subprocess
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import SetupError

WEB = Path(__file__).parent
PAGE = WEB.parent / "site" / "index.html"
ROOT = WEB.parents[1]


class BuildPackage(build_py):
    def run(self) -> None:
        if not self.editable_mode:
            build_page()
        super().run()


class BuildSource(sdist):
    def run(self) -> None:
        build_page()
        super().run()


def build_page() -> None:
    """
    Build gallery/site/index.html unless it is there and as new as its sources.

    Raises:
        SetupError: if npm is missing or fails.
    """
    if PAGE.exists() and (is_source_distribution() or PAGE.stat().st_mtime >= newest_source()):
        return
    npm = shutil.which("npm")
    if npm is None:
        raise SetupError("The gallery's page must be built, and npm is missing: install Node.js 20.19 or newer.")
    for command in (["ci"], ["run", "build"]):
        if subprocess.run([npm, *command], cwd=WEB).returncode != 0:
            raise SetupError(f"The gallery's page could not be built: `npm {' '.join(command)}` failed in {WEB}.")


def is_source_distribution() -> bool:
    """Whether this is an unpacked archive, in which files may have any time and the page is that of its sources."""
    return (ROOT / "PKG-INFO").exists()


def newest_source() -> float:
    files = [path for path in WEB.rglob("*") if "node_modules" not in path.parts and path.is_file()]
    return max(path.stat().st_mtime for path in files)
