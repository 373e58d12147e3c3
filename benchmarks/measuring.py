"""
Measures contenders in rounds: seconds, memory, and what the hardware could do meanwhile.

In each round every contender runs once, in turn, in a new process, so that other load on the machine affects all of
them, and that its memory is its own. Each round also measures the hardware: a large matrix product and a large copy.
"""

import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

OURS, FLOOR = "ours", "floor"  # names of contenders; the floor does only what nobody can leave out
MATRIX = {"cpu": 4096, "cuda": 8192}  # rows and columns of the product
COPIED = {"cpu": 2**28, "cuda": 2**32}  # bytes
LONG_ENOUGH = 0.5  # seconds: shorter work is repeated
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
    """

    run: Callable[[], Round | None]
    moved: int = 0
    once: bool = False


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
    """Return {"hardware": [Round, ...], "cases": {case: {contender: [Round, ...]}}, "left_out": {contender: why}}."""
    hardware, left_out = [], {}
    cases = {case: {name: [] for name in contenders} for case, contenders in job.cases(setting).items()}
    for _ in range(rounds):
        hardware.append(in_new_process(measure_hardware, setting))
        for case, contenders in job.cases(setting).items():
            for name, contender in contenders.items():
                key = f"{name}, {case}" if len(cases) > 1 else name
                if {name, key} & left_out.keys():
                    continue
                try:
                    cases[case][name].append(in_new_process(measure, contender, setting))
                except LeftOutError as error:
                    left_out[name] = str(error)
                except Exception as error:  # a peer may fail in any way; the others are measured
                    if name.startswith(OURS):
                        raise
                    left_out[key] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    measured = {case: {name: rows for name, rows in found.items() if rows} for case, found in cases.items()}
    return {"hardware": hardware, "cases": measured, "left_out": left_out}


def in_new_process(function: Callable, *args: Any) -> Round:
    """Call a function in a process that has imported the libraries, and done nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(function, *args).result()


def measure(contender: Contender, setting: Setting) -> Round:
    """
    Run a contender once to warm up, which also counts its operations, and then until its time is certain.

    Returns:
        "seconds" (median of the runs), "peak" memory and what of it is "above" that before the runs, in bytes of the
        GPU or else of the process, "flops", "moved" bytes, and a "result" if there is one.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(setting.torch_dtype)
    step = contender(setting)
    built = _memory("now", setting.device)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        if not step.once:
            step.run()
    _memory("now", setting.device)
    times: list[float] = []
    while not times or (sum(times) < LONG_ENOUGH and len(times) < MOST_RUNS and not step.once):
        started = time.perf_counter()
        returned = step.run() or {}
        _synchronize(setting.device)
        times.append(returned.pop("seconds", time.perf_counter() - started))
    peak = returned.pop("peak", _memory("peak", setting.device))
    work = {"flops": counter.get_total_flops(), "moved": step.moved}
    return {"seconds": statistics.median(times), "peak": peak, "above": max(0, peak - built), **work, **returned}


def measure_hardware(setting: Setting) -> Round:
    """Return operations a second of a large matrix product ("matmul"), and bytes a second of a copy ("copy")."""
    size, count = MATRIX[setting.device], COPIED[setting.device]
    a, b = torch.randn(2, size, size, dtype=setting.torch_dtype, device=setting.device)
    source = torch.zeros(count, dtype=torch.uint8, device=setting.device)
    target = torch.zeros_like(source)
    fastest = {"matmul": lambda: torch.matmul(a, b), "copy": lambda: target.copy_(source)}
    amount = {"matmul": 2 * size**3, "copy": 2 * count}  # a copy reads and writes
    return {name: amount[name] / min(_time(work, setting.device) for _ in range(5)) for name, work in fastest.items()}


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
