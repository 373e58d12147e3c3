"""Galleries: results of real evaluations that they are made from, and the page in a browser with synthetic data."""

import functools
import http.server
import json
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmark_folders import write_mvbench, write_vcgbench, write_videoqa
from browser import open_browser, open_page
from chat_server import Reply, chat_server
from filelock import FileLock
from gallery_data import make_gallery, write_gallery
from typer.testing import CliRunner

from pllava.nano.data import render
from pllava_cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "gallery" / "site" / "index.html"
REASON = "It says the same in other words."


@dataclass(frozen=True)
class Evaluated:
    """Folders: `nano` and `fewer` (8 frames) have nano's world; `published` MVBench, VCGBench and MSVD-QA, judged."""

    data: Path
    nano: Path
    fewer: Path
    published: Path


def run(*arguments: object) -> str:
    """Run `pllava` in this process."""
    finished = CliRunner().invoke(app, list(map(str, arguments)))
    assert finished.exit_code == 0, finished.output
    return finished.output


def grade(request: dict) -> Reply:
    """Grade like a judge that finds every second answer good; one reply is no grade."""
    wanted = request["response_format"]["json_schema"]["schema"]["required"]
    if "Q2" not in request and len(request["messages"][-1]["content"]) % 7 == 0:
        return Reply("I would rather not say.")
    good = len(request["messages"][-1]["content"]) % 2
    values = {"pred": "yes" if good else "no", "score": 4 if good else 1, "reason": REASON}
    return Reply(json.dumps({name: values[name] for name in wanted}))


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory) -> Evaluated:
    folder = tmp_path_factory.mktemp("evaluated")
    world = folder / "world"
    render(world, clips=4, seed=3)
    run("eval", "nano", "--data", world, "--out", folder / "nano", "--controls", "--workers", 0)
    run("eval", "nano", "--data", world, "--out", folder / "fewer", "--num-frames", 8, "--workers", 0)
    data = folder / "DATAS"
    write_mvbench(data, per_task=1)
    write_vcgbench(data)
    write_videoqa(data, "msvd_qa")
    next((data / "MVBench").rglob("clip_3_0.webm")).unlink()  # unreadable
    judged = ["--judge", "stub", "--judge-endpoint"]
    with chat_server(grade) as (url, _):
        names = "mvbench,vcgbench,msvd_qa"
        run("eval", "nano", "--benchmark", names, "--data", data, "--out", folder / "published", *judged, url)
    return Evaluated(world, folder / "nano", folder / "fewer", folder / "published")


@pytest.fixture
def results(evaluated, tmp_path) -> Evaluated:
    """Copies of the folders of results that a test may change; they name the same clips."""
    copies = {name: tmp_path / "results" / name for name in ("nano", "fewer", "published")}
    for name, copy in copies.items():
        shutil.copytree(getattr(evaluated, name), copy)
    return Evaluated(evaluated.data, **copies)


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
