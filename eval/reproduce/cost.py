"""What a cell takes: bytes to download, questions, and hours on a GPU, estimated from a measured run."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ...files import read_object
from ...result_files.formatting import markdown_table, measure_title
from ..benchmarks.benchmark import Benchmark, load_benchmark, load_prompts
from .figures import paper_columns
from .lock import Lock

COSTS = Path(__file__).with_name("costs.json")
BATCH = 16  # questions answered together, as by default


class Gpu(NamedTuple):
    """The peaks that NVIDIA's data sheets state: dense operations in bfloat16, and bytes of memory, in a second."""

    operations: float
    bytes: float


GPUS = {"H100 SXM": Gpu(989e12, 3.35e12), "A100 SXM 80 GB": Gpu(312e12, 2.039e12)}


@cache
def _costs() -> dict[str, Any]:
    return read_object(COSTS, "shares", "prompt_tokens", "models")


def weight_bytes(lock: Lock) -> int:
    """Return the bytes of a cell's model in bfloat16."""
    return 2 * _costs()["models"][lock.size]["parameters"]


def gpu_hours(lock: Lock, gpu: Gpu) -> float:
    """
    Return the estimated hours of a cell on one GPU, without decoding clips, loading and judging. Each question is
    counted with a clip of its own, and with an answer of the greatest length.
    """
    work, share = _costs()["models"][lock.size], _costs()["shares"]
    reading = sum(work[step] / (share[step] * gpu.operations) for step in ("encode", "prefill"))
    moved = work["weights"] / BATCH + work["cache"]  # a batch shares the weights, and each question has its own cache
    writing = lock.max_new_tokens * moved / (share["decode"] * gpu.bytes)
    return lock.questions * (reading + writing) / 3600


def format_cells(locks: Iterable[Lock]) -> str:
    """Return a table of cells with the paper's figure and what each takes, and how that was estimated."""
    prompts, rows = load_prompts(), []
    for lock in locks:
        benchmark = load_benchmark(lock.benchmark, prompts)
        hours = [f"{gpu_hours(lock, gpu):.2g}" for gpu in GPUS.values()]
        rows.append(
            [lock.cell, _paper(lock, benchmark), f"{lock.questions:,}", f"{weight_bytes(lock) / 1e9:.1f}", *hours]
        )
    heads = ["cell", "the paper's figure", "questions", "GB of weights", *(f"hours on one {name}" for name in GPUS)]
    return f"{markdown_table(heads, rows, text_columns=(0, 1))}\n\n{_basis()}"


def format_plan(lock: Lock) -> str:
    """Return what one cell takes, and from which places. Nothing is downloaded."""
    benchmark, size = load_benchmark(lock.benchmark, load_prompts()), weight_bytes(lock) / 1e9
    drawn = "" if lock.draw_seed is None else f", drawn from all with seed {lock.draw_seed}"
    judge = "none" if lock.judge is None else f"{lock.judge} at temperature {lock.judge_temperature:g}: pass --judge"
    lines = [
        f"{lock.cell}: {lock.paper_row} on {benchmark.title}",
        f"- the paper's figure: {_paper(lock, benchmark)}",
        f"- model: {_place(lock.model, lock.model_revision)}: {size:.1f} GB in bfloat16",
        f"- conversion of the model, with its LoRA merged at alpha {lock.alpha:g}: {size:.1f} GB more on the disk",
        f"- data: {_place(lock.data, lock.data_revision)}: {lock.data_file}, of unknown size",
        f"- samples: {lock.samples:,}{drawn}; questions: {lock.questions:,}",
        f"- judge: {judge}",
        *(f"- hours on one {name}: {gpu_hours(lock, gpu):.2g}" for name, gpu in GPUS.items()),
    ]
    return "\n".join([*lines, "", _basis()])


def _paper(lock: Lock, benchmark: Benchmark) -> str:
    """The paper's figures over all samples."""
    columns = {measure: names["all"] for measure, names in paper_columns(benchmark).items() if names}
    return ", ".join(f"{measure_title(measure)} {column[lock.paper_row]}" for measure, column in columns.items())


def _place(name: str, revision: str | None) -> str:
    return f"{name} at its newest commit, since none is locked" if revision is None else f"{name}@{revision}"


def _basis() -> str:
    """How the hours were estimated."""
    costs = _costs()
    peaks = [f"{name} {gpu.operations / 1e12:g} TFLOP/s, {gpu.bytes / 1e12:g} TB/s" for name, gpu in GPUS.items()]
    share = {step: f"{value:.0%}" for step, value in costs["shares"].items()}
    return (
        "The hours are estimated; nothing was measured on a GPU. The operations and bytes of a question are divided "
        f"by the peaks that NVIDIA states for bfloat16 ({'; '.join(peaks)}) and by the shares of its limits that "
        f"{costs['measured_on']} reached in {costs['measured_in']}: {share['encode']} of the rate of a matrix product "
        f"in the vision tower, {share['prefill']} in the prefill, {share['decode']} of the rate of a copy for each "
        f"new token. A question is counted with a clip of its own, a prompt of {costs['prompt_tokens']:,} tokens and "
        f"the longest answer; {BATCH} are answered together. Decoding of clips, loading and judging are left out."
    )
