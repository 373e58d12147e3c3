"""
Converting, loading and asking a model of a published size on a CPU, step by step: `python benchmarks/real_size.py
measure`. The model has random weights, in the layout of the published PLLaVA. Each step's time, peak memory, and bytes
read and written stand beside the limits of the machine, which are measured in the same run. With `--write`, the
figures go to benchmarks/results/real_size.json and docs/real_size.md.

Before each command, the checkpoint is dropped from the system's cache of files: it is read from the disk.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
RESULT, DOC = ROOT / "benchmarks" / "results" / "real_size.json", ROOT / "docs" / "real_size.md"
OFFICIAL_LAYOUT = ROOT / "benchmarks" / "official_layout.py"
QUESTION = "What happens in the video?"
CLIP = {"seconds": 10, "fps": 25, "width": 640, "height": 360}
GB = 1e9
SIDE = 2048  # of the matrices that measure the limits

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Tokens = Annotated[int, typer.Option(min=2, help="Tokens of the answer.")]


def write_clip(file: Path) -> None:
    """Write a clip of moving waves in H.264."""
    import av
    import numpy as np

    rows, columns = np.mgrid[: CLIP["height"], : CLIP["width"]]
    with av.open(file, "w") as container:
        stream = container.add_stream("libx264", rate=CLIP["fps"])
        stream.width, stream.height, stream.pix_fmt = CLIP["width"], CLIP["height"], "yuv420p"
        for number in range(CLIP["seconds"] * CLIP["fps"]):
            waves = [np.sin((rows * a + columns * b + number) / 20) for a, b in ((1, 0), (0, 1), (1, 1))]
            frame = np.stack(waves, axis=-1) * 100 + 128
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.astype(np.uint8))))
        container.mux(stream.encode())


# --- measuring -------------------------------------------------------------------------------------------------------


def memory(field: str, pid: int | str = "self") -> int:
    """Return a value of a process's memory, such as its peak `VmHWM`, in bytes; 0 of one that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def transfers(pid: int | str = "self") -> dict[str, int]:
    """Return the bytes that a process has read and written by system calls, and those that came from the disk."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines) if not name.startswith("sys")}


def cpu_seconds(pid: int | str = "self") -> float:
    """Return the seconds that all threads of a process have computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def run_measured(*command: Any) -> tuple[dict[str, Any], str]:
    """
    Run a command; return its figures and its output. The peak of its memory is looked up 20 times a second.

    Raises:
        CalledProcessError: if it fails or is killed.
    """
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            peak = max(peak, memory("VmHWM", process.pid))
            time.sleep(0.05)
        figures = {"seconds": time.perf_counter() - start, "cpu": cpu_seconds(process.pid), "peak": peak}
        figures |= transfers(process.pid)
        output = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return figures, output


class Steps(dict):
    """The figures of each step of this process."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what the process has now
        before = self.counters()
        yield
        after = self.counters()
        used = {key: after[key] - before[key] for key in after}
        self[name] = {**used, "peak": memory("VmHWM"), "own": memory("RssAnon")}

    @staticmethod
    def counters() -> dict[str, float]:
        return {"seconds": time.perf_counter(), "cpu": cpu_seconds(), **transfers()}


def drop_from_cache(directory: Path) -> None:
    """Write a directory's files to the disk, and drop them from the system's cache."""
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as content:
                os.fsync(content.fileno())
                os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def best(function: Callable[[], Any], rounds: int = 5) -> float:
    """Return the seconds of the fastest of several calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


# --- steps -----------------------------------------------------------------------------------------------------------


