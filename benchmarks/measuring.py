"""
Measures contenders in rounds: seconds, memory, and what the hardware could do meanwhile.

In each round every contender runs once, in turn, in a new process, so that other load on the machine affects all of
them, and that its memory is its own. What the hardware can do, in a large matrix product or a large copy, is measured
before each: on a shared machine it changes by the minute.
"""

import os
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

OURS, FLOOR = "ours", "floor"  # names of contenders; the floor does only what nobody can leave out
MATRIX = {"cpu": 4096, "cuda": 8192}  # rows and columns of the product
COPIED = {"cpu": 2**28, "cuda": 2**32}  # bytes
LONG_ENOUGH = 1.0  # seconds: shorter work is repeated
NO_WARM_UP = 20.0  # seconds: longer work hardly gains from a warm-up
MOST_RUNS = 20
# What nearly every contender imports: else each process would spend seconds on it
PRELOADED = [
    "torch",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llava_next_video.modeling_llava_next_video",
    "transformers.models.video_llava.modeling_video_llava",
    "peft",
    "pllava.modeling_pllava",
    "pllava.processing_pllava",
]
# Torch's counter lacks the attention of CPUs
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}

Round = dict[str, Any]


class LeftOutError(Exception):
    """A contender cannot run here; the message says why."""


def left_out(reason: str, setting: "Setting") -> "Step":
    """Stand for a contender that cannot run in this table."""
    raise LeftOutError(reason)


@dataclass(frozen=True)
class Setting:
    """What a run compares: "tiny", "small", "1b" or "7b" on "cpu" or "cuda", and where encoded clips are kept."""

    size: str
    device: str
    dtype: str
    cache: Path

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass
class Step:
    """
    The work that is timed.

    Args:
        run: Does it once. It may return values that replace the measured ones ("seconds", "peak" in bytes), and a
            "result", which contenders are expected to share.
        moved: Bytes that have to be read or written, where the copy bandwidth is the limit.
        once: It is run once, without a warm-up: it starts a program or processes, which is part of its time.
        shared: One thread does it, and its time is divided among the cores: a limit that no sharing can beat.
    """

    run: Callable[[], Round | None]
    moved: int = 0
    once: bool = False
    shared: bool = False


Contender = Callable[[Setting], Step]


@dataclass(frozen=True)
class Job:
    """
    Args:
        title: What is timed, and its limit, for the page.
        limit: "matmul" (operations at the measured rate), "copy" (bytes at the measured rate), "floor" (a contender).
        cases: Returns for each case its contenders; one is "ours", with which the others are compared.
        differs: What a peer does differently at these shapes.
        slow: For a case or a contender, why a row is slower than a peer, or far from the limit.
    """

    title: str
    limit: str
    cases: Callable[[Setting], dict[str, dict[str, Contender]]]
    differs: dict[str, str] = field(default_factory=dict)
    slow: dict[str, str] = field(default_factory=dict)


def measure_job(job: Job, setting: Setting, rounds: int) -> dict[str, Any]:
    """Return {"cases": {case: {contender: [Round, ...]}}, "left_out": {contender: why}}."""
    left_out = {}
    cases = {case: {name: [] for name in contenders} for case, contenders in job.cases(setting).items()}
    for _ in range(rounds):
        for case, contenders in job.cases(setting).items():
            for name, contender in contenders.items():
                key = f"{name}, {case}" if len(cases) > 1 else name
                if {name, key} & left_out.keys():
                    continue
                rows = cases[case][name]
                rate = {} if job.limit == FLOOR else in_new_process(measure_hardware, job.limit, setting)
                unknown = None if job.limit == "matmul" else 0
                flops = rows[0]["flops"] if rows else unknown  # the same in each round
                try:
                    rows.append({**in_new_process(measure, contender, setting, flops), **rate})
                except LeftOutError as error:
                    left_out[name] = str(error)
                except Exception as error:  # a peer may fail in any way; the others are measured
                    if name.startswith(OURS):
                        raise
                    left_out[key] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    measured = {case: {name: rows for name, rows in found.items() if rows} for case, found in cases.items()}
    return {"cases": measured, "left_out": left_out}


def in_new_process(function: Callable, *args: Any) -> Round:
    """Call a function in a process that has imported the libraries, and done nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(function, *args).result()


def measure(contender: Contender, setting: Setting, flops: int | None = None) -> Round:
    """
    Run a contender once to warm up, and then until its time is certain. A first run of more than `NO_WARM_UP` seconds
    is the only one. Its operations are counted, unless they are known: in a last run, since counting takes memory.

    Returns:
        "seconds" (median of the runs), "peak" memory and what of it is "above" that before the runs, in bytes of the
        GPU or else of the process, "flops", "moved" bytes, and a "result" if there is one.
    """
    set_start_method(None, force=True)  # workers start as in any program: a fork server would import everything anew
    torch.manual_seed(0)
    torch.set_default_dtype(setting.torch_dtype)
    step = contender(setting)
    built = _memory("now", setting.device)
    runs = [] if step.once else [_run(step, setting.device)]
    if not runs or runs[0]["seconds"] < NO_WARM_UP:
        _memory("now", setting.device)
        runs = [_run(step, setting.device)]
    while sum(run["seconds"] for run in runs) < LONG_ENOUGH and len(runs) < MOST_RUNS and not step.once:
        runs.append(_run(step, setting.device))
    seconds = statistics.median(run["seconds"] for run in runs)
    peak = runs[-1].get("peak", _memory("peak", setting.device))
    if flops is None:
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            step.run()
        flops = counter.get_total_flops()
    memory = {"peak": peak, "above": max(0, peak - built)}
    return {**runs[-1], "seconds": seconds, **memory, "flops": flops, "moved": step.moved}


def _run(step: Step, device: str) -> Round:
    started = time.perf_counter()
    returned = step.run() or {}
    _synchronize(device)
    cores = os.cpu_count() if step.shared else 1
    return {"seconds": (time.perf_counter() - started) / cores, **returned}


def measure_hardware(limit: str, setting: Setting) -> Round:
    """Return as "rate" the operations a second of a large "matmul", or the bytes a second of a large "copy"."""
    if limit == "matmul":
        size = MATRIX[setting.device]
        a, b = torch.randn(2, size, size, dtype=setting.torch_dtype, device=setting.device)
        work, amount = lambda: torch.matmul(a, b), 2 * size**3
    else:
        source = torch.zeros(COPIED[setting.device], dtype=torch.uint8, device=setting.device)
        target = torch.zeros_like(source)
        work, amount = lambda: target.copy_(source), 2 * source.nbytes  # a copy reads and writes
    work()
    return {"rate": amount / statistics.median(_time(work, setting.device) for _ in range(3))}


def _time(work: Callable[[], Any], device: str) -> float:
    _synchronize(device)
    started = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(kind: str, device: str) -> int:
    """Return bytes of the GPU or else of this process: the "peak", or "now", which also resets the peak."""
    if device == "cuda":
        if kind == "now":
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if kind == "now":
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
