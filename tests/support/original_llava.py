"""Tiny image models in the layout of original LLaVA, whose vision tower may be in a folder of its own."""

import re
from pathlib import Path

import torch
from llava_models import (
    LLAVA,
    QWEN,
    TEXT,
    TinyModel,
    clip,
    edit_config,
    rewrite_weights,
    siglip,
    write_image_processor,
    write_model,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
TOWERS = {"clip_vision_model": (CLIPConfig, CLIPModel), "siglip_vision_model": (SiglipConfig, SiglipModel)}
TOWER = re.compile(r"vision_tower\.(vision_model\.)?(.*)")
SIGLIP = {"vision_feature_layer": -2, "vision_feature_select_strategy": "full"}
CLASSES = {
    **{"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"},
    **{"qwen2": "LlavaQwenForCausalLM", "qwen3": "LlavaQwen3ForCausalLM"},
}
# The `model_type` of original LLaVA, and the same model in transformers' layout
MODELS = {
    "llava": TinyModel(*LLAVA, clip(4), LlamaConfig(**TEXT, rope_theta=20000.0)),
    "llava_llama": TinyModel(*LLAVA, clip(5), LlamaConfig(**TEXT)),
    "llava_mistral": TinyModel(*LLAVA, clip(4), MistralConfig(**TEXT, sliding_window=7), template="mistral"),
    "llava_qwen": TinyModel(
        *LLAVA, siglip(5), Qwen2Config(**TEXT, tie_word_embeddings=True), SiglipImageProcessor, SIGLIP, **QWEN
    ),
    # Published with the `model_type` of the text model, and with a config of transformers beside its own
    "qwen2": TinyModel(*LLAVA, siglip(4), Qwen2Config(**TEXT), SiglipImageProcessor, SIGLIP, **QWEN),
    "llava_qwen3": TinyModel(*LLAVA, siglip(4), Qwen3Config(**TEXT, head_dim=8), SiglipImageProcessor, SIGLIP, **QWEN),
}


def original_name(name: str) -> str:
    """The name in original LLaVA of a weight that transformers saves as `name`."""
    name = name.removeprefix("language_model.")
    name = TOWER.sub(r"model.vision_tower.vision_tower.vision_model.\2", name)
    name = name.replace("multi_modal_projector.linear_1.", "model.mm_projector.0.")
    return name.replace("multi_modal_projector.linear_2.", "model.mm_projector.2.")


def write_tower(directory: Path, source: Path, tiny: TinyModel) -> Path:
    """Write the source's tower as a CLIP or SigLIP with its text model, and the image processor."""
    config_class, model_class = TOWERS[tiny.vision.model_type]
    text = {**TINY_TEXT, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**tiny.vision.to_dict(), "vision_use_head": True}
    model = model_class(config_class(text_config=text, vision_config=vision))
    weights = load_file(source / "model.safetensors")
    tower = {match[2]: weights[name] for name in weights if (match := TOWER.fullmatch(name))}
    missing, unexpected = model.vision_model.load_state_dict(tower, strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)
    model.save_pretrained(directory)
    write_image_processor(directory, tiny)
    return directory


def write_original(tmp_path: Path, model_type: str, has_tower: bool) -> tuple[PreTrainedModel, Path]:
    """Write a model in original LLaVA's layout; its tower is a folder, and is in the checkpoint as well or not."""
    tiny, directory = MODELS[model_type], tmp_path / "source"
    model = write_model(directory, tiny)
    tower = write_tower(tmp_path / "tower", directory, tiny)
    (directory / "preprocessor_config.json").unlink()

    def config(saved: dict) -> dict:
        text = {key: value for key, value in saved["text_config"].items() if key != "rope_parameters"}
        return {
            **text,
            **{"rope_theta": saved["text_config"]["rope_parameters"]["rope_theta"], "rope_scaling": None},
            **{"architectures": [CLASSES[tiny.text.model_type]], "model_type": model_type, "use_mm_proj": True},
            **({"vision_config": saved["vision_config"] | {"image_size": 14}} if model_type == "qwen2" else {}),
            **{"mm_vision_tower": str(tower), "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu"},
            **{"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat"},
            **{"mm_use_im_start_end": False, "mm_use_im_patch_token": False, "image_aspect_ratio": "pad"},
            **{"tokenizer_padding_side": "right", "tune_mm_mlp_adapter": False, "mm_resampler_type": None},
        }

    def name(saved: str) -> str | None:
        # SigLIP's code in original LLaVA has no last layer, and no head
        is_siglip = tiny.vision.model_type == "siglip_vision_model"
        last = f"encoder.layers.{tiny.vision.num_hidden_layers - 1}."
        is_left_out = not has_tower or (is_siglip and last in saved)
        return None if TOWER.fullmatch(saved) and is_left_out else original_name(saved)

    edit_config(directory, config)
    rewrite_weights(directory, name)
    weights = load_file(directory / "model.safetensors")
    weights["model.image_newline"] = torch.ones(32)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return model, directory
