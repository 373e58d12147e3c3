"""Tiny checkpoints in the layouts of the original, from its recordings (`recordings/README.md`)."""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RECORDINGS = Path(__file__).parents[1] / "recordings"
IMAGE_BASE = RECORDINGS / "image_base"
TRAINING_OUTPUT = RECORDINGS / "training_output"
NUMBERS = load_file(RECORDINGS / "numbers.safetensors")
IMAGE_TOKEN, VIDEO_TOKEN = 500, 502  # in the recordings' tokenizer, and added by the conversion
OFFICIAL_4 = 4 * 8 / 128  # alpha for the scale of the original's scripts, 4 / 128, at r = 8

# The published models: hidden, layers, intermediate, heads, key-value heads, vocabulary, rope theta
SIZES = {
    "7b": (4096, 32, 11008, 32, 32, 32064, 10000.0),
    "13b": (5120, 40, 13824, 40, 40, 32064, 10000.0),
    "34b": (7168, 60, 20480, 56, 8, 64064, 5000000.0),
}
VISION_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "image_size": 336,
    "patch_size": 14,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "projection_dim": 768,
}


def llama_config(
    hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int, theta: float = 10000.0
) -> dict:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "rope_theta": theta,
    }


def official_weights() -> dict[str, torch.Tensor]:
    """All weights, with the names that they have in the original, where PEFT wraps the text model."""
    trained = load_file(TRAINING_OUTPUT / "model.safetensors")
    weights = {}
    for key, tensor in load_file(IMAGE_BASE / "model.safetensors").items():
        key = key.replace("language_model.", "language_model.base_model.model.", 1)
        key = key.replace("q_proj.w", "q_proj.base_layer.w").replace("v_proj.w", "v_proj.base_layer.w")
        weights[key.replace(".base_layer", "") if "vision_tower" in key else key] = tensor
    del weights["image_newline"]
    return weights | trained


def write_official(directory: Path, shards: int = 1, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint in the layout of `ermu2001/pllava-7b`."""
    shutil.copytree(TRAINING_OUTPUT, directory)
    (directory / "model.safetensors").unlink()
    weights = {key: tensor.to(dtype) for key, tensor in official_weights().items()}
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    names, weight_map = sorted(weights), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}  # a LoRA and its weight are in different files
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def widened(values: torch.Tensor, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Repeat a tensor's value at the media token of the original's `ids` (at most one per row) `count` times."""
    repeats = torch.where(ids == IMAGE_TOKEN, count, 1)
    return torch.stack([row.repeat_interleave(times) for row, times in zip(values, repeats, strict=True)])


def with_placeholders(ids: torch.Tensor, count: int, fill: int = VIDEO_TOKEN) -> torch.Tensor:
    """The original's ids, with `count` placeholders instead of the media token, `(batch, sequence)`."""
    wide = widened(ids, ids, count)
    return wide.masked_fill(wide == IMAGE_TOKEN, fill)


def official_shapes(
    hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int, rank: int = 128
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an official checkpoint, as `recordings/training_output` and the image base have them."""
    width, kv = hidden, hidden // heads * kv_heads
    text = "language_model.base_model.model."
    shapes = {f"{text}model.embed_tokens.weight": (vocabulary, width), f"{text}lm_head.weight": (vocabulary, width)}
    shapes[f"{text}model.norm.weight"] = (width,)
    for layer in range(layers):
        prefix = f"{text}model.layers.{layer}."
        shapes |= {f"{prefix}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (intermediate, width) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (width, intermediate)
        shapes |= {f"{prefix}self_attn.k_proj.weight": (kv, width), f"{prefix}self_attn.o_proj.weight": (width, width)}
        for name, rows in (("q", width), ("v", kv)):
            shapes[f"{prefix}self_attn.{name}_proj.base_layer.weight"] = (rows, width)
            shapes[f"{prefix}self_attn.{name}_proj.lora_A.default.weight"] = (rank, width)
            shapes[f"{prefix}self_attn.{name}_proj.lora_B.default.weight"] = (rows, rank)
    for number, columns in ((1, 1024), (2, width)):
        shapes[f"multi_modal_projector.linear_{number}.weight"] = (width, columns)
        shapes[f"multi_modal_projector.linear_{number}.bias"] = (width,)
    tower = "vision_tower.vision_model."
    shapes[f"{tower}embeddings.class_embedding"] = (1024,)
    shapes[f"{tower}embeddings.patch_embedding.weight"] = (1024, 3, 14, 14)
    shapes[f"{tower}embeddings.position_embedding.weight"] = (577, 1024)
    norms = [f"{tower}pre_layrnorm", f"{tower}post_layernorm"]
    for layer in range(24):
        prefix = f"{tower}encoder.layers.{layer}."
        norms += [f"{prefix}layer_norm1", f"{prefix}layer_norm2"]
        for name, (rows, columns) in {"mlp.fc1": (4096, 1024), "mlp.fc2": (1024, 4096)}.items() | {
            (f"self_attn.{part}_proj", (1024, 1024)) for part in ("q", "k", "v", "out")
        }:
            shapes[f"{prefix}{name}.weight"], shapes[f"{prefix}{name}.bias"] = (rows, columns), (rows,)
    return shapes | {f"{norm}.{part}": (1024,) for norm in norms for part in ("weight", "bias")}


def write_sparse(file: Path, shapes: dict[str, tuple[int, ...]], filled: tuple[str, ...] = ()) -> None:
    """Write a sparse safetensors file of bfloat16 zeros; tensors in `filled` begin with two ones."""
    header, size = {}, 0
    for name, shape in shapes.items():
        end = size + math.prod(shape) * 2
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [size, end]}
        size = end
    head = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        stream.truncate(8 + len(head) + size)
        for name in filled:
            stream.seek(8 + len(head) + header[name]["data_offsets"][0])
            stream.write(b"\x80\x3f\x80\x3f")
