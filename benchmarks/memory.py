"""
The memory that training takes on each GPU, computed for the published models: `python benchmarks/memory.py`. With
`--write`, the tables go to docs/memory.md; with `--measure 7b`, two steps on a GPU are compared with the computed sum.

Weights are counted on the real modules, built on the meta device. Activations are a formula, term by term.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForImageTextToText

from pllava.adapters import lora_config
from pllava.configuration_pllava import PllavaConfig

FILE = Path(__file__).parents[1] / "docs" / "memory.md"
_KEYS = "hidden_size num_hidden_layers intermediate_size num_attention_heads num_key_value_heads vocab_size rope_theta"
_VALUES = {
    "7b": (4096, 32, 11008, 32, 32, 32064, 10000.0),
    "13b": (5120, 40, 13824, 40, 40, 32064, 10000.0),
    "34b": (7168, 60, 20480, 56, 8, 64064, 5000000.0),
}
# The published text models, with the placeholders in the vocabulary. Their vision tower is the default: CLIP-L/336
SIZES = {name: {"model_type": "llama", **dict(zip(_KEYS.split(), _VALUES[name], strict=True))} for name in _VALUES}
TEXT_TOKENS = 512  # of a sample, beside the visual ones; all are labelled, which takes the most memory
GPUS = 8
CARDS = (24, 40, 80)  # GiB
USABLE = 0.9  # of a card; CUDA, NCCL and fragmentation take the rest
GIB = 2**30
BFLOAT16, FLOAT32, ADAM = 2, 4, 2 * 4  # bytes per value; Adam keeps two averages
NF4 = 0.5 + FLOAT32 / 64  # with a scale per 64 weights
# DeepSpeed's defaults, in values: gradients that are reduced at once, and weights that ZeRO-3 gathers at once
REDUCE_BUCKET, LIVE_WEIGHTS = int(5e8), int(1e9)
TILE = (4096, 32768)  # positions and words whose logits TRL's fused LM head makes at once


@dataclass
class ModelStates:
    """Bytes on each GPU that do not depend on the batch (`buffers` are copies), and `host`: of the machine."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float = 0
    host: float = 0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.buffers


@dataclass
class Activations:
    """
    Bytes that the forward pass keeps (`inputs`, `projector`, `boundaries`), and those on top of them, one at a time:
    the vision tower's at the beginning, the logits', and those of one layer with the gradients in it.
    """

    inputs: int
    projector: int
    boundaries: int
    vision: int
    logits: int
    layer: int
    backward: int

    @property
    def total(self) -> int:
        on_top = max(self.logits, self.layer + self.backward)
        return self.inputs + max(self.vision, self.projector + self.boundaries + on_top)


def size_config(name: str) -> PllavaConfig:
    """Return the config of a published size: "7b", "13b" or "34b"."""
    return PllavaConfig(text_config=SIZES[name])


def build(config: PllavaConfig, adapter: LoraConfig, device: str = "meta") -> PeftModel:
    """Build the model as it is trained, with random weights: bfloat16, the adapter and the projector in float32."""
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        model = get_peft_model(model, adapter, low_cpu_mem_usage=device == "meta")
    model.get_base_model().model.multi_modal_projector.modules_to_save.float()  # PEFT casts the adapter only
    return model


def model_states(model: PeftModel) -> dict[str, ModelStates]:
    """Return the memory that does not depend on the batch, for each way to train."""
    base = model.get_base_model()
    layers, embedding = base.model.language_model.layers, base.get_input_embeddings()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.nbytes for weight in model.parameters() if not weight.requires_grad)
    alone = ModelStates(frozen + trained * FLOAT32, trained * FLOAT32, trained * ADAM)
    # FSDP keeps the root unit gathered, and in turn the head, or a layer with the prefetched next one
    layer, head = _parameters(layers[0]), _parameters(base.lm_head)
    root = _parameters(model) - _parameters(layers) - _parameters(embedding) - head
    units = (root + max(head, 2 * layer)) * BFLOAT16
    # DeepSpeed trains in bfloat16, and its optimizer keeps float32 copies
    half, master = frozen + trained * BFLOAT16, trained * (FLOAT32 + ADAM)
    bucket = REDUCE_BUCKET * BFLOAT16
    gathered = bucket + min(LIVE_WEIGHTS * BFLOAT16, half)
    # The host has the gradients twice, in bfloat16 and for the optimizer in float32
    host = half + trained * (BFLOAT16 + FLOAT32) + master
    # bitsandbytes quantizes the layers' matrices, and dequantizes one at a time
    matrices = [weight.numel() for weight in layers.parameters() if weight.ndim == 2 and not weight.requires_grad]
    four_bit = alone.weights - sum(matrices) * (BFLOAT16 - NF4)
    return {
        "one process": alone,
        # DDP reduces copies of the gradients
        "DDP": ModelStates(alone.weights, alone.gradients, alone.optimizer, buffers=trained * FLOAT32),
        f"FSDP, {GPUS} GPUs": ModelStates(alone.weights / GPUS, alone.gradients / GPUS, alone.optimizer / GPUS, units),
        f"ZeRO-2, {GPUS} GPUs": ModelStates(half, trained * BFLOAT16 / GPUS, master / GPUS, bucket),
        f"ZeRO-3, {GPUS} GPUs": ModelStates(half / GPUS, trained * BFLOAT16 / GPUS, master / GPUS, gathered),
        f"ZeRO-3 with offload, {GPUS} GPUs": ModelStates(0, 0, 0, gathered, host),
        "QLoRA, one process": ModelStates(four_bit, alone.gradients, alone.optimizer, max(matrices) * BFLOAT16),
    }


