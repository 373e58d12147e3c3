"""
Compares ways to generate an answer that transformers offers: the cache, a compiled step, prompt lookup, and dtypes.

    python benchmarks/generation.py              # measure, and write benchmarks/results/generation.json
    python benchmarks/generation.py --write      # from it, a section of docs/usage.md

Each row is a process of its own. Models of random weights answer with a fixed number of tokens; prompt lookup, which
depends on what is said, is measured with nano on clips of its world.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoProcessor, CLIPVisionConfig, CompileConfig, LlamaConfig
from transformers.generation.streamers import BaseStreamer

import pllava
from pllava.environment import library_versions
from pllava.files import replace_file
from pllava.nano.world.rendering import render

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "generation.json", ROOT / "docs" / "usage.md"
BEGIN, END = "<!-- generation: written by benchmarks/generation.py -->\n", "<!-- end of generation -->\n"
TOKENS, TEXT_TOKENS, POOLING = 24, 64, (16, 6, 6)
# Hidden size, layers, inner size, heads, and heads of keys and values of the text model
SHAPES = {"tiny": (256, 4, 688, 4, 4), "1b": (2048, 16, 8192, 32, 8)}
CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}, "static, compiled": {}}
DTYPES = ("float32", "bfloat16")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # as on a CPU without bfloat16
LOOKUP = 5  # tokens that are proposed at a time
CLIPS = 4


class Clock(BaseStreamer):
    """Notes when each token is known."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


def compiled() -> dict[str, Any]:
    """Return the options of `generate` for a step that is compiled, on a CPU as well."""
    config = CompileConfig(fullgraph=True, mode="default")
    config._compile_all_devices = True  # transformers compiles by itself only on GPUs
    return {"cache_implementation": "static", "compile_config": config}


def build(size: str) -> pllava.PllavaForConditionalGeneration:
    hidden, layers, inner, heads, key_value_heads = SHAPES[size]
    text = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        vocab_size=32064,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        num_hidden_layers=2,
        intermediate_size=256,
        num_attention_heads=4,
        image_size=84,
        patch_size=14,
    )
    config = pllava.PllavaConfig(text_config=text, vision_config=vision, pooling_shape=POOLING)
    model = pllava.PllavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def measure_cache(size: str, dtype: str, cache: str, rounds: int) -> dict[str, float]:
    """Return seconds to the first token ("first"), of each later one ("token"), and more in a first run ("extra")."""
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    model = build(size)
    ids = torch.randint(3, 32000, (1, TEXT_TOKENS + model.config.num_video_tokens))
    ids[:, TEXT_TOKENS // 2 : -TEXT_TOKENS // 2] = model.config.video_token_id
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": torch.randn(1, 16, 3, 84, 84),
    }
    options = compiled() if cache == "static, compiled" else CACHES[cache]
    firsts, tokens, answers = [], [], []
    for _ in range(rounds + 1):
        clock, started = Clock(), time.perf_counter()
        model.generate(**inputs, **options, max_new_tokens=TOKENS, do_sample=False, streamer=clock)
        answers.append(time.perf_counter() - started)
        firsts.append(clock.times[1] - started)
        tokens.append((clock.times[-1] - clock.times[1]) / (TOKENS - 1))
    return {"first": min(firsts[1:]), "token": min(tokens[1:]), "extra": answers[0] - min(answers[1:])}


