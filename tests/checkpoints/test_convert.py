"""Conversion: every layout, the files that are written, errors for broken sources, and memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import forked
import pytest
import torch
from layouts import (
    IMAGE_BASE,
    NUMBERS,
    OFFICIAL_4,
    SIZES,
    TRAINING_OUTPUT,
    VISION_L,
    llama_config,
    with_placeholders,
    write_official,
    write_sparse,
)
from local_hub import local_hub
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

import pllava
from pllava.chat_templates_pllava import CHAT_TEMPLATES
from pllava.convert import convert
from pllava.convert.planning import plan_conversion

PLLAVA = str(Path(sys.executable).with_name("pllava"))
PROMPT = NUMBERS["single/input_ids"].shape[1]


@pytest.fixture
def official(tmp_path):
    return write_official(tmp_path / "official", shards=2)


def quiet(*args, **kwargs):
    return convert(*args, **kwargs, report=lambda line: None)


# --- every layout ----------------------------------------------------------------------------------------------------

# Loads checkpoints by their remote code, where the package cannot be imported, and answers the recorded prompt.
REMOTE = """
import json
import sys

sys.modules["pllava"] = None  # importing it fails, installed or not
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

video = load_file(sys.argv[1])
text = {"input_ids": video.pop("text")}
chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}]
answers = {}
for directory in sys.argv[2:]:
    load = {"pretrained_model_name_or_path": directory, "trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(**load)
    assert processor.tokenizer.convert_tokens_to_ids("<video>") == processor.video_token_id
    prompt = processor.apply_chat_template(chat, "eval_mvbench", add_generation_prompt=True)
    assert prompt == "USER: <video>\\n USER: What happens? ASSISTANT:", prompt
    AutoModel.from_pretrained(**load)
    inputs = text if directory.endswith("image") else video
    answers[directory] = []
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        model = auto.from_pretrained(**load, dtype=torch.float32)
        if directory.endswith("kept"):
            model = PeftModel.from_pretrained(model, directory + "/adapter").eval()
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answers[directory].append(output[0, inputs["input_ids"].shape[1] :].tolist())
print("\\n" + json.dumps(answers))
"""


def test_every_layout_generates_the_recorded_tokens_by_remote_code(tmp_path):
    single = write_official(tmp_path / "single")
    sharded = write_official(tmp_path / "sharded", shards=3)
    bfloat16 = write_official(tmp_path / "bfloat16", shards=2, dtype=torch.bfloat16)
    outs = {name: tmp_path / "out" / name for name in ("single", "sharded", "bfloat16", "training", "ours", "image")}
    for source in (single, sharded, bfloat16):
        quiet(source, outs[source.name], alpha=OFFICIAL_4)
    quiet(TRAINING_OUTPUT, outs["training"], base=IMAGE_BASE, alpha=OFFICIAL_4)
    kept = quiet(TRAINING_OUTPUT, tmp_path / "out" / "kept", base=IMAGE_BASE, alpha=OFFICIAL_4, keep_adapter=True)
    quiet(kept, outs["ours"], adapter=kept / "adapter")
    quiet(IMAGE_BASE, outs["image"])
    ids = NUMBERS["single/input_ids"]
    inputs = {
        "input_ids": with_placeholders(ids, 16),
        "pixel_values_videos": NUMBERS["single/pixel_values"][None],
        "text": NUMBERS["text_only/input_ids"],
    }
    save_file(inputs, tmp_path / "inputs.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", REMOTE, tmp_path / "inputs.safetensors", *outs.values(), kept],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    answers = json.loads(run.stdout.splitlines()[-1])
    expected = dict.fromkeys((*outs.values(), kept), NUMBERS["alpha_off4/sequences"][0, PROMPT:].tolist())
    expected[outs["image"]] = NUMBERS["text_only/sequences"][0, inputs["text"].shape[1] :].tolist()
    assert answers == {str(directory): [tokens, tokens] for directory, tokens in expected.items()}
    assert len(list(outs["sharded"].glob("*.safetensors"))) > 1
    assert load_file(next(outs["bfloat16"].glob("*.safetensors"))).popitem()[1].dtype == torch.bfloat16


def test_a_converted_image_model_equals_llava(tmp_path):
    """Text equals the recording; an image that is pooled to its own grid equals transformers' LLaVA."""
    directory = quiet(IMAGE_BASE, tmp_path / "out")
    loaded = AutoModelForImageTextToText.from_pretrained(directory)
    expected = NUMBERS["text_only/sequences"][0, NUMBERS["text_only/input_ids"].shape[1] :].tolist()
    output = loaded.generate(NUMBERS["text_only/input_ids"], max_new_tokens=8, do_sample=False)
    assert output[0, -8:].tolist() == expected
    assert loaded.config.num_frames == 16 and loaded.config.pooling_shape == [16, 12, 12]

    grid = {"num_frames": 1, "pooling_shape": [1, 4, 4]}
    pooled = AutoModelForImageTextToText.from_pretrained(directory, **grid)
    assert AutoProcessor.from_pretrained(directory, pooling_shape=[1, 4, 4]).num_visual_tokens == 16
    llava = LlavaForConditionalGeneration.from_pretrained(IMAGE_BASE)
    inputs = {
        "input_ids": with_placeholders(NUMBERS["image_rep4/input_ids"], 16, fill=500),
        "pixel_values": NUMBERS["image_rep4/pixel_values"],
    }
    with torch.no_grad():
        torch.testing.assert_close(pooled(**inputs).logits, llava(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0, OFFICIAL_4, 4, 32])
def test_merged_weights_and_kept_adapter_agree(official, tmp_path, alpha):
    merged = pllava.load_model(quiet(official, tmp_path / "merged", alpha=alpha))
    kept = quiet(official, tmp_path / "kept", keep_adapter=True)
    adapted = pllava.load_model(adapter=kept / "adapter", alpha=alpha)
    again = pllava.load_model(quiet(kept, tmp_path / "again", adapter=kept / "adapter", alpha=alpha))
    ids = with_placeholders(NUMBERS["single/input_ids"], 16)
    pixels = NUMBERS["single/pixel_values"][None]
    with torch.no_grad():
        logits = [model(ids, pixel_values_videos=pixels).logits for model in (merged, adapted, again)]
        logits.append(adapted.merge_and_unload()(ids, pixel_values_videos=pixels).logits)
    for other in logits[1:]:
        torch.testing.assert_close(logits[0], other, rtol=0, atol=1e-5)


def test_written_files_and_configs(official, tmp_path):
    lines = []
    directory = convert(official, tmp_path / "out", report=lines.append)
    assert "official PLLaVA checkpoint" in lines[0] and "vision layer 2" in lines[1]
    assert {
        "config.json",
        "processor_config.json",
        "tokenizer.json",
        "generation_config.json",
        "chat_template.jinja",
    } | {
        "modeling_pllava.py",
        "chat_templates_pllava.py",
        "model.safetensors.index.json",
    } <= {file.name for file in directory.iterdir()}
    assert {file.name for file in tmp_path.iterdir()} == {"official", "out"}
    config = json.loads((directory / "config.json").read_text())
    assert (config["image_token_index"], config["video_token_index"]) == (500, 502)
    assert config["text_config"]["vocab_size"] == 512, "there was a spare row for <video>"
    assert (config["num_frames"], config["pooling_shape"], config["dtype"]) == (4, [4, 2, 2], "float32")
    processor = AutoProcessor.from_pretrained(directory)
    assert processor.chat_template == CHAT_TEMPLATES["plain"]
    assert processor.tokenizer.padding_side == "left"
    assert processor.video_processor.size["shortest_edge"] == 56
    generation = GenerationConfig.from_pretrained(directory)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 501)


