"""
A clip of 16 frames through CLIP-L/336 on a CPU, seconds: by transformers, all frames at once and linear layers by
PyTorch's default; and by ours, in parts that fit the caches and linear layers by oneDNN. Both up to the layer that is
read; random weights.

    python benchmarks/vision_tower.py
"""

import statistics
import time

import torch
from transformers import CLIPVisionConfig, LlamaConfig

import pllava

RUNS = 5
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}

config = pllava.PllavaConfig(
    text_config=LlamaConfig(**TEXT, vocab_size=32064),
    vision_config=CLIPVisionConfig(**VISION, image_size=336, patch_size=14),
)
model = pllava.PllavaForConditionalGeneration(config).model.requires_grad_(False).eval()
clip = torch.randn(16, 3, 336, 336)
contenders = {
    "transformers": lambda: model.vision_tower(clip).last_hidden_state[:, 1:],
    "ours": lambda: model._encode_frames([clip])[0],
}

torch.testing.assert_close(*(encode() for encode in contenders.values()), atol=1e-3, rtol=1e-3)
seconds = {name: [] for name in contenders}
for _ in range(RUNS):
    for name, encode in contenders.items():
        started = time.perf_counter()
        encode()
        seconds[name].append(time.perf_counter() - started)
medians = {name: statistics.median(values) for name, values in seconds.items()}
print(f"float32, {torch.get_num_threads()} CPU threads, median of {RUNS}:")
print(f"transformers {medians['transformers']:.1f} s, ours {medians['ours']:.1f} s", end=" ")
print(f"({medians['ours'] / medians['transformers']:.2f})")
