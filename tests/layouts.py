"""The checkpoint layouts of the original, at tiny size, from its recordings (`recordings/README.md`)."""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RECORDINGS = Path(__file__).parent / "recordings"
IMAGE_BASE = RECORDINGS / "image_base"
TRAINING_OUTPUT = RECORDINGS / "training_output"
IMAGE_TOKEN, VIDEO_TOKEN = 500, 502  # of the recordings' tokenizer, and what conversion adds to it


def official_weights() -> dict[str, torch.Tensor]:
    """All weights with the names that PEFT gave them in the original: it wraps the text model."""
    trained = load_file(TRAINING_OUTPUT / "model.safetensors")
    weights = {}
    for key, tensor in load_file(IMAGE_BASE / "model.safetensors").items():
        key = key.replace("language_model.", "language_model.base_model.model.", 1)
        key = key.replace("q_proj.w", "q_proj.base_layer.w").replace("v_proj.w", "v_proj.base_layer.w")
        weights[key.replace(".base_layer", "") if "vision_tower" in key else key] = tensor
    del weights["image_newline"]
    return weights | trained


def write_official(
    directory: Path, shards: int = 1, dtype: torch.dtype = torch.float32, weights: dict | None = None
) -> Path:
    """An official checkpoint: `ermu2001/pllava-7b` and its like."""
    shutil.copytree(TRAINING_OUTPUT, directory)
    (directory / "model.safetensors").unlink()
    weights = {key: tensor.to(dtype) for key, tensor in (weights or official_weights()).items()}
    write_shards(directory, weights, shards)
    return directory


def write_shards(directory: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}  # LoRA and its weight in different files
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def with_placeholders(ids: torch.Tensor, count: int, fill: int = VIDEO_TOKEN) -> torch.Tensor:
    """The original's ids, with one media token a row at most -> ours, with `count` of them, `(batch, sequence)`."""
    rows = []
    for row in ids:
        place = (row == IMAGE_TOKEN).nonzero().flatten().tolist()
        rows.append(
            row if not place else torch.cat([row[: place[0]], row.new_full((count,), fill), row[place[0] + 1 :]])
        )
    return torch.stack(rows)


def widened(values: torch.Tensor, ids: torch.Tensor, count: int) -> torch.Tensor:
    """A mask or labels beside the original's `ids`, with the value at the media token repeated like that."""
    rows = []
    for row, row_ids in zip(values, ids, strict=True):
        repeats = torch.where(row_ids == IMAGE_TOKEN, count, 1)
        rows.append(row.repeat_interleave(repeats))
    return torch.stack(rows)


def write_sparse(
    file: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16", filled: tuple[str, ...] = ()
) -> None:
    """A safetensors file of zeros that takes no room on the disk; the tensors named in `filled` begin with a 1."""
    header, size = {}, 0
    for name, shape in shapes.items():
        end = size + math.prod(shape) * {"BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [size, end]}
        size = end
    head = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        stream.truncate(8 + len(head) + size)
        for name in filled:
            stream.seek(8 + len(head) + header[name]["data_offsets"][0])
            stream.write(b"\x80\x3f\x80\x3f")
