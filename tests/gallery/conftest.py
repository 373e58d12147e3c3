"""Results of real evaluations that galleries are made from: nano on benchmarks in their original layouts."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmark_folders import write_mvbench, write_vcgbench, write_videoqa
from chat_server import Reply, chat_server
from typer.testing import CliRunner

from pllava.nano.data import render
from pllava_cli import app

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
