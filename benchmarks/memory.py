"""
The memory that training takes on each GPU, computed for the published models: `python benchmarks/memory.py`.

Weights are counted on the real modules, built without data; what the two passes keep is a formula, term by term.
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
# The published text models, placeholders in the vocabulary. LLaVA's default vision tower is theirs: CLIP-L, 336 pixels
SIZES: dict[str, dict[str, Any]] = {
    name: {"model_type": "llama", **dict(zip(_KEYS.split(), values, strict=True))}
    for name, values in {
        "7b": (4096, 32, 11008, 32, 32, 32064, 10000.0),
        "13b": (5120, 40, 13824, 40, 40, 32064, 10000.0),
        "34b": (7168, 60, 20480, 56, 8, 64064, 5000000.0),
    }.items()
}
TEXT_TOKENS = 512  # beside the visual ones, all of them answer: the most that a sample costs
GPUS = 8
CARDS = (24, 40, 80)  # GiB
USABLE = 0.9  # of a card: CUDA, NCCL and the allocator's gaps take the rest
GIB = 2**30
# Bytes of a number
BFLOAT16, FLOAT32, ADAM = 2, 4, 2 * 4  # Adam keeps two averages
NF4 = 0.5 + FLOAT32 / 64  # and a scale for each 64 weights
# DeepSpeed's defaults, in numbers: gradients that are reduced at once, and weights that ZeRO-3 gathers at once
REDUCE_BUCKET, LIVE_WEIGHTS = int(5e8), int(1e9)
TILE = (4096, 32768)  # TRL's fused LM head makes logits of this many positions and words at once


@dataclass
class States:
    """Bytes on each GPU whatever the batch: `buffers` are copies for communication or computation; `host` is all."""

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
    Bytes that the forward pass keeps (`inputs`, `projector`, `boundaries`), and what comes on top, one at a time: the
    vision tower before the rest is kept, the logits, and what a layer keeps with the gradients under way in it.
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
    """The config of a published size: "7b", "13b" or "34b"."""
    return PllavaConfig(text_config=SIZES[name])


def build(config: PllavaConfig, adapter: LoraConfig, device: str = "meta") -> PeftModel:
    """The model as it is trained, with random weights: bfloat16, but the adapter and the projector are float32."""
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        model = get_peft_model(model, adapter, low_cpu_mem_usage=device == "meta")
    model.get_base_model().model.multi_modal_projector.modules_to_save.float()  # PEFT does so only to the adapter
    return model


def states(model: PeftModel) -> dict[str, States]:
    """What does not depend on the batch, for each way to train."""
    base = model.get_base_model()
    layers, embedding = base.model.language_model.layers, base.get_input_embeddings()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.nbytes for weight in model.parameters() if not weight.requires_grad)
    alone = States(frozen + trained * FLOAT32, trained * FLOAT32, trained * ADAM)
    # FSDP keeps the root unit gathered, and for a while the head, or a layer and the next one ahead of its use
    layer, head = _numbers(layers[0]), _numbers(base.lm_head)
    root = _numbers(model) - _numbers(layers) - _numbers(embedding) - head
    units = (root + max(head, 2 * layer)) * BFLOAT16
    # DeepSpeed trains in bfloat16, on float32 copies that its optimizer keeps
    half, master = frozen + trained * BFLOAT16, trained * (FLOAT32 + ADAM)
    bucket = REDUCE_BUCKET * BFLOAT16
    gathered = bucket + min(LIVE_WEIGHTS * BFLOAT16, half)
    # On the host gradients are there twice, as they come and as the optimizer takes them
    host = half + trained * (BFLOAT16 + FLOAT32) + master
    # bitsandbytes quantises the layers' matrices, and restores one at a time
    matrices = [weight.numel() for weight in layers.parameters() if weight.ndim == 2 and not weight.requires_grad]
    four_bit = alone.weights - sum(matrices) * (BFLOAT16 - NF4)
    return {
        "one process": alone,
        # DDP reduces copies of the gradients
        "DDP": States(alone.weights, alone.gradients, alone.optimizer, buffers=trained * FLOAT32),
        f"FSDP, {GPUS} GPUs": States(alone.weights / GPUS, alone.gradients / GPUS, alone.optimizer / GPUS, units),
        f"ZeRO-2, {GPUS} GPUs": States(half, trained * BFLOAT16 / GPUS, master / GPUS, bucket),
        f"ZeRO-3, {GPUS} GPUs": States(half / GPUS, trained * BFLOAT16 / GPUS, master / GPUS, gathered),
        f"ZeRO-3 with offload, {GPUS} GPUs": States(0, 0, 0, gathered, host),
        "QLoRA, one process": States(four_bit, alone.gradients, alone.optimizer, max(matrices) * BFLOAT16),
    }


def _numbers(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def activations(config: PllavaConfig, adapter: LoraConfig, batch: int, text_tokens: int = TEXT_TOKENS) -> Activations:
    """
    What a step keeps on a GPU under bfloat16 autocast and gradient checkpointing, with attention that never makes its
    square of weights (`sdpa`). A sample is one clip of `num_frames` frames; its `text_tokens` are all labelled.
    """
    text, vision = config.text_config, config.vision_config
    hidden, inner, heads = text.hidden_size, text.intermediate_size, text.num_attention_heads
    length = config.num_visual_tokens + text_tokens
    tokens, labelled = batch * length, batch * text_tokens
    frames = batch * config.num_frames
    patches = frames * (vision.image_size // vision.patch_size) ** 2
    pixels = frames * vision.num_channels * vision.image_size**2
    projector = [
        patches * vision.hidden_size * BFLOAT16,  # the tower's features, which the first linear layer keeps
        2
        * patches
        * hidden
        * BFLOAT16,  # before the activation function, and behind it, where the second layer keeps it
        hidden**2 * BFLOAT16,  # and that layer's weights as autocast cast them
    ]
    boundaries = [
        tokens * hidden * BFLOAT16 * text.num_hidden_layers,  # what enters each layer, to run it anew from
        tokens * hidden * BFLOAT16,  # the words' embeddings, which PEFT makes require a gradient
    ]
    tower = [
        pixels * BFLOAT16,  # cast
        # Of one layer: the input, the residual, the normed; what is before, in and behind the activation function
        3 * (patches + frames) * (vision.hidden_size + vision.intermediate_size) * BFLOAT16,
    ]
    logits = [
        tokens * hidden * (FLOAT32 + BFLOAT16),  # the last norm keeps its input in float32; its output
        tokens * hidden * BFLOAT16,  # the gradient of that
        labelled * hidden * (FLOAT32 + 2 * BFLOAT16),  # of the labelled: their states, and two gradients of these
        min(labelled, TILE[0]) * TILE[1] * BFLOAT16,
    ]
    dropped = BFLOAT16 + (1 if adapter.lora_dropout else 0)  # and the mask
    layer = [
        2 * tokens * hidden * FLOAT32,  # its two norms keep their inputs in float32
        4 * tokens * heads * text.head_dim * BFLOAT16,  # queries, keys and values for each head, and the result
        tokens * heads * FLOAT32,  # the sums of the exponentials
        batch * length**2 * (1 + BFLOAT16),  # where a batch is padded: the mask, and as attention adds it
        2 * tokens * (hidden * dropped + adapter.r * BFLOAT16),  # what enters LoRA's A and B, of two projections
        3 * tokens * inner * BFLOAT16,  # the gate before and behind its activation function, and what it opens for
    ]
    backward = [
        3 * tokens * inner * BFLOAT16,  # of the last three
        2 * tokens * hidden * BFLOAT16,  # of what the layer gave, and of what enters the wide part
    ]
    return Activations(pixels * FLOAT32, *map(sum, (projector, boundaries, tower, logits, layer, backward)))


def largest_batch(fixed: States, of_batch: Callable[[int], Activations], gib: int) -> int:
    """How many samples at a time a card of so many GiB takes; 0 where not even one."""
    room = USABLE * gib * GIB - fixed.total
    return next(batch for batch in itertools.count() if of_batch(batch + 1).total > room)


def size_table(name: str, batch: int) -> str:
    """One size's table: a line for each way to train, GiB."""
    config, adapter = size_config(name), lora_config()
    ways = states(build(config, adapter))
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
    """A table for each size, one of the terms of their activations, and what a clip takes in a feature cache."""
    configs = {name: size_config(name) for name in SIZES}
    sizes = [activations(config, lora_config(), batch) for config in configs.values()]
    parts = [*Activations.__annotations__, "total"]
    terms = [[part, *(f"{getattr(kept, part) / GIB:.2f}" for kept in sizes)] for part in parts]
    vision = configs["7b"].vision_config
    shape = configs["7b"].num_frames, (vision.image_size // vision.patch_size) ** 2, vision.hidden_size
    half, full = (f"{math.prod(shape) * number:,} bytes" for number in (BFLOAT16, FLOAT32))
    clip = "A clip in a cache of vision features: {} frames x {} patches x {} values, ".format(*shape)
    clip += f"{half} in bfloat16, {full} in float32."
    return "\n\n".join([*(size_table(name, batch) for name in SIZES), _table([["activations", *SIZES], *terms]), clip])


def _table(rows: list[list[Any]]) -> str:
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [rows[0], rule, *rows[1:]])


