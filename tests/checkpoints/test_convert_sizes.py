"""Conversion of large checkpoints: the published sizes are planned, and memory is that of one shard."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from layouts import SIZES, TRAINING_OUTPUT, VISION_L, llama_config, official_shapes, write_sparse
from llava_models import FAMILIES, write_processing_files
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from pllava.convert.planning import plan_conversion

PLLAVA = str(Path(sys.executable).with_name("pllava"))


def write_true_size(directory, shapes, text_config, shards):
    shutil.copytree(TRAINING_OUTPUT, directory)
    (directory / "model.safetensors").unlink()
    config = json.loads((directory / "config.json").read_text())
    config |= {"text_config": text_config, "vision_config": VISION_L, "num_frames": 16, "pooling_shape": [16, 12, 12]}
    (directory / "config.json").write_text(json.dumps(config))
    names, weight_map = list(shapes), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        filled = tuple(name for name in part if "lora_B" in name)
        write_sparse(directory / file, {name: shapes[name] for name in part}, filled=filled)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_are_planned_without_allocating_them(tmp_path, size):
    *dimensions, theta = SIZES[size]
    shapes = official_shapes(*dimensions)
    write_true_size(tmp_path / "official", shapes, llama_config(*dimensions, theta), shards=16)
    plan = plan_conversion(tmp_path / "official")
    assert plan.config.text_config.rope_parameters["rope_theta"] == theta
    assert plan.config.num_video_tokens == 2304
    (a, _), *others = plan.trained.lora.values()
    assert a.meta.shape[0] == 128 and 1 + len(others) == 2 * dimensions[1]
    assert plan.model.unused == {"vision layer 23", "post_layernorm"}
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    unread = ("lora", "post_layernorm", "vision_model.encoder.layers.23.")
    left_out = sum(sizes[name] for name in shapes if any(part in name for part in unread))
    assert sum(parameter.numel() for parameter in plan.meta_model.parameters()) == sum(sizes.values()) - left_out
    assert all(parameter.is_meta for parameter in plan.meta_model.parameters())


def test_llava_onevision_is_planned_at_its_published_size(tmp_path):
    """0.5B: SigLIP-384 without its last layer, and Qwen2 with tied embeddings."""
    text = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    text |= {"num_key_value_heads": 2, "vocab_size": 152000, "tie_word_embeddings": True, "model_type": "qwen2"}
    config = LlavaOnevisionConfig(text_config=text)
    with torch.device("meta"):
        weights = LlavaOnevisionForConditionalGeneration(config).state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items() if name != "lm_head.weight"}
    tiny = replace(FAMILIES["onevision"], vision=config.vision_config)
    config.save_pretrained(tmp_path)
    write_processing_files(tmp_path, tiny)
    write_sparse(tmp_path / "model.safetensors", shapes)
    plan = plan_conversion(tmp_path)
    assert plan.config.tie_word_embeddings and "lm_head.weight" not in plan.model.weights
    assert (plan.config.num_video_tokens, plan.config.num_image_tokens) == (16 * 14 * 14, 27 * 27)
    assert plan.model.unused == {"model.image_newline", "post_layernorm"}


MEMORY = """
import re
import sys

import peft
import transformers.models.clip.modeling_clip
import transformers.models.llama.modeling_llama

from pllava.convert import convert


def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024


before = peak()
convert(sys.argv[1], sys.argv[2])
print(peak() - before)
"""


def write_gigabytes(directory, layers, shards=4):
    dimensions = (2048, layers, 5632, 16, 16, 32064)
    write_true_size(directory, official_shapes(*dimensions), llama_config(*dimensions), shards)


@pytest.mark.parametrize(
    ("layers", "shards"),
    [(2, 4), pytest.param(18, 1, marks=pytest.mark.slow)],
    ids=["1 GB in 4 files", "2.8 GB in a file"],
)
def test_memory_is_that_of_one_shard(tmp_path, layers, shards):
    """Measured as the growth of the peak, in a process that has imported everything before."""
    write_gigabytes(tmp_path / "official", layers, shards)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "official", tmp_path / "out"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    sizes = [file.stat().st_size for file in (tmp_path / "official").glob("*.safetensors")]
    assert int(run.stdout.splitlines()[-1]) < 1.5 * min(max(sizes), 1e9) < 0.9 * sum(sizes)
    shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_leaves_no_incomplete_output(tmp_path, sent):
    write_gigabytes(tmp_path / "official", layers=18)
    command = [PLLAVA, "convert", tmp_path / "official", tmp_path / "out"]
    # A shell's background jobs ignore SIGINT, and their children inherit that
    restore_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=restore_sigint)
    while not list(tmp_path.glob("out.partial/*.safetensors")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(sent)
    process.wait()
    left = {"official"} if sent == signal.SIGINT else {"official", "out.partial"}
    assert {file.name for file in tmp_path.iterdir()} == left
