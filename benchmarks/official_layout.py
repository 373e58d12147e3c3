"""
A model of a published size with random bfloat16 weights, in the layout of the published PLLaVA: `python
benchmarks/official_layout.py DIRECTORY`. It needs memory for one shard.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

# Text model: hidden and intermediate size, layers, heads. Tower: the same, and its image size. Pooling
SIZES = {
    "7b": ((4096, 11008, 32, 32), (1024, 4096, 24, 16, 336), (16, 12, 12)),
    "tiny": ((64, 128, 2, 4), (32, 64, 3, 2, 56), (4, 2, 2)),
}
VOCABULARY, IMAGE, ROWS = (
    32000,
    32000,
    32064,
)  # words of the tokenizer, the id of `<image>`, and rows of the embeddings
RANK, PATCH = 128, 14
SHARD = "5GB"
SCALE = 0.02  # standard deviation of the weights


def main(
    directory: Path,
    size: Annotated[str, typer.Option(help=f"Of the model: {' or '.join(SIZES)}.")] = "7b",
    layers: Annotated[int | None, typer.Option(min=1, help="Of the text model; by default all of its size.")] = None,
) -> None:
    """Write a model with random bfloat16 weights in the published layout, in memory for one shard."""
    if size not in SIZES:
        raise typer.BadParameter(f"{size!r} is not one of {', '.join(SIZES)}", param_hint="--size")
    directory.mkdir(parents=True)
    config = official_config(size, layers)
    tensors = official_tensors(config)
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD)
    torch.manual_seed(0)
    for file, names in split.filename_to_tensors.items():
        write_shard(directory / file, {name: tensors[name].shape for name in names})
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


def official_tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return all tensors on the meta device, with the names of the original, where PEFT wraps the text model."""
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


def write_shard(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write random weights, which are freed before those of the next shard are made."""
    weights = {name: random_weight(name, shape) for name, shape in shapes.items()}
    save_file(weights, file, metadata={"format": "pt"})


def random_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a random matrix; the vectors are norms, which are 1, and biases, which are 0."""
    if len(shape) == 1 and "class_embedding" not in name:
        return torch.full(shape, float("norm" in name and name.endswith("weight")), dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=SCALE)


def write_processing_files(directory: Path, image_size: int) -> None:
    """Write a byte-level tokenizer that has all ids of the published one, and CLIP's image processor."""
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


if __name__ == "__main__":
    typer.run(main)
