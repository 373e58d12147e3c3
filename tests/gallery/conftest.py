"""Galleries: results of real evaluations that they are made from, and the page in a browser with synthetic data."""

import functools
import http.server
import shutil
import subprocess
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from browser import open_browser, open_page
from filelock import FileLock
from gallery_data import make_gallery, write_gallery
from gallery_export import Evaluated, evaluate_all

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "gallery" / "site" / "index.html"


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory) -> Evaluated:
    return evaluate_all(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture
def copied(evaluated, tmp_path) -> Evaluated:
    """Folders of results, and of clips, that a test may change. The results still name the clips of `evaluated`."""
    copies = {name: tmp_path / "copied" / name for name in ("data", "nano", "fewer", "published")}
    for name, copy in copies.items():
        shutil.copytree(getattr(evaluated, name), copy)
    return replace(evaluated, **copies)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A stand-in for the built page."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text('<!doctype html><title>Gallery</title><script src="data/gallery.js"></script>')
    (folder / "icon.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    return folder


@pytest.fixture(scope="session")
def built_page():
    """The page of the present sources."""
    if shutil.which("npm"):
        with FileLock(Path(tempfile.gettempdir(), "pllava-gallery-page.lock")):  # the other process builds it, too
            subprocess.run(["make", "gallery"], cwd=ROOT, check=True, capture_output=True)
    elif not PAGE.exists():
        pytest.skip("the gallery's page is not built, and npm, which builds it, is missing")
    return PAGE


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser):
    with open_page(browser, viewport={"width": 1280, "height": 800}) as page:
        page.set_default_timeout(5000)
        yield page


@pytest.fixture(scope="session")
def small_gallery(built_page, tmp_path_factory):
    """A gallery of 40 samples and two runs, as a file."""
    return write_gallery(tmp_path_factory.mktemp("small"), built_page, make_gallery(chat="http://127.0.0.1:7860"))


@pytest.fixture(scope="session")
def large_gallery(built_page, tmp_path_factory):
    """A gallery of 4,000 samples and three runs, as a file."""
    return write_gallery(tmp_path_factory.mktemp("large"), built_page, make_gallery(samples=4000, runs=3))


@pytest.fixture(scope="session", params=["file", "http"])
def address(request, small_gallery):
    """The address of the small gallery: from disk, and from a plain server."""
    if request.param == "file":
        yield small_gallery.as_uri()
        return
    handler = functools.partial(QuietHandler, directory=small_gallery.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass
