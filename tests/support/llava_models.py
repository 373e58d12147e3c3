"""Tiny LLaVA models with the text models that PLLaVA supports."""

import torch
from layouts import IMAGE_BASE
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

TEXT = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
VISION = CLIPVisionConfig(
    image_size=56, patch_size=14, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
)
FAMILIES = {
    "vicuna": (LlavaConfig, LlamaConfig(**TEXT, **HEADS), [], "plain", [2]),
    "mistral": (LlavaNextConfig, MistralConfig(**TEXT, **HEADS), [], "mistral", [2]),
    "llama-3": (
        LlavaNextConfig,
        LlamaConfig(**TEXT, **HEADS, rope_theta=500000.0),
        ["<|start_header_id|>", "<|eot_id|>"],
        "llama_3",
        [2, 503],
    ),
    "yi": (
        LlavaNextConfig,
        LlamaConfig(**TEXT, **HEADS, rope_theta=5000000.0),
        ["<|im_start|>", "<|im_end|>"],
        "eval_vcg_llavanext",
        [2, 503],
    ),
    "qwen": (
        LlavaNextConfig,
        Qwen2Config(**TEXT, **HEADS),
        ["<|im_start|>", "<|im_end|>"],
        "eval_vcg_llavanext",
        [2, 503],
    ),
}


def write_llava(directory, family):
    """With the weight names of today's transformers; `llava-hf` repositories have older ones."""
    config_class, text, tokens, *_ = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(vision_config=VISION, text_config=text, image_token_index=500)
    kind = LlavaForConditionalGeneration if config_class is LlavaConfig else LlavaNextForConditionalGeneration
    model = kind(config).eval()
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(IMAGE_BASE)
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.save_pretrained(directory)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56).save_pretrained(directory)
    return model
