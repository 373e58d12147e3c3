"""
Converting, loading and asking a model of a published size on a CPU, step by step: `python benchmarks/real_size.py
measure`. The model has random weights, in the layout of the published PLLaVA. Each step's time, peak memory, and bytes
read and written stand beside the limits of the machine, which are measured in the same run. With `--write`, the
figures go to benchmarks/results/real_size.json and docs/real_size.md.

Before each command, the checkpoint is dropped from the system's cache of files: it is read from the disk.
"""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
RESULT, DOC = ROOT / "benchmarks" / "results" / "real_size.json", ROOT / "docs" / "real_size.md"
# Text model: hidden and intermediate size, layers, heads. Tower: hidden and intermediate size, layers, heads, image size
SIZES = {
    "7b": ((4096, 11008, 32, 32), (1024, 4096, 24, 16, 336), (16, 12, 12)),
    "tiny": ((64, 128, 2, 4), (32, 64, 3, 2, 56), (4, 2, 2)),
}
VOCABULARY, IMAGE, PADDING, ROWS = 32000, 32000, 32001, 32064  # the tokenizer's, two tokens more, and embeddings
RANK, PATCH = 128, 14
SHARD = "5GB"
SCALE = 0.02  # standard deviation of random weights
QUESTION = "What happens in the video?"
CLIP = {"seconds": 10, "fps": 25, "width": 640, "height": 360}
GB = 1e9

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Size = Annotated[str, typer.Option(help=f"Of the model: {' or '.join(SIZES)}.")]
Layers = Annotated[int | None, typer.Option(min=1, help="Of the text model; by default all of its size.")]
Tokens = Annotated[int, typer.Option(min=2, help="Tokens of the answer.")]

# --- the checkpoint --------------------------------------------------------------------------------------------------


@app.command()
def write_official(directory: Path, size: Size = "7b", layers: Layers = None) -> None:
    """Write a model with random bfloat16 weights in the published layout, in memory for one shard."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    config = official_config(size, layers)
    tensors = official_tensors(config)
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD)
    torch.manual_seed(0)
    for file, names in split.filename_to_tensors.items():
        shard = {name: random_weight(name, tensors[name].shape) for name in names}
        save_file(shard, directory / file, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config))
    write_processing_files(directory, config["vision_config"]["image_size"])


def official_config(size: str, layers: int | None) -> dict[str, Any]:
    """Return config.json as the published checkpoints have it."""
    (hidden, inner, text_layers, heads), (tower, tower_inner, tower_layers, tower_heads, image), pooling = SIZES[size]
    return {
        "architectures": ["PllavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": IMAGE,
        "num_frames": pooling[0],
        "pooling_method": "avg",
        "pooling_shape": pooling,
        "projector_hidden_act": "gelu",
        "text_config": {
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers or text_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 4096,
            "vocab_size": ROWS,
        },
        "torch_dtype": "bfloat16",
        "use_pooling": True,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": tower,
            "intermediate_size": tower_inner,
            "num_hidden_layers": tower_layers,
            "num_attention_heads": tower_heads,
            "image_size": image,
            "patch_size": PATCH,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def official_tensors(config: dict[str, Any]) -> dict[str, Any]:
    """Return all tensors on the meta device, by the names that they have in the original: PEFT wraps the text model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    text, vision = LlamaConfig(**config["text_config"]), CLIPVisionConfig(**config["vision_config"])
    with torch.device("meta"):
        lora = LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"])
        language_model = get_peft_model(LlamaForCausalLM(text), lora, low_cpu_mem_usage=True).to(torch.bfloat16)
        tower = CLIPVisionModel(vision).to(torch.bfloat16)
        linear = {1: torch.nn.Linear(vision.hidden_size, text.hidden_size, dtype=torch.bfloat16)}
        linear[2] = torch.nn.Linear(text.hidden_size, text.hidden_size, dtype=torch.bfloat16)
    parts = {"language_model.": language_model, "vision_tower.vision_model.": getattr(tower, "vision_model", tower)}
    parts |= {f"multi_modal_projector.linear_{number}.": layer for number, layer in linear.items()}
    return {prefix + name: tensor for prefix, module in parts.items() for name, tensor in module.state_dict().items()}


def random_weight(name: str, shape: tuple[int, ...]) -> Any:
    """Return a random matrix; the vectors are norms, which are 1, and biases, which are 0."""
    import torch

    if len(shape) == 1 and "class_embedding" not in name:
        return torch.full(shape, float("norm" in name and name.endswith("weight")), dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=SCALE)


def write_processing_files(directory: Path, image_size: int) -> None:
    """Write a byte-level tokenizer that has all ids of the published one, and CLIP's image processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"word{number}" for number in range(len(words), VOCABULARY)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(directory)
    crop = {"height": image_size, "width": image_size}
    CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=crop).save_pretrained(directory)


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


def run_measured(*command: Any) -> dict[str, Any]:
    """Run a command to its end; return its output and figures. Its peak of memory is looked up 20 times a second."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            peak = max(peak, memory("VmHWM", process.pid))
            time.sleep(0.05)
        seconds, moved = time.perf_counter() - start, transfers(process.pid)
        output = process.stdout.read()
    if process.returncode:
        raise typer.Exit(process.returncode)
    return {"seconds": seconds, "peak": peak, **moved, "output": output}