def markdown(batch: int) -> str:
    return f"""# Memory for training

Written by `python benchmarks/memory.py --write`; do not edit. Computed, not measured: `--measure SIZE` compares.

The paper's recipe: the model frozen in bfloat16, LoRA of rank 128 on the query and value projections and the projector
trained in float32 by AdamW, gradient checkpointing. A sample is one clip (16 frames, 2304 visual tokens) and
{TEXT_TOKENS} tokens of text; batch size {batch} on each GPU. GiB on each GPU; "host" is the memory of the machine of
all {GPUS} GPUs. Gradients count in full while activations do, as under gradient accumulation. "Buffers" are what DDP
and DeepSpeed reduce, the weights that FSDP and ZeRO-3 gather at once, and the matrix that is restored from 4 bits. The
last columns are the batch size on each GPU that fits a card of that size, {USABLE:.0%} of it counted on ("-": none).

Activations: `inputs` are the pixels, `boundaries` what enters each layer; these and what the `projector` needs stay.
Then come the `logits`, or the `layer` that is run anew and gradients in it. `vision` comes before all but `inputs`.

{tables(batch)}
"""


def measure(name: str, batch: int) -> str:
    """Two training steps with random weights on a GPU: what torch had in use at most, beside what is computed."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("memory is measured on a CUDA GPU, and torch sees none here", param_hint="--measure")
    config, adapter = size_config(name), lora_config()
    model = build(config, adapter, "cuda")
    computed = states(model)["one process"].total + activations(config, adapter, batch).total
    train_two_steps(model, random_samples(config, batch, TEXT_TOKENS, "cuda"))
    measured = torch.cuda.max_memory_allocated()
    return f"{name}, {batch} at a time: measured {measured / GIB:.2f} GiB, computed {computed / GIB:.2f} GiB"


def random_samples(config: PllavaConfig, batch: int, text_tokens: int, device: str) -> dict[str, torch.Tensor]:
    """A batch of noise, in the shapes of the collator's."""
    words = torch.randint(3, config.image_token_id, (batch, text_tokens), device=device)
    placeholders = torch.full((batch, config.num_visual_tokens), config.video_token_id, device=device)
    size = config.vision_config.image_size
    return {
        "input_ids": torch.cat([placeholders, words], dim=1),
        "labels": torch.cat([torch.full_like(placeholders, -100), words], dim=1),
        "pixel_values_videos": torch.randn(batch, config.num_frames, 3, size, size, device=device),
    }


def train_two_steps(model: PeftModel, samples: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    """As TRL's trainer does: its LM head, bfloat16 autocast, checkpointing; gradients stay, as if accumulated."""
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
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time on each GPU.")] = 1,
    write: Annotated[bool, typer.Option("--write", help="Rewrite docs/memory.md.")] = False,
    size: Annotated[str | None, typer.Option("--measure", help="7b, 13b or 34b: measure it on a GPU instead.")] = None,
) -> None:
    """The memory that training takes on each GPU, for each published size and way to train."""
    if size not in (None, *SIZES):
        raise typer.BadParameter(f"{size!r} is none of {', '.join(SIZES)}", param_hint="--measure")
    if write:
        FILE.write_text(markdown(batch), encoding="utf-8")
    else:
        typer.echo(measure(size, batch) if size else tables(batch))


if __name__ == "__main__":
    typer.run(main)