def _parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def activations(config: PllavaConfig, adapter: LoraConfig, batch: int, text_tokens: int = TEXT_TOKENS) -> Activations:
    """
    Return what a step keeps on a GPU under bfloat16 autocast and gradient checkpointing, with an attention that never
    holds the whole matrix of weights (`sdpa`). A sample is one clip and `text_tokens` labelled tokens.
    """
    text, vision = config.text_config, config.vision_config
    hidden, inner, heads = text.hidden_size, text.intermediate_size, text.num_attention_heads
    length = config.num_video_tokens + text_tokens
    tokens, labelled = batch * length, batch * text_tokens
    frames = batch * config.num_frames
    patches = frames * config.patch_grid**2
    pixels = frames * vision.num_channels * vision.image_size**2
    projector = [
        patches * vision.hidden_size * BFLOAT16,  # the first linear layer's input
        2 * patches * hidden * BFLOAT16,  # the activation function's input, and its output for the second layer
        hidden**2 * BFLOAT16,  # the second layer's weights, cast by autocast
    ]
    boundaries = [
        tokens * hidden * BFLOAT16 * text.num_hidden_layers,  # the input of each layer, from which it is recomputed
        tokens * hidden * BFLOAT16,  # the embeddings, which PEFT makes require a gradient
    ]
    tower = [
        pixels * BFLOAT16,  # cast
        # One layer's input, residual and normalized input; and the MLP's values around the activation function
        3 * (patches + frames) * (vision.hidden_size + vision.intermediate_size) * BFLOAT16,
    ]
    logits = [
        tokens * hidden * (FLOAT32 + BFLOAT16),  # the last norm keeps its input in float32; its output
        tokens * hidden * BFLOAT16,  # the gradient of that
        labelled * hidden * (FLOAT32 + 2 * BFLOAT16),  # the states of labelled positions, and two gradients of these
        min(labelled, TILE[0]) * TILE[1] * BFLOAT16,
    ]
    dropped = BFLOAT16 + (1 if adapter.lora_dropout else 0)  # with dropout's mask
    layer = [
        2 * tokens * hidden * FLOAT32,  # its two norms keep their inputs in float32
        4 * tokens * heads * text.head_dim * BFLOAT16,  # queries, keys, values and the result for each head
        tokens * heads * FLOAT32,  # attention's sums of exponentials
        batch * length**2 * (1 + BFLOAT16),  # the mask of a padded batch, as booleans and as attention adds it
        2 * tokens * (hidden * dropped + adapter.r * BFLOAT16),  # the inputs of LoRA's A and B, of two projections
        3 * tokens * inner * BFLOAT16,  # the MLP's gate before and behind its activation function, and its factor
    ]
    backward = [
        3 * tokens * inner * BFLOAT16,  # gradients of the MLP's last three values
        2 * tokens * hidden * BFLOAT16,  # gradients of the layer's output, and of the MLP's input
    ]
    return Activations(pixels * FLOAT32, *map(sum, (projector, boundaries, tower, logits, layer, backward)))


def largest_batch(fixed: ModelStates, of_batch: Callable[[int], Activations], gib: int) -> int:
    """Return the largest batch size that fits a card of `gib` GiB; 0 if none does."""
    room = USABLE * gib * GIB - fixed.total
    return next(batch for batch in itertools.count() if of_batch(batch + 1).total > room)


def size_table(name: str, batch: int) -> str:
    """Return the table of a size: a line for each way to train, in GiB."""
    config, adapter = size_config(name), lora_config()
    ways = model_states(build(config, adapter))
    kept = activations(config, adapter, batch).total
    columns = ["weights", "gradients", "optimizer", "buffers", "activations", "total", "host"]
    trained = ways["one process"].gradients / FLOAT32 / 1e6
    rows = [[f"**{name}**, {trained:.0f}M trained", *columns, *(f"{gib} GiB" for gib in CARDS)]]
    for way, fixed in ways.items():
        *here, host = asdict(fixed).values()
        sizes = [f"{size / GIB:.1f}" if size else "" for size in (*here, kept, fixed.total + kept, host)]
        fitting = [largest_batch(fixed, lambda size: activations(config, adapter, size), gib) for gib in CARDS]
        rows.append([way, *sizes, *(number or "-" for number in fitting)])
    return _table(rows)


