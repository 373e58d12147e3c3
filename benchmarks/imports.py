"""
Start-up times, each in a fresh process: `import pllava` after transformers' Llava module, `pllava --help`, and the
first word that `pllava chat` prints about a clip of nano's world, with the model nano. The last one is also measured
cold: before each run, the files of the environment are dropped from the memory in which Linux keeps what was read.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pllava.nano.world.rendering import render

RUNS = 5
TIMED = """
import time
import transformers.models.llava.modeling_llava
start = time.perf_counter()
import pllava
print(time.perf_counter() - start)
"""
PLLAVA = Path(sys.executable).with_name("pllava")


def seconds_beyond_llava() -> float:
    return float(subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True).stdout)


def seconds_of_help() -> float:
    start = time.perf_counter()
    subprocess.run([PLLAVA, "--help"], capture_output=True, check=True)
    return time.perf_counter() - start


def seconds_to_first_word(clip: Path) -> float:
    command = [PLLAVA, "chat", clip, "Describe the video."]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed with exit status {process.returncode}")
    return seconds


def cold_seconds_to_first_word(clip: Path) -> float:
    for folder in (sys.prefix, sys.base_prefix, Path(__file__).parents[1]):
        for path in Path(folder).rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return seconds_to_first_word(clip)


def show(name: str, measure: Callable[..., float], *arguments: Path) -> None:
    measure(*arguments)  # the first run compiles
    times = [measure(*arguments) for _ in range(RUNS)]
    print(f"{name}: {statistics.median(times):.2f} s (median of {RUNS}, {min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder), clips=1, seed=0)
        (clip,) = Path(folder).glob("clips/*")
        show("import pllava, beyond Llava", seconds_beyond_llava)
        show("pllava --help", seconds_of_help)
        show("pllava chat nano, first word", seconds_to_first_word, clip)
        show("pllava chat nano, first word, cold", cold_seconds_to_first_word, clip)