def measure_lookup(rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds without and with prompt lookup, for a first caption and for one that was given already."""
    model, processor = pllava.load_model(pllava.NANO), AutoProcessor.from_pretrained(pllava.NANO)
    placeholders = [processor.image_token_id, processor.video_token_id]
    lookup = {"prompt_lookup_num_tokens": LOOKUP, "suppress_tokens": placeholders}
    seconds = {"a caption": {"plain": [], "lookup": []}, "the same caption again": {"plain": [], "lookup": []}}
    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder), CLIPS, seed=0)
        for clip in sorted(Path(folder).glob("clips/*")):
            chat = [{"role": "user", "content": [{"type": "video", "path": str(clip)}, _text("Describe the video.")]}]
            for times in seconds.values():
                inputs = processor.apply_chat_template(
                    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
                )
                outputs = []
                for name, options in {"plain": {}, "lookup": lookup}.items():
                    runs = []
                    for _ in range(rounds):
                        started = time.perf_counter()
                        outputs.append(model.generate(**inputs, **options, max_new_tokens=64, do_sample=False))
                        runs.append(time.perf_counter() - started)
                    times[name].append(min(runs))
                if any(not torch.equal(output, outputs[0]) for output in outputs):
                    raise RuntimeError(f"Prompt lookup changed the answer about {clip.name}")
                answer = processor.decode(outputs[0][0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                chat += [{"role": "assistant", "content": [_text(answer)]}]
                chat += [{"role": "user", "content": [_text("Describe the video.")]}]
    return {case: {name: statistics.mean(each) for name, each in times.items()} for case, times in seconds.items()}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


# --- the page --------------------------------------------------------------------------------------------------------


def section(results: dict[str, Any]) -> str:
    """Return what stands between the marks of the page."""
    lines = ["| text model | dtype | cache | ms to the first token | ms a token | first run, more seconds |"]
    lines += ["|---|---|---|---:|---:|---:|"]
    for row in results["caches"]:
        cells = f"{row['first'] * 1e3:,.0f} | {row['token'] * 1e3:,.1f} | {max(row['extra'], 0):.1f}"
        lines.append(f"| {row['size']} | {row['dtype']} | {row['cache']} | {cells} |")
    lines += ["", "| nano answers with | plain (s) | prompt lookup (s) | ratio |", "|---|---:|---:|---:|"]
    for case, row in results["lookup"].items():
        lines.append(f"| {case} | {row['plain']:.2f} | {row['lookup']:.2f} | {row['lookup'] / row['plain']:.2f} |")
    return "\n".join([*lines, "", f"Fastest of {results['rounds']} runs, on {results['machine']}.", ""])


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Answers that are timed, after a first one.")] = 3,
    size: Annotated[list[str], typer.Option(help="Shapes of the text model.", metavar="SIZE")] = list(SHAPES),  # noqa: B006
    write: Annotated[bool, typer.Option("--write", help="Only rewrite the section of docs/usage.md.")] = False,
    row: Annotated[str | None, typer.Option(hidden=True, help="One measurement, printed as JSON.")] = None,
) -> None:
    """Compare caches, compiled steps, dtypes and prompt lookup."""
    if row is not None:
        arguments = json.loads(row)
        print(json.dumps(measure_cache(*arguments, rounds) if arguments else measure_lookup(rounds)))
        return
    if not write:
        RESULTS.parent.mkdir(exist_ok=True)
        replace_file(RESULTS, json.dumps(measure_all(size, rounds), indent=1) + "\n")
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    replace_file(PAGE, before + BEGIN + "\n" + section(results) + "\n" + END + after)


def measure_all(sizes: list[str], rounds: int) -> dict[str, Any]:
    caches = []
    for size in sizes:
        wanted = [(dtype, cache, {}) for dtype in DTYPES for cache in CACHES]
        for dtype, cache, environment in [*wanted, ("bfloat16", "dynamic", AVX2)]:
            measured = _in_new_process([size, dtype, cache], rounds, environment)
            caches.append(
                {"size": size, "dtype": dtype + ", AVX2 only" * bool(environment), "cache": cache, **measured}
            )
            print(caches[-1], flush=True)
    machine = f"a CPU ({torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()})"
    versions = library_versions(["torch", "transformers"])
    lookup = _in_new_process([], rounds, {})
    return {"machine": machine, "versions": versions, "rounds": rounds, "caches": caches, "lookup": lookup}


def _in_new_process(arguments: list[str], rounds: int, environment: dict[str, str]) -> Any:
    command = [sys.executable, __file__, "--row", json.dumps(arguments), "--rounds", str(rounds)]
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", **environment}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    typer.run(main)