def tables(batch: int) -> str:
    """Return a table for each size, one of the terms of the activations, and the size of a clip in a feature cache."""
    configs = {name: size_config(name) for name in SIZES}
    sizes = [activations(config, lora_config(), batch) for config in configs.values()]
    parts = [*Activations.__annotations__, "total"]
    terms = [[part, *(f"{getattr(kept, part) / GIB:.2f}" for kept in sizes)] for part in parts]
    vision = configs["7b"].vision_config
    shape = configs["7b"].num_frames, (vision.image_size // vision.patch_size) ** 2, vision.hidden_size
    half, full = (f"{math.prod(shape) * number:,} bytes" for number in (BFLOAT16, FLOAT32))
    clip = "A clip in a cache of vision features: {} frames x {} patches x {} values,\n".format(*shape)
    clip += f"{half} in bfloat16, {full} in float32."
    return "\n\n".join([*(size_table(name, batch) for name in SIZES), _table([["activations", *SIZES], *terms]), clip])


def _table(rows: list[list[Any]]) -> str:
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [rows[0], rule, *rows[1:]])


def markdown(batch: int) -> str:
    return f"""# Memory for training

Written by `python benchmarks/memory.py --write`; do not edit. Computed, not measured: `--measure SIZE` compares.

The paper's recipe: the model is frozen in bfloat16; LoRA of rank 128 on the query and value projections and the
projector are trained in float32 by AdamW, with gradient checkpointing. A sample is one clip (16 frames, 2304 visual
tokens) and {TEXT_TOKENS} tokens of text; batch size {batch} on each GPU. All columns are GiB on each GPU, but "host":
the memory of the machine that has all {GPUS} GPUs. Gradients and activations are counted together, as with gradient
accumulation. "Buffers" are the values that DDP and DeepSpeed reduce, the weights that FSDP and ZeRO-3 gather at once,
and the matrix that is dequantized from 4 bits. The last columns are the largest batch size on each GPU that fits into
{USABLE:.0%} of a card of that size ("-": none).

Activations: the `inputs` are the pixels, the `boundaries` the input of each layer; these and the `projector`'s values
are kept through the step. On top of them come the `logits`, or the `layer` that is recomputed, with its gradients
(`backward`). The `vision` tower runs when only the `inputs` are kept.

{tables(batch)}
"""


def measure(name: str, batch: int) -> str:
    """Run two training steps with random weights on a GPU, and compare torch's peak memory with the computed one."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("memory is measured on a CUDA GPU, and torch finds none", param_hint="--measure")
    config, adapter = size_config(name), lora_config()
    model = build(config, adapter, "cuda")
    computed = model_states(model)["one process"].total + activations(config, adapter, batch).total
    train_two_steps(model, random_samples(config, batch, TEXT_TOKENS, "cuda"))
    measured = torch.cuda.max_memory_allocated()
    return f"{name}, batch size {batch}: measured {measured / GIB:.2f} GiB, computed {computed / GIB:.2f} GiB"


def random_samples(config: PllavaConfig, batch: int, text_tokens: int, device: str) -> dict[str, torch.Tensor]:
    """Return a batch of random values, in the shapes of the collator's."""
    words = torch.randint(3, config.image_token_id, (batch, text_tokens), device=device)
    placeholders = torch.full((batch, config.num_video_tokens), config.video_token_id, device=device)
    size = config.image_size
    return {
        "input_ids": torch.cat([placeholders, words], dim=1),
        "labels": torch.cat([torch.full_like(placeholders, -100), words], dim=1),
        "pixel_values_videos": torch.randn(batch, config.num_frames, 3, size, size, device=device),
    }


def train_two_steps(model: PeftModel, samples: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    """Train as TRL's trainer does: with its LM head, bfloat16 autocast, checkpointing, and gradients that are kept."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model.get_base_model())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    device = model.device.type
    trained = (weight for weight in model.train().parameters() if weight.requires_grad)
    optimizer = torch.optim.AdamW(trained, fused=device == "cuda")
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16):
            loss = model(**samples, fused_lm_head=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return optimizer


def main(
    batch: Annotated[int, typer.Option(min=1, help="Batch size on each GPU.")] = 1,
    write: Annotated[bool, typer.Option("--write", help="Rewrite docs/memory.md.")] = False,
    size: Annotated[str | None, typer.Option("--measure", help="7b, 13b or 34b: measure it on a GPU instead.")] = None,
) -> None:
    """Compute the memory that training takes on each GPU, for each published size and way to train."""
    if size not in (None, *SIZES):
        raise typer.BadParameter(f"{size!r} is not one of {', '.join(SIZES)}", param_hint="--measure")
    if write:
        FILE.write_text(markdown(batch), encoding="utf-8")
    else:
        typer.echo(measure(size, batch) if size else tables(batch))


if __name__ == "__main__":
    typer.run(main)