@app.command(hidden=True)
def answer(model_name: str, clip: str, tokens: Tokens = 8) -> None:
    """Answer a question as `pllava chat` does, step by step, and print the figures as JSON."""
    steps = Steps()
    with steps.step("import"):
        import torch

        import pllava
        from pllava.adapters import check_model
        from pllava.loading import Checkpoint
        from pllava.media import AS_SAMPLED
        from pllava.media.decoding import sample_frames
    with steps.step("read the config"):
        Checkpoint.read(model_name)
    with steps.step("load the processor"):
        processor = pllava.PllavaProcessor.from_pretrained(model_name)
    with steps.step("decode the clip"):
        frames, _ = sample_frames(processor.video_processor, clip)
    with steps.step("load the weights"):
        model = pllava.load_model(model_name, check=False)
    with steps.step("check the model"):
        check_model(model)
    with steps.step("prepare the inputs"):
        content = [{"type": "video", "video": frames}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=AS_SAMPLED,
        )
    flops: dict[str, int] = {}
    with torch.no_grad():
        with steps.step("encode the video"), count_flops(flops, "encode the video"):
            encoded = model.get_video_features(inputs["pixel_values_videos"])
        with steps.step("prefill"), count_flops(flops, "prefill"):
            text = {"input_ids": inputs["input_ids"], "mm_encoder_outputs": {"video": encoded}}
            output = model(**text, use_cache=True, logits_to_keep=1)
        with steps.step("decode"):
            for _ in range(tokens - 1):
                word = output.logits[:, -1:].argmax(-1)
                output = model(input_ids=word, past_key_values=output.past_key_values, use_cache=True)
    read = [*model.model.language_model.layers.parameters(), *model.lm_head.parameters()]
    facts = {
        "parameters": model.num_parameters(),
        "weights_per_token": sum(weight.nbytes for weight in read),
        "prompt_tokens": inputs["input_ids"].shape[1],
        "decoded_tokens": tokens - 1,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    print(json.dumps({"steps": steps, "flops": flops, "facts": facts, "limits": processor_limits()}))


@contextmanager
def count_flops(flops: dict[str, int], name: str) -> Iterator[None]:
    """Count the operations of matrix products; attention counts in full, as if it were not causal."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: tuple, key: tuple, value: tuple, *_, **__) -> int:  # of shapes
        return sdpa_flop_count(query, key, value)

    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={operator: attention}) as counter:
        yield
    flops[name] = counter.get_total_flops()


def processor_limits() -> dict[str, float]:
    """Measure what bounds the computation, in bytes and operations per second, by as many threads as it has."""
    import torch

    @torch.backends.mkldnn.flags(enabled=False)
    def without_onednn() -> torch.Tensor:
        return torch.nn.functional.linear(a[:1], large)

    a, b = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16) for _ in range(2))
    large = torch.randn(8 * SIDE, SIDE, dtype=torch.bfloat16)  # does not fit a processor's cache
    target = torch.empty_like(large)
    return {
        "matmul": 2 * SIDE**3 / best(lambda: a @ b),
        "copy": 2 * large.nbytes / best(lambda: target.copy_(large)),
        "matrix_times_vector": large.nbytes / best(lambda: torch.nn.functional.linear(a[:1], large)),
        "without_onednn": large.nbytes / best(without_onednn),
        "threads": torch.get_num_threads(),
    }


def disk_limits(directory: Path) -> dict[str, float]:
    """Measure the bytes per second of reading the largest shard, and of writing 512 MiB."""
    file, buffer = max(directory.glob("*.safetensors"), key=lambda each: each.stat().st_size), bytearray(1 << 24)
    start = time.perf_counter()
    with file.open("rb", buffering=0) as content:
        while content.readinto(buffer):
            pass
    read = file.stat().st_size / (time.perf_counter() - start)
    start = time.perf_counter()
    with (directory / "written").open("wb", buffering=0) as content:
        for _ in range(32):
            content.write(buffer)
        os.fsync(content.fileno())
    return {"disk_read": read, "disk_write": 32 * len(buffer) / (time.perf_counter() - start)}


@app.command()
def measure(
    size: Annotated[str, typer.Option(help="Of the model, see benchmarks/official_layout.py.")] = "7b",
    layers: Annotated[int | None, typer.Option(min=1, help="Of the text model; by default all of its size.")] = None,
    tokens: Tokens = 8,
    work: Annotated[Path, typer.Option(help="New folder for the models, removed at the end.")] = Path("real_size"),
    write: Annotated[bool, typer.Option("--write", help="Rewrite the JSON file and docs/real_size.md.")] = False,
) -> None:
    """Measure every step, and print the page."""
    work.mkdir(parents=True)
    try:
        result = {"size": size, "layers": layers, **measure_in(work, size, layers, tokens)}
    finally:
        shutil.rmtree(work)
    if write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        DOC.write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


def measure_in(work: Path, size: str, layers: int | None, tokens: int) -> dict[str, Any]:
    official, converted, clip = work / "official", work / "converted", work / "clip.mp4"
    pllava, shape = (
        Path(sys.executable).with_name("pllava"),
        ("--size", size, *(["--layers", layers] if layers else [])),
    )
    write_clip(clip)
    commands = {"write the official layout": run_measured(sys.executable, OFFICIAL_LAYOUT, official, *shape)[0]}
    drop_from_cache(official)
    disk = disk_limits(official)
    drop_from_cache(official)
    commands["pllava convert"] = run_measured(pllava, "convert", official, converted)[0]
    drop_from_cache(converted)
    question = (clip, QUESTION, "--model", converted, "--max-new-tokens", tokens)
    commands["pllava chat"] = run_measured(pllava, "chat", *question)[0]
    drop_from_cache(converted)
    answered = json.loads(run_measured(sys.executable, __file__, "answer", converted, clip, "--tokens", tokens)[1])
    answered["limits"] |= disk
    files = {each.name: [file.stat().st_size for file in each.glob("*.safetensors")] for each in (official, converted)}
    return {"machine": machine(), "commands": commands, "files": files, **answered}


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "processor": next(line.split(": ")[1] for line in lines if line.startswith("model name")),
        "instructions": sorted({"avx512_bf16", "amx_bf16"} & set(" ".join(lines).split())),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


# --- the page --------------------------------------------------------------------------------------------------------

COLUMNS = {
    "time": lambda each: f"{each['seconds']:.1f}",
    "CPU time": lambda each: f"{each['cpu']:.1f}",
    "memory": lambda each: f"{each['peak'] / GB:.2f}",
    "read": lambda each: f"{each['rchar'] / GB:.2f}",
    "written": lambda each: f"{each['wchar'] / GB:.2f}",
    "from disk": lambda each: f"{each['read_bytes'] / GB:.2f}",
    "to disk": lambda each: f"{each['write_bytes'] / GB:.2f}",
}


def markdown(result: dict[str, Any]) -> str:
    """Return docs/real_size.md, all figures of which are in `result`."""
    layers = f" with {result['layers']} layers" if result["layers"] else ""
    own = {"own": lambda each: f"{each['own'] / GB:.2f}"}
    return f"""# A model of real size on a CPU

Written by `python benchmarks/real_size.py measure --write`; do not edit.

A model of size {result["size"]}{layers} with random weights is written in the layout of the published PLLaVA,
converted, loaded, and asked about one clip.

{table(["", ""], model_rows(result))}

Times are in seconds, those of the CPU summed over threads; bytes in GB (10^9). "Memory" is the peak, with the mapped
pages of files, which the system can drop; "own" is the memory without them, at the end of a step. "Read" and "written"
go through system calls; "from disk" and "to disk" are what reached the disk, mapped files included. Before each
command, and before the steps, the files that they read are dropped from the system's cache. A step whose CPU time is
about its time had one core only: other programs took the others.

## Commands

{figure_table("command", result["commands"], COLUMNS)}

## Steps of an answer

What `pllava chat` does, in one process. Weights are mapped when they are loaded, and read when they are first used.

{figure_table("step", result["steps"], COLUMNS | own)}

## Limits

Measured in the same run:

{table(["limit", "", ""], limit_rows(result["limits"]))}

What each step reaches of the limit that bounds it:

{table(["", "work", "limit", "share"], share_rows(result))}

Decoding also reads the keys and values of all earlier tokens, and transformers' cache copies them for each new one;
both are left out of its work here.
"""


def model_rows(result: dict[str, Any]) -> list[list[str]]:
    facts, machine = result["facts"], result["machine"]
    files = {name: f"{sum(sizes) / GB:.2f} GB, files: {len(sizes)}" for name, sizes in result["files"].items()}
    return [
        ["weights", f"{facts['parameters'] / 1e9:.2f} billion, {facts['dtype']}"],
        ["official checkpoint", files["official"]],
        ["converted checkpoint", files["converted"]],
        ["clip", "{seconds} s, {width} x {height}, {fps} frames/s, H.264".format(**CLIP)],
        ["prompt, answer", f"{facts['prompt_tokens']:,} tokens, {facts['decoded_tokens'] + 1} tokens"],
        ["processor", f"{machine['processor']}, threads: {result['limits']['threads']}"],
        ["its instructions for bfloat16", ", ".join(machine["instructions"]) or "none"],
        ["versions", ", ".join(f"{name} {version}" for name, version in machine["versions"].items())],
    ]


def limit_rows(limit: dict[str, float]) -> list[list[str]]:
    matrix = f"{8 * SIDE} x {SIDE}, bfloat16"
    return [
        ["matrix product", f"{limit['matmul'] / GB:.0f} GFLOP/s", f"{SIDE} x {SIDE} by {SIDE} x {SIDE}, bfloat16"],
        ["copy", f"{limit['copy'] / GB:.1f} GB/s", "in memory, bytes read and written"],
        ["matrix times vector", f"{limit['matrix_times_vector'] / GB:.1f} GB/s", matrix],
        ["the same without oneDNN", f"{limit['without_onednn'] / GB:.1f} GB/s", matrix],
        ["disk, reading", f"{limit['disk_read'] / GB:.2f} GB/s", "a whole shard"],
        ["disk, writing", f"{limit['disk_write'] / GB:.2f} GB/s", "512 MiB, until they are on the disk"],
    ]


def share_rows(result: dict[str, Any]) -> list[list[str]]:
    limit, facts, steps = result["limits"], result["facts"], result["steps"]
    official, converted = (sum(result["files"][name]) for name in ("official", "converted"))
    loading = steps["load the weights"]["seconds"] + steps["check the model"]["seconds"]
    moving = official / limit["disk_read"] + converted / limit["disk_write"]
    token = steps["decode"]["seconds"] / facts["decoded_tokens"]
    weights = facts["weights_per_token"]
    both = f"{official / GB:.2f} GB read, {converted / GB:.2f} GB written"
    rows = [["pllava convert", both, "disk", moving / result["commands"]["pllava convert"]["seconds"]]]
    first_use = "load the weights, check the model"
    rows.append(
        [first_use, f"{converted / GB:.2f} GB read", "disk, reading", converted / limit["disk_read"] / loading]
    )
    for name, flops in result["flops"].items():
        share = flops / limit["matmul"] / steps[name]["seconds"]
        rows.append([name, f"{flops / 1e12:.2f} TFLOP", "matrix product", share])
    decoded = f"{weights / GB:.2f} GB of weights a token, {token:.2f} s"
    rows += [
        ["decode", decoded, "matrix times vector", weights / limit["matrix_times_vector"] / token],
        ["decode", decoded, "copy", weights / limit["copy"] / token],
    ]
    return [[name, work, bound, f"{share:.0%}"] for name, work, bound, share in rows]


def figure_table(name: str, rows: dict[str, dict[str, Any]], columns: dict[str, Callable[[dict], str]]) -> str:
    return table([name, *columns], [[row, *(show(each) for show in columns.values())] for row, each in rows.items()])


def table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


if __name__ == "__main__":
    app()
