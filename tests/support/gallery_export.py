"""Results of real evaluations that galleries are made from, and exported galleries as the page reads them."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_folders import write_mvbench, write_vcgbench, write_videoqa
from chat_server import Reply, chat_server
from typer.testing import CliRunner

from pllava.gallery.data import VARIABLE
from pllava.gallery.exporting import export_gallery
from pllava.nano.world.rendering import render
from pllava_cli import app

REASON = "It says the same in other words."


@dataclass(frozen=True)
class Evaluated:
    """
    Folders of results: `nano` and `fewer` (8 frames) of nano's world, `published` of MVBench, VCGBench and MSVD-QA,
    which a judge graded. `data` has the clips; one of MVBench's is missing.
    """

    data: Path
    nano: Path
    fewer: Path
    published: Path


def run(*arguments: object) -> str:
    """Run `pllava` in this process."""
    finished = CliRunner().invoke(app, list(map(str, arguments)))
    assert finished.exit_code == 0, finished.output
    return finished.output


def grade(request: dict[str, Any]) -> Reply:
    """Reply like a judge: a good grade, a bad one, or none, by what is asked and not by the model's answer."""
    instructions, asked, *_ = (message["content"] for message in request["messages"])
    chance = zlib.crc32(f"{instructions}{json.loads(asked)['reference']}".encode()) % 3
    if chance == 0:
        return Reply("I would rather not say.")
    values = {"pred": "yes", "score": 4, "reason": REASON} if chance == 1 else {"pred": "no", "score": 1, "reason": ""}
    wanted = request["response_format"]["json_schema"]["schema"]["required"]
    return Reply(json.dumps({name: values[name] for name in wanted}))


def evaluate_all(folder: Path) -> Evaluated:
    data = folder / "data"
    render(data / "world", clips=4, seed=3)
    world = ["--data", data / "world", "--workers", 0]
    run("eval", "nano", *world, "--out", folder / "nano", "--controls")
    run("eval", "nano", *world, "--out", folder / "fewer", "--num-frames", 8)
    write_mvbench(data, per_task=1)
    write_vcgbench(data)
    write_videoqa(data, "msvd_qa")
    next((data / "MVBench").rglob("clip_3_0.webm")).unlink()
    with chat_server(grade) as (url, _):
        benchmarks = ["--benchmark", "mvbench,vcgbench,msvd_qa", "--data", data, "--workers", 0]
        judge = ["--judge", "stub", "--judge-endpoint", url]
        run("eval", "nano", *benchmarks, "--out", folder / "published", *judge)
    return Evaluated(data, folder / "nano", folder / "fewer", folder / "published")


def read_gallery(folder: Path) -> dict[str, Any]:
    """Return the data of an exported gallery."""
    script = (folder / "data" / "gallery.js").read_text(encoding="utf-8")
    assert script.startswith(VARIABLE) and script.endswith(";\n")
    return json.loads(script.removeprefix(VARIABLE).removesuffix(";\n"))


def export(folder: Path, site: Path, *results: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Export a gallery, and return its benchmarks by name."""
    export_gallery(results, folder, site=site, **options)
    return {benchmark["name"]: benchmark for benchmark in read_gallery(folder)["benchmarks"]}