class Steps(dict):
    """The figures of each step of this process."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what the process has now
        before, start = transfers(), time.perf_counter()
        yield
        seconds, after = time.perf_counter() - start, transfers()
        moved = {key: after[key] - before[key] for key in after}
        self[name] = {"seconds": seconds, "peak": memory("VmHWM"), "anonymous": memory("RssAnon"), **moved}


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


@app.command()
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
    prompt, flops = {"input_ids": inputs["input_ids"]}, {}
    with torch.no_grad():
        with steps.step("encode the video"), count_flops(flops, "encode the video"):
            encoded = model.get_video_features(inputs["pixel_values_videos"])
        with steps.step("prefill"), count_flops(flops, "prefill"):
            output = model(**prompt, mm_encoder_outputs={"video": encoded}, use_cache=True, logits_to_keep=1)
        with steps.step("decode"):
            for _ in range(tokens - 1):
                word = output.logits[:, -1:].argmax(-1)
                output = model(input_ids=word, past_key_values=output.past_key_values, use_cache=True)
    read = [*model.model.language_model.layers.parameters(), *model.lm_head.parameters()]
    facts = {
        "parameters": model.num_parameters(),
        "weights": sum(weight.nbytes for weight in model.parameters()),
        "weights read per token": sum(weight.nbytes for weight in read),
        "prompt tokens": inputs["input_ids"].shape[1],
        "decoded tokens": tokens - 1,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    print(json.dumps({"steps": steps, "flops": flops, "facts": facts}))


@contextmanager
def count_flops(flops: dict[str, int], name: str) -> Iterator[None]:
    """Count the operations of matrix products; attention counts in full, as if it were not causal."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_, **__) -> int:
        return sdpa_flop_count(query.shape, key.shape, value.shape)

    attention._get_raw = True
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={operator: attention}) as counter:
        yield
    flops[name] = counter.get_total_flops()


@app.command()
def limits(directory: Path, side: int = 4096) -> None:
    """Measure what bounds every step, with the same threads, and print it as JSON."""
    import torch

    a, b = (torch.randn(side, side, dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(1 << 28, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    flops = 2 * side**3 / best(lambda: a @ b)
    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    file = max(directory.glob("*.safetensors"), key=lambda each: each.stat().st_size)
    start, buffer = time.perf_counter(), bytearray(1 << 24)
    with file.open("rb", buffering=0) as content:
        while content.readinto(buffer):
            pass
    read = file.stat().st_size / (time.perf_counter() - start)
    start = time.perf_counter()
    with (directory / "written").open("wb", buffering=0) as content:
        for _ in range(32):
            content.write(buffer)
        os.fsync(content.fileno())
    written = 32 * len(buffer) / (time.perf_counter() - start)
    (directory / "written").unlink()
    names = ("bfloat16 matrix product, FLOP/s", "copy in memory, bytes read and written/s", "disk read, bytes/s")
    print(json.dumps(dict(zip((*names, "disk write, bytes/s"), (flops, copied, read, written), strict=True))))


@app.command()
def measure(
    size: Size = "7b",
    layers: Layers = None,
    tokens: Tokens = 8,
    work: Annotated[Path, typer.Option(help="Folder for the models, removed at the end.")] = Path("real_size"),
    write: Annotated[bool, typer.Option("--write", help="Rewrite the JSON file and docs/real_size.md.")] = False,
) -> None:
    """Measure every step."""
    official, converted, clip = work / "official", work / "converted", work / "clip.mp4"
    script, pllava = (sys.executable, __file__), Path(sys.executable).with_name("pllava")
    work.mkdir(parents=True)
    try:
        write_clip(clip)
        shape = ["--size", size, *(["--layers", layers] if layers else [])]
        commands = {"write the official layout": run_measured(*script, "write-official", official, *shape)}
        drop_from_cache(official)
        measured = json.loads(run_measured(*script, "limits", official)["output"])
        drop_from_cache(official)
        commands["pllava convert"] = run_measured(pllava, "convert", official, converted)
        drop_from_cache(converted)
        question = ["chat", clip, QUESTION, "--model", converted, "--max-new-tokens", tokens]
        commands["pllava chat"] = run_measured(pllava, *question)
        drop_from_cache(converted)
        answered = json.loads(run_measured(*script, "answer", converted, clip, "--tokens", tokens)["output"])
        bytes_of = {folder.name: sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in (official, converted)}
    finally:
        shutil.rmtree(work)
    result = {"size": size, "layers": layers, "limits": measured, "commands": commands, "bytes": bytes_of, **answered}
    if write:
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app()
