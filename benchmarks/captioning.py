"""
Captions the same clips of nano's world in each way that `pllava caption` knows, and compares the captions: by one
process, by two, on a Ray cluster, by a server, and by processes that are killed ten times at random moments.

    python benchmarks/captioning.py --clips 2000 --write    # the figures go to docs/captioning.md

It also computes what a million clips would take on GPUs. The work of a clip, and the shares of the processor's speeds
that it reaches, are those measured with a 7B model (docs/real_size.md); the speeds of the cards are their maker's.
"""

import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import typer

from pllava.environment import processor_name
from pllava.files import iterate_lines, read_object, replace_file
from pllava.nano.world.rendering import render
from pllava.result_files.formatting import markdown_table

ROOT = Path(__file__).parents[1]
REAL_SIZE = ROOT / "benchmarks" / "results" / "real_size.json"
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "captioning.json", ROOT / "docs" / "captioning.md"
CAPTION = [sys.executable, "-m", "pllava.caption"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "pllava.caption"]
SERVE = [str(Path(sys.executable).with_name("pllava")), "serve", "nano"]
BEGIN, END = "<!-- from here: benchmarks/captioning.py -->", "<!-- to here -->"
WIDTH = 119  # of a line of the page
START_SECONDS = 120  # of a server
# Dense bfloat16 operations and bytes of memory per second, from NVIDIA's data sheets
CARDS = {"L4": (121e12, 300e9), "A100 80 GB": (312e12, 2039e9), "H100 SXM": (989e12, 3350e9)}
TOKENS, BATCH, GPUS, CLIPS = 128, 16, (1, 8, 64), 1_000_000  # of the computed captions


