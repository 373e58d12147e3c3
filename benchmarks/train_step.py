"""
Compares our training step with a stand-in for the original's: seconds and peak memory of a forward and backward pass.

    python benchmarks/train_step.py [--dtype bfloat16]

The models are a frozen CLIP-L/336 and a Llama of 8 layers x 1024 with LoRA of rank 128 on q and v, and a trained
projector, with random weights. An example is a clip of 16 frames and 64 tokens of text, the last 20 of them labelled.
The third contender is our step with the clip's features read from a file, as from the feature cache.

Each is measured without and with gradient checkpointing of the language model, which TRL's trainer and our recipes
use by default. In each round every contender runs in a new process, in turn, so that other load on the machine affects
all of them. The GPU is used if there is one. Memory is the peak of the process or of the GPU, in total and above the
model.
"""

import argparse
import re
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AttentionInterface, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPooling
from trl.trainer.utils import add_fused_lm_head

import pllava
from pllava.train.trainer import LabelledPositions

RUNS = 3
FRAMES, TEXT_TOKENS, LABELLED = 16, 64, 20
GRID, POOLING_SHAPE, VISUAL_TOKENS = (24, 24), (FRAMES, 12, 12), FRAMES * 12 * 12
VIDEO = 32001  # the placeholder's id
TEXT = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
STAND_IN, OURS, CACHED = "stand-in", "ours", "ours, cached features"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Inputs = dict[str, torch.Tensor | list[torch.Tensor]]


def text_config() -> LlamaConfig:
    return LlamaConfig(**TEXT, vocab_size=32064, attn_implementation="sdpa")


def vision_config(**kwargs: str) -> CLIPVisionConfig:
    return CLIPVisionConfig(**VISION, image_size=336, patch_size=14, **kwargs)


def make_inputs() -> Inputs:
    """Return random inputs in the collator's shapes."""
    ids = torch.randint(3, VIDEO - 1, (1, TEXT_TOKENS + VISUAL_TOKENS))
    ids[:, TEXT_TOKENS // 2 : -TEXT_TOKENS // 2] = VIDEO
    labels = ids.clone()
    labels[:, :-LABELLED] = -100
    pixels = torch.randn(1, FRAMES, 3, 336, 336, dtype=torch.float32)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {**inputs, "pixel_values_videos": pixels}


def clip_attention(module, query, key, value, attention_mask, scaling, **_) -> tuple[torch.Tensor, None]:
    """The attention of transformers 4.37.1. Today's "eager" scales the scores instead, and keeps them longer."""
    weights = torch.matmul(query * scaling, key.transpose(2, 3)).softmax(-1)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


class StandIn(nn.Module):
    """
    The computations of the original's step, with the tensors that it keeps meanwhile.

    As in the original, the frozen tower runs with gradients enabled; since neither weights nor pixels require them,
    autograd records nothing, and the backward pass ends at the projector.
    """

    def __init__(self):
        super().__init__()
        AttentionInterface.register("clip_4_37", clip_attention)
        self.vision_tower = CLIPVisionModel(vision_config(attn_implementation="clip_4_37")).requires_grad_(False)
        size = TEXT["hidden_size"]
        self.projector = nn.Sequential(nn.Linear(VISION["hidden_size"], size), nn.GELU(), nn.Linear(size, size))
        # Like pllava.lora_config() without the projector: the original gives PEFT the text model only
        lora = LoraConfig(
            r=128, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        self.language_model = get_peft_model(LlamaForCausalLM(text_config()), lora)

    def forward(self, input_ids, attention_mask, labels, pixel_values_videos) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.language_model.get_input_embeddings()(input_ids)
        # A local variable, as in the original: it keeps all hidden states until this function returns
        vision = self.vision_tower(pixel_values_videos[0].to(embeddings.dtype), output_hidden_states=True)
        tokens = self.projector(vision.hidden_states[-2][:, 1:])
        tokens = nn.functional.adaptive_avg_pool3d(tokens.unflatten(1, GRID).permute(3, 0, 1, 2), POOLING_SHAPE)
        embeddings = embeddings.masked_scatter((input_ids == VIDEO).unsqueeze(-1), tokens.flatten(1).T)
        output = self.language_model(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False)
        logits = output.logits.float()
        attended = attention_mask[:, 1:] != 0
        return nn.functional.cross_entropy(logits[:, :-1][attended], labels[:, 1:][attended]), logits


def original_step(model: StandIn, inputs: Inputs) -> None:
    loss, logits = model(**inputs)  # as in the training loop, the logits are kept during the backward pass
    loss.backward()


def build_ours() -> PeftModel:
    config = pllava.PllavaConfig(text_config=text_config(), vision_config=vision_config(), pooling_shape=POOLING_SHAPE)
    model = pllava.PllavaForConditionalGeneration(config)
    model.model.vision_tower.requires_grad_(False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as SFTTrainer does
    model.labelled = LabelledPositions(model.model)
    return get_peft_model(model, pllava.lora_config())


def our_step(model: PeftModel, inputs: Inputs) -> None:
    """The step of `PllavaSFTTrainer`."""
    backbone = model.get_base_model().model
    if "features" in inputs:  # from a cache
        tokens = BaseModelOutputWithPooling(pooler_output=torch.stack(backbone.pool([inputs.pop("features")])))
        inputs["mm_encoder_outputs"] = {"video": tokens}
    inputs["shift_labels"] = model.labelled.select(inputs["labels"])
    model(**inputs, use_cache=False, fused_lm_head=True).loss.backward()


def memory(kind: str) -> float:
    """Return GB of the GPU or else of this process: the "peak", or "now", which also resets the peak."""
    if DEVICE == "cuda":
        if kind == "now":
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e9
    if kind == "now":
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e6


def measure(name: str, checkpointing: bool, dtype: str, features: Path) -> tuple[float, float, float]:
    """Return seconds of a step after a warm-up, peak memory in GB, and peak memory above the model in GB."""
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(DEVICE):
        inputs = make_inputs()
        model, run = (StandIn(), original_step) if name == STAND_IN else (build_ours(), our_step)
    model.train()
    if checkpointing:
        language_model = model.language_model if name == STAND_IN else model
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
    if name == CACHED:
        del inputs["pixel_values_videos"]
        save_file({"features": torch.randn(FRAMES, GRID[0] * GRID[1], VISION["hidden_size"])}, features)
    built = memory("now")
    for _ in range(2):
        model.zero_grad()
        started = time.perf_counter()
        cached = load_file(features, DEVICE) if name == CACHED else {}
        run(model, {**inputs, **cached})
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return seconds, memory("peak"), memory("peak") - built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    dtype = parser.parse_args().dtype
    figures = {contender: [] for contender in product((STAND_IN, OURS, CACHED), (False, True))}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(RUNS):
            for contender, rows in figures.items():
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    rows.append(process.submit(measure, *contender, dtype, Path(directory) / "features").result())
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{dtype}, {device}; median of {RUNS}; in brackets: relative to the stand-in without checkpointing")
    medians = {key: [statistics.median(column) for column in zip(*rows, strict=True)] for key, rows in figures.items()}
    for (name, checkpointing), row in medians.items():
        peers = medians[STAND_IN, False]
        cells = [f"{value:6.2f} ({value / peer:.2f})" for value, peer in zip(row, peers, strict=True)]
        label = name + ", checkpointing" * checkpointing
        print(f"{label:37} {cells[0]} s, peak {cells[1]} GB, above the model {cells[2]} GB")


if __name__ == "__main__":
    main()
