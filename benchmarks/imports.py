"""
Import times, each in a fresh process: `import pllava` after transformers' Llava module, and `pllava --help`.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 5
TIMED = """
import time
import transformers.models.llava.modeling_llava
start = time.perf_counter()
import pllava
print(time.perf_counter() - start)
"""


def seconds_beyond_llava() -> float:
    return float(subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True).stdout)


def seconds_of_help() -> float:
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("pllava"), "--help"], capture_output=True, check=True)
    return time.perf_counter() - start


for name, measure in {"import pllava, beyond Llava": seconds_beyond_llava, "pllava --help": seconds_of_help}.items():
    measure()  # the first run compiles
    print(f"{name}: {statistics.median(measure() for _ in range(RUNS)):.2f} s (median of {RUNS})")
