"""How the gallery's page gets into distributions: npm builds it, or none is made; editable installs do without."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from repository import copy_repository

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm, which builds the page, is missing"),
]
PAGE = "gallery/site/index.html"


@pytest.fixture
def source(tmp_path):
    """A copy of the repository as git has it: without the page."""
    return copy_repository(tmp_path / "pllava", "site", "tests")


@pytest.fixture
def without_npm(tmp_path):
    """An environment in which no npm is found."""
    (tmp_path / "bin").mkdir()
    return os.environ | {"PATH": str(tmp_path / "bin")}


def build(source, *options, environment=None):
    """Run `python -m build` and return its return code and output."""
    command = [sys.executable, "-m", "build", "--outdir", source.parent / "dist", *options, source]
    return run(command, source.parent, environment)


def run(command, folder, environment=None):
    result = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    return result.returncode, result.stdout + result.stderr


def test_a_wheel_gets_the_page_from_npm(source):
    code, output = build(source, "--wheel")
    assert code == 0, output[-3000:]
    (wheel,) = (source.parent / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        page = content.read(f"pllava/{PAGE}").decode()
        assert not [name for name in content.namelist() if "gallery/web" in name]
    assert "Content-Security-Policy" in page and "data/gallery.js" in page
    assert "preact" in page and "MIT License" in page  # the notices of the libraries that it contains


def test_without_npm_no_wheel_is_built(source, without_npm):
    code, output = build(source, "--wheel", environment=without_npm)
    assert code != 0 and not list(source.parent.glob("dist/*.whl"))
    assert "error: The gallery's page must be built, and npm is missing: install Node.js" in output


def test_a_source_distribution_has_the_page_and_makes_a_wheel_without_npm(source, without_npm):
    code, output = build(source, "--sdist")
    assert code == 0, output[-3000:]
    (archive,) = (source.parent / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(source.parent / "unpacked", filter="data")
    (unpacked,) = (source.parent / "unpacked").iterdir()
    assert (unpacked / "gallery/web/src/main.tsx").exists() and (unpacked / "gallery/web/package-lock.json").exists()
    assert not (unpacked / "gallery/web/node_modules").exists()
    os.utime(unpacked / PAGE, (0, 0))  # installers may set any time
    code, output = build(unpacked, "--wheel", environment=without_npm)
    assert code == 0, output[-3000:]


def test_a_page_older_than_its_sources_is_built_again(source):
    (source / PAGE).parent.mkdir()
    (source / PAGE).write_text("old")
    os.utime(source / PAGE, (0, 0))
    code, output = build(source, "--wheel")
    assert code == 0, output[-3000:]
    assert (source / PAGE).read_text() != "old"


def test_an_editable_install_needs_no_npm(source, without_npm, tmp_path):
    target = tmp_path / "installed"
    options = ["--quiet", "--no-deps", "--target", target, "--editable"]
    code, output = run([sys.executable, "-m", "pip", "install", *options, source], tmp_path, without_npm)
    assert code == 0, output[-3000:]
    assert not (source / PAGE).exists()