@contextmanager
def server() -> Iterator[str]:
    """Serve nano; yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*SERVE, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str) -> None:
    for _ in range(START_SECONDS):
        try:
            urlopen(address).close()
            return
        except URLError:
            time.sleep(1)
    raise TimeoutError(f"{address} does not answer after {START_SECONDS} s")


def caption(command: list[str], world: Path, out: Path, *options: str) -> dict[str, Any]:
    """Run a command of captioning. Returns its seconds and its report."""
    began = time.monotonic()
    subprocess.run([*command, str(world), "--out", str(out), *options], check=True, stdout=subprocess.DEVNULL)
    return {"seconds": time.monotonic() - began, "report": read_object(out.with_suffix(".report.json"))}


def caption_with_kills(world: Path, out: Path, kills: int) -> dict[str, Any]:
    """Start two processes again and again, and kill a random process of theirs at a random moment; then finish."""
    moments, began = random.Random(0), time.monotonic()
    for _ in range(kills):
        process = psutil.Popen([*LAUNCH, str(world), "--out", str(out)], stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(5, 20))
        everyone = [process, *process.children(recursive=True)]
        moments.choice(everyone).send_signal(signal.SIGKILL)
        time.sleep(1)
        for each in everyone:  # those that are left: a machine that goes down takes all
            if each.is_running():
                each.kill()
        psutil.wait_procs(everyone)
    finished = caption(LAUNCH, world, out)
    return {**finished, "seconds": time.monotonic() - began, "kills": kills}


def measure(clips: int, kills: int) -> dict[str, Any]:
    """Caption in each way, and count the captions that are those of one process."""
    with TemporaryDirectory() as folder:
        world = Path(folder, "world")
        render(world, clips, seed=8)
        ways = {"one process": caption(CAPTION, world, Path(folder, "one.jsonl"))}
        expected = _captions(Path(folder, "one.jsonl"))
        outs = {
            name: Path(folder, f"{number}.jsonl") for number, name in enumerate(["two", "ray", "server", "killed"])
        }
        ways["two processes"] = caption(LAUNCH, world, outs["two"])
        ways["Ray, two models"] = caption(CAPTION, world, outs["ray"], "--ray", "local", "--actors", "2")
        with server() as address:
            ways["`pllava serve`"] = caption(
                CAPTION, world, outs["server"], "--endpoint", address, "--model", "nano", "--concurrency", "8"
            )
        ways[f"two processes, killed {kills} times"] = caption_with_kills(world, outs["killed"], kills)
        for way, out in zip(ways.values(), [Path(folder, "one.jsonl"), *outs.values()], strict=True):
            lines = [row for row in iterate_lines(out) if "caption" in row]
            way["lines"], found = len(lines), _captions(out)
            way["same"] = sum(found.get(clip) == text for clip, text in expected.items())
    machine = {"processor": processor_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    return {"date": datetime.now(UTC).date().isoformat(), "clips": clips, "machine": machine, "ways": ways}


def _captions(out: Path) -> dict[str, str]:
    return {row["sha256"]: row["caption"] for row in iterate_lines(out) if "caption" in row}


# --- the page --------------------------------------------------------------------------------------------------------


def section(measured: dict[str, Any]) -> str:
    """Return the part of the page that has the figures."""
    machine = measured["machine"]
    rows = [
        [
            name,
            f"{way['lines']:,}",
            f"{way['same']:,}",
            f"{way['seconds']:,.0f}",
            f"{way['report']['clips_per_hour']:,.0f}",
        ]
        for name, way in measured["ways"].items()
    ]
    heads = ["way", "captions", "as by one process", "seconds in all", "clips an hour"]
    text = (
        f"{measured['clips']:,} clips of nano's world, on {machine['cores']} cores of {machine['processor']}, "
        f"{measured['date']}. Clips an hour are without the start of the programs and of the model; those of the last "
        "row are of the run that finished."
    )
    return f"{textwrap.fill(text, WIDTH)}\n\n{markdown_table(heads, rows)}"


def computed(real_size: dict[str, Any]) -> str:
    """Return the part of the page about a million clips, from what was measured with a 7B model on a CPU."""
    flops, limits, facts, steps = (real_size[name] for name in ("flops", "limits", "facts", "steps"))
    operations, seconds = sum(flops.values()), sum(steps[name]["seconds"] for name in flops)
    bytes_per_token, token = facts["weights_per_token"], steps["decode"]["seconds"] / facts["decoded_tokens"]
    of_matmul, of_copy = operations / limits["matmul"] / seconds, bytes_per_token / limits["copy"] / token
    rows = []
    for card, (peak, bandwidth) in CARDS.items():
        prefill = operations / peak / of_matmul
        decode = TOKENS * bytes_per_token / bandwidth / of_copy / BATCH
        hours = CLIPS * (prefill + decode) / 3600
        rows.append([card, f"{prefill:.2f}", f"{decode:.2f}", *(f"{hours / count:,.0f}" for count in GPUS)])
    heads = ["card", "read a clip, s", f"write {TOKENS} tokens, s", *(f"hours on {count}" for count in GPUS)]
    text = (
        f"**Computed, not measured**: a million clips by a 7B model in bfloat16. A clip takes {operations / 1e12:.1f} "
        f"TFLOP, and a token {bytes_per_token / 1e9:.1f} GB of weights, which {BATCH} captions share. Cards are "
        f"assumed to reach the shares of their data sheets that a CPU reached of its own speeds "
        f"([measured](real_size.md)): {of_matmul:.0%} of the products, {of_copy:.0%} of the memory. The time for "
        f"keys and values, and for clips that are not decoded in time, is left out."
    )
    return f"{textwrap.fill(text, WIDTH)}\n\n{markdown_table(heads, rows)}"


def write_page() -> None:
    """Write the figures of both files to the page."""
    parts = [section(read_object(RESULTS)), computed(read_object(REAL_SIZE))]
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    replace_file(PAGE, "\n\n".join([f"{before}{BEGIN}", *parts, f"{END}{rest.split(END)[1]}"]))


def main(
    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 2000,
    kills: Annotated[int, typer.Option(min=0, help="Of processes, at random moments.")] = 10,
    write: Annotated[bool, typer.Option("--write", help="Keep the figures, and write them to the page.")] = False,
) -> None:
    """Caption the same clips in each way, and compare the captions."""
    measured = measure(clips, kills)
    print(section(measured))
    if write:
        replace_file(RESULTS, json.dumps(measured, indent=2) + "\n")
        write_page()


if __name__ == "__main__":
    typer.run(main)