# --- LLaVA with other text models ------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("family", FAMILIES)
def test_llava_with_each_text_model(tmp_path, family):
    llava = write_llava(tmp_path / "llava", family)
    lines = []
    directory = convert(tmp_path / "llava", tmp_path / "out", report=lines.append)
    assert "LLaVA image checkpoint" in lines[0]
    *_, template, ends = FAMILIES[family]
    processor, model = AutoProcessor.from_pretrained(directory), pllava.load_model(directory)
    assert processor.chat_template == CHAT_TEMPLATES[template]
    assert model.config.video_token_id == len(processor.tokenizer) - 1 > model.config.image_token_id
    ids = torch.tensor([[1, 17, 250, 33, 499]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, llava(ids).logits, rtol=0, atol=1e-5)
        # one frame, pooled to the tower's own grid: LLaVA's tokens of an image
        torch.manual_seed(0)
        features = torch.randn(1, 3, 56, 56)
        model.config.pooling_shape = [1, 4, 4]
        pooled = model.get_image_features(features).pooler_output
        patches = llava.model.vision_tower(features, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(pooled, llava.model.multi_modal_projector(patches), rtol=0, atol=1e-5)
    eos = model.generation_config.eos_token_id
    assert (eos if isinstance(eos, list) else [eos]) == ends


def test_embeddings_grow_if_no_row_is_spare(tmp_path):
    write_llava(tmp_path / "llava", "vicuna")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llava")
    tokenizer.add_tokens([f"<{number}>" for number in range(512 - len(tokenizer))], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(tmp_path / "llava")
    directory = quiet(tmp_path / "llava", tmp_path / "out")
    model = pllava.load_model(directory)
    assert (model.config.text_config.pad_token_id, model.config.video_token_id) == (512, 513)
    assert model.config.text_config.vocab_size == 576
    for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert weight.shape[0] == 576
        torch.testing.assert_close(weight[512:], weight[:512].mean(0, keepdim=True).expand(64, -1))
    logits = model(torch.tensor([[1, 17, 250]])).logits
    assert (logits.argmax(-1) < 512).all(), "a row that no text uses is never the likeliest"


# --- broken sources and wrong options --------------------------------------------------------------------------------


def lose_a_shard(source):
    (source / "model-00002-of-00002.safetensors").unlink()


def truncate(source):
    file = source / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def rewrite(source, part, change):
    """Call `change(weights, key)` for each weight whose key contains `part`."""
    for file in source.glob("*.safetensors"):
        weights = load_file(file)
        for key in [key for key in weights if part in key]:
            change(weights, key)
        save_file(weights, file, metadata={"format": "pt"})


def rename(old, new):
    return lambda weights, key: weights.update({key.replace(old, new): weights.pop(key)})


def cut(rows):
    return lambda weights, key: weights.update({key: weights[key][:rows].contiguous()})


def rename_a_key(source):
    norm = "language_model.base_model.model.model.norm.weight"
    rewrite(source, norm, rename(norm, "renamed.weight"))


def rename_a_lora(source):
    rewrite(source, "layers.0.self_attn.q_proj.lora", rename("q_proj", "qq_proj"))


def lose_a_lora(source):
    """Both matrices: without a check, the weight that they change would be used without them."""
    rewrite(source, "0.self_attn.q_proj.lora", dict.pop)


def lose_half_a_lora(source):
    rewrite(source, "0.self_attn.q_proj.lora_A", dict.pop)


def change_a_rank(source):
    rewrite(source, "layers.1.self_attn.v_proj.lora_A", cut(4))
    rewrite(
        source,
        "layers.1.self_attn.v_proj.lora_B",
        lambda weights, key: weights.update({key: weights[key][:, :4].contiguous()}),
    )


def cut_a_weight(source):
    rewrite(source, "layers.1.mlp.up_proj", cut(-1))


def cut_the_vocabulary(source):
    """To the tokenizer's length, below the config's vocabulary size: new rows would be invented."""
    rewrite(source, "embed_tokens", cut(502))


def never_train(source):
    rewrite(source, "lora_B", lambda weights, key: weights[key].zero_())


def pickle(source):
    for file in source.glob("*.safetensors*"):
        file.unlink()
    torch.save({}, source / "pytorch_model.bin")


def another_model(source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))


BROKEN = {
    "a shard missing": (lose_a_shard, ["model-00002-of-00002.safetensors"]),
    "truncated": (truncate, ["model-00001-of-00002.safetensors", "truncated"]),
    "a key renamed": (rename_a_key, ["missing: model.language_model.norm.weight (64,)", "unexpected: renamed.weight"]),
    "a LoRA renamed": (rename_a_lora, ["unexpected:", "qq_proj.lora_A"]),
    "a LoRA missing": (lose_a_lora, ["missing: ", "layers.0.self_attn.q_proj.lora_A.weight (8, 64)"]),
    "another rank": (change_a_rank, ["layers.1.self_attn.v_proj.lora_A.weight is (4, 64), not (8, 64)"]),
    "half a LoRA": (lose_half_a_lora, ["layers.0.self_attn.q_proj.weight (only lora_B)"]),
    "a wrong shape": (cut_a_weight, ["layers.1.mlp.up_proj.weight is (127, 64), not (128, 64)"]),
    "rows missing": (cut_the_vocabulary, ["embed_tokens.weight is (502, 64), not (512, 64)"]),
    "a LoRA never trained": (never_train, ["never trained"]),
    "pickles": (pickle, ["pytorch_model.bin", "safetensors"]),
    "another architecture": (another_model, ["'bert'"]),
    "a broken config": (lambda source: (source / "config.json").write_text('{"model_'), ["config.json", "JSON"]),
    "no config": (lambda source: (source / "config.json").unlink(), ["config.json"]),
    "no tokenizer": (lambda source: (source / "tokenizer.json").unlink(), ["tokenizer.json"]),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_a_broken_source_is_one_error_and_writes_nothing(official, tmp_path, defect):
    damage, expected = BROKEN[defect]
    damage(official)
    with pytest.raises(ValueError) as caught:
        quiet(official, tmp_path / "new" / "out")
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["official"]


def smaller_base(directory):
    shutil.copytree(IMAGE_BASE, directory)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-6
    (directory / "config.json").write_text(json.dumps(config))


def narrow_base(directory):
    """Its config is the right model's; its weights are not."""
    write_llava(directory, "vicuna")
    shutil.copy(IMAGE_BASE / "config.json", directory)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (None, ["--base", "image_base"]),
        (smaller_base, ["text_config.rms_norm_eps", "1e-05", "1e-06"]),
        (narrow_base, ["wrong shape: model.language_model.embed_tokens.weight is (512, 32), not (512, 64)"]),
        (lambda directory: shutil.copytree(TRAINING_OUTPUT, directory), ["not a base"]),
        (lambda directory: None, ["base"]),
    ],
    ids=["none", "another architecture", "another size", "a training output", "not there"],
)
def test_a_wrong_base_is_one_error_and_writes_nothing(tmp_path, base, expected):
    if base is not None:
        base(tmp_path / "base")
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(ValueError) as caught:
        quiet(TRAINING_OUTPUT, tmp_path / "out", base=base and tmp_path / "base")
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert {file.name for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        (IMAGE_BASE, {"alpha": 4}, "no LoRA"),
        (IMAGE_BASE, {"keep_adapter": True}, "no LoRA"),
        (IMAGE_BASE, {"base": IMAGE_BASE}, "takes no base"),
        (IMAGE_BASE, {"adapter": TRAINING_OUTPUT}, "takes no adapter"),
        (pllava.NANO, {}, "pass the adapter"),
        (pllava.NANO, {"adapter": IMAGE_BASE}, "not an adapter for"),
        (IMAGE_BASE / "config.json", {}, "a file"),
        ("no/such-model", {}, "no/such-model"),
    ],
)
def test_options_that_do_not_fit_the_source_are_refused(tmp_path, source, options, expected):
    with pytest.raises(ValueError, match=expected):
        quiet(source, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_only_peft_can_merge_is_refused(official, tmp_path):
    kept = quiet(official, tmp_path / "kept", keep_adapter=True)
    file = kept / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True}))
    with pytest.raises(ValueError, match="use_dora.*merge_and_unload"):
        quiet(kept, tmp_path / "out", adapter=kept / "adapter")


