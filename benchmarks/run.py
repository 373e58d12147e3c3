"""
Times each job of this package beside its peers, at equal shapes, and beside the limit of the hardware.

    python benchmarks/run.py --all --size tiny --json benchmarks/results/performance_tiny.json
    python benchmarks/run.py --job prefill,train_step --size small --dtype bfloat16
    python benchmarks/run.py --write    # docs/performance.md and its figures, from those files

The first run encodes the clips, in a few minutes, and keeps them in the cache.
"""

# Each measured process loads this file, too: what takes long to import is imported where it is used
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from measuring import Setting

CACHE = Path.home() / ".cache" / "pllava-benchmarks"
LIBRARIES = ("torch", "transformers", "av", "peft", "trl", "bitsandbytes", "torchcodec", "decord", "vllm")
Size = StrEnum("Size", {name: name for name in ("tiny", "small", "1b", "7b")})
Device = StrEnum("Device", ["cpu", "cuda"])
Dtype = StrEnum("Dtype", ["float32", "bfloat16"])


def main(
    job: Annotated[str, typer.Option(help="Some of the jobs; a wrong name lists them.", metavar="JOB,...")] = "",
    all_jobs: Annotated[bool, typer.Option("--all", help="All jobs.")] = False,
    size: Annotated[
        Size, typer.Option(help="Shapes of the models; `small` is CLIP-L/336 and 8 layers x 1024.")
    ] = Size.tiny,
    device: Device = Device.cpu,
    dtype: Dtype = Dtype.float32,
    rounds: Annotated[int, typer.Option(min=1, help="Each runs every contender once.")] = 3,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write all values, after each job; jobs measured before under the same conditions are kept.",
            metavar="FILE",
        ),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Of clips.")] = CACHE,
    write: Annotated[bool, typer.Option("--write", help="Write docs/performance.md and its figures.")] = False,
) -> None:
    """Time each job of this package beside its peers, at equal shapes, and beside the limit of the hardware."""
    import torch
    from measuring import Setting
    from report import JOBS, write_page

    names = list(JOBS) if all_jobs else [name for name in job.split(",") if name]
    if unknown := set(names) - JOBS.keys():
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(JOBS)}", param_hint="--job")
    if not names and not write:
        raise typer.BadParameter(f"name some of {', '.join(JOBS)}, or pass --all", param_hint="--job")
    if device == Device.cuda and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA GPU", param_hint="--device")
    if names:
        for measured in run(names, Setting(size, device, dtype, cache.resolve()), rounds):
            if json_file:
                save(measured, json_file)
    if write:
        write_page()


def run(names: list[str], setting: "Setting", rounds: int) -> Iterator[dict[str, Any]]:
    """Measure jobs and print their tables; yield after each all values so far, with what they were measured on."""
    from measuring import measure_job
    from report import JOBS, format_table

    from pllava.environment import library_versions

    conditions = {
        "machine": machine(setting.device),
        "versions": library_versions(LIBRARIES),
        "setting": {"size": setting.size, "device": setting.device, "dtype": setting.dtype, "rounds": rounds},
    }
    jobs = {}
    for name in names:
        found = measure_job(JOBS[name], setting, rounds)
        jobs[name] = {"date": datetime.now(UTC).date().isoformat(), **found}
        typer.echo(f"\n{name}: {JOBS[name].title}\n\n{format_table(name, found)}")
        for contender, reason in found["left_out"].items():
            typer.echo(f"left out: {contender}: {reason}")
        yield {**conditions, "jobs": jobs}


def save(measured: dict[str, Any], file: Path) -> None:
    """Write the values, beside those of other jobs that were measured under the same conditions."""
    from pllava.files import replace_file

    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if all(before.get(key) == value for key, value in measured.items() if key != "jobs"):
        measured = {**measured, "jobs": {**before.get("jobs", {}), **measured["jobs"]}}
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(measured, indent=1) + "\n")


def machine(device: str) -> dict[str, Any]:
    """Describe the processor and the GPU."""
    import torch

    from pllava.environment import processor_name

    description = {"processor": processor_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return description | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


if __name__ == "__main__":
    typer.run(main)