def test_an_existing_directory_is_not_overwritten(official, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="exists"):
        quiet(official, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_an_interrupted_conversion_removes_its_files_and_one_after_a_kill_succeeds(official, tmp_path, monkeypatch):
    written = []

    def save_once(weights, file, **options):
        if written:
            raise KeyboardInterrupt
        written.append(file)
        save_file(weights, file, **options)

    monkeypatch.setattr("pllava.convert.writing.save_file", save_once)
    with pytest.raises(KeyboardInterrupt):
        quiet(official, tmp_path / "out")
    assert len(written) == 1 and [file.name for file in tmp_path.iterdir()] == ["official"]
    monkeypatch.undo()
    (tmp_path / "out.partial").mkdir()  # left by a killed run
    (tmp_path / "out.partial" / "model-00001-of-00009.safetensors").write_bytes(b"half")
    assert not list(quiet(official, tmp_path / "out").glob("*00009*"))
    assert not (tmp_path / "out.partial").exists()


# --- sizes -----------------------------------------------------------------------------------------------------------


def official_shapes(hidden, layers, intermediate, heads, kv_heads, vocabulary, rank=128):
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
    assert plan.config.num_visual_tokens == 2304
    (a, _), *others = plan.trained.lora.values()
    assert a.meta.shape[0] == 128 and 1 + len(others) == 2 * dimensions[1]
    assert plan.model.unused == {"vision layer 23"}
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    left_out = sum(sizes[name] for name in shapes if "lora" in name or "layers.23." in name and "vision" in name)
    assert sum(parameter.numel() for parameter in plan.meta_model.parameters()) == sum(sizes.values()) - left_out
    assert all(parameter.is_meta for parameter in plan.meta_model.parameters())


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


def write_gigabytes(directory, layers):
    dimensions = (2048, layers, 5632, 16, 16, 32064)
    write_true_size(directory, official_shapes(*dimensions), llama_config(*dimensions), shards=4)


@pytest.mark.parametrize("layers", [2, pytest.param(18, marks=pytest.mark.slow)], ids=["1 GB", "2.8 GB"])
def test_memory_is_that_of_one_shard(tmp_path, layers):
    """Measured as the growth of the peak, in a process that has imported everything before."""
    write_gigabytes(tmp_path / "official", layers)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "official", tmp_path / "out"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    sizes = [file.stat().st_size for file in (tmp_path / "official").glob("*.safetensors")]
    assert int(run.stdout.splitlines()[-1]) < 1.5 * max(sizes) < 0.9 * sum(sizes)
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


# --- the Hub and the command -----------------------------------------------------------------------------------------


def test_the_command_converts_a_hub_repository(tmp_path):
    write_official(tmp_path / "hub" / "ermu2001" / "pllava-7b", shards=2)
    (tmp_path / "hub" / "ermu2001" / "pllava-7b" / "pytorch_model.bin").write_bytes(b"not downloaded")
    with local_hub(tmp_path / "hub") as address:
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        run = partial(forked.run, "pllava", "convert", cwd=tmp_path, **environment)
        done = run("ermu2001/pllava-7b", "out", "--alpha", "0.25")
        assert done.returncode == 0, done.stderr
        assert "an official PLLaVA checkpoint" in done.stdout and "Converting: 100%" in done.stderr
        missing = run("ermu2001/pllava-8b", "out2")
    assert missing.returncode == 1 and "ermu2001/pllava-8b" in missing.stderr and "Traceback" not in missing.stderr
    assert not list((tmp_path / "home").rglob("*.bin"))
    model = pllava.load_model(tmp_path / "out")
    output = model.generate(
        with_placeholders(NUMBERS["single/input_ids"], 16),
        pixel_values_videos=NUMBERS["single/pixel_values"][None],
        max_new_tokens=8,
        do_sample=False,
    )
    assert output[0, -8:].tolist() == NUMBERS["alpha_off4/sequences"][0, PROMPT:].tolist()
