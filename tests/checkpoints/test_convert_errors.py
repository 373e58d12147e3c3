"""Conversion of broken sources or with wrong options: one error, and no files are left."""

import json
import shutil

import pytest
import torch
from layouts import IMAGE_BASE, TRAINING_OUTPUT, write_official
from llava_models import write_llava
from safetensors.torch import load_file, save_file

import pllava
from pllava.convert import convert
from pllava.convert.refusals import REFUSED, REFUSED_VALUES


@pytest.fixture
def official(tmp_path):
    return write_official(tmp_path / "official", shards=2)


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
        convert(official, tmp_path / "new" / "out")
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
        convert(TRAINING_OUTPUT, tmp_path / "out", base=base and tmp_path / "base")
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert {file.name for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        (IMAGE_BASE, {"alpha": 4}, "no LoRA"),
        (IMAGE_BASE, {"keep_adapter": True}, "no LoRA"),
        (IMAGE_BASE, {"base": IMAGE_BASE}, "takes no base"),
        (IMAGE_BASE, {"adapter": TRAINING_OUTPUT}, "takes no adapter"),
        (IMAGE_BASE, {"vision_tower": IMAGE_BASE}, "has its vision tower inside it"),
        (IMAGE_BASE, {"pooling": "mean"}, "'mean' is not a pooling"),
        (IMAGE_BASE, {"pooling": "average-16x5x5"}, "average-16x5x5 does not fit"),
        (IMAGE_BASE, {"num_frames": 10**6}, "`num_frames` must be between 1 and 4,096"),
        (IMAGE_BASE, {"num_frames": 0}, "three positive integers"),
        (pllava.NANO, {}, "pass the adapter"),
        (pllava.NANO, {"adapter": IMAGE_BASE}, "it is not a PEFT adapter"),
        (IMAGE_BASE / "config.json", {}, "a file"),
        ("no/such-model", {}, "no/such-model"),
    ],
)
def test_options_that_do_not_fit_the_source_are_refused(tmp_path, source, options, expected):
    with pytest.raises(ValueError, match=expected):
        convert(source, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_only_peft_can_merge_is_refused(official, tmp_path):
    kept = convert(official, tmp_path / "kept", keep_adapter=True)
    file = kept / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True}))
    with pytest.raises(ValueError, match="use_dora.*merge_and_unload"):
        convert(kept, tmp_path / "out", adapter=kept / "adapter")


def test_an_existing_directory_is_not_overwritten(official, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="exists"):
        convert(official, tmp_path / "out")
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
        convert(official, tmp_path / "out")
    assert len(written) == 1 and [file.name for file in tmp_path.iterdir()] == ["official"]
    monkeypatch.undo()
    (tmp_path / "out.partial").mkdir()  # left by a killed run
    (tmp_path / "out.partial" / "model-00001-of-00009.safetensors").write_bytes(b"half")
    assert not list(convert(official, tmp_path / "out").glob("*00009*"))
    assert not (tmp_path / "out.partial").exists()


# --- models that cannot become a PLLaVA ------------------------------------------------------------------------------


def with_config(directory, **values):
    """IMAGE_BASE with other values in its config; its weights are never read."""
    shutil.copytree(IMAGE_BASE, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **values}))
    return directory


def message_of(directory, out):
    with pytest.raises(ValueError) as caught:
        convert(directory, out)
    assert not out.exists()
    return str(caught.value)


REASONS = {
    "blip-2": ["Q-Former", "fixed number of tokens", "llava-1.5-7b-hf"],
    "instructblip": ["Q-Former"],
    "video_llava": ["separate towers", "LLaVA-NeXT-Video"],
    "internvl": ["pixel shuffle", "llava-onevision"],
    "internvl_chat": ["pixel shuffle"],
    "idefics3": ["pixel shuffle"],
    "smolvlm": ["pixel shuffle"],
    "idefics2": ["resampler", "LLaVA-NeXT"],
    "qwen2_vl": ["merges neighbouring patches", "llava-onevision"],
    "llavaonevision1_5": ["merges neighbouring patches", "llava-onevision"],
    "paligemma": ["one linear layer", "LLaVA-Interleave"],
    "mllama": ["cross-attention", "Llama 3"],
    "llava_mpt": ["text model", "LLaVA-NeXT"],
}


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_another_architecture_is_refused_with_the_reason_and_the_nearest_that_works(tmp_path, model_type):
    message = message_of(with_config(tmp_path / "source", model_type=model_type), tmp_path / "out")
    assert f"{model_type} cannot become a PLLaVA: it" in message and message.endswith(" instead")
    assert all(part in message for part in REASONS.get(model_type, [])), message


ORIGINAL = {"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
TINY = {"model_type": "tinyllava", "vision_model_name_or_path": "google/siglip-so400m-patch14-384"}
VALUES = [
    *[({**ORIGINAL, "mm_projector_type": value}, "GELU") for value in ("linear", "mlp3x_gelu", "pooler", "c-abs")],
    (ORIGINAL, "`mm_projector_type` is None"),  # LLaVA's first projector, one linear layer
    ({**ORIGINAL, "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": "perceiver"}, "resampler"),
    ({**ORIGINAL, "mm_projector_type": "mlp2x_gelu", "mm_use_im_start_end": True}, "before and one after each image"),
    ({**TINY, "connector_type": "qformer"}, "GELU"),
    ({**TINY, "connector_type": "resampler"}, "GELU"),
]


@pytest.mark.parametrize(("values", "reason"), VALUES, ids=[str(list(values.items())[-1]) for values, _ in VALUES])
def test_another_projector_is_refused_with_the_reason_and_the_nearest_that_works(tmp_path, values, reason):
    message = message_of(with_config(tmp_path / "source", **values), tmp_path / "out")
    assert reason in message and "cannot become a PLLaVA" in message and message.endswith(" instead")


def test_each_refused_value_is_tested():
    assert {key for values, _ in VALUES for key in values if key in REFUSED_VALUES} == REFUSED_VALUES.keys()


def test_another_vision_tower_is_refused_with_those_that_work(tmp_path):
    values = {"vision_config": {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2}}
    message = message_of(with_config(tmp_path / "source", **values), tmp_path / "out")
    assert "`dinov2`" in message and "clip_vision_model, siglip_vision_model, siglip2_vision_model" in message


def test_a_quantised_model_is_refused(tmp_path):
    source = with_config(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    weights[name] = weights[name].to(torch.int8)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert "I8" in (message := message_of(source, tmp_path / "out")) and "before it was quantised" in message


def test_an_adapter_inside_an_image_model_of_another_family_is_refused(official, tmp_path):
    config = json.loads((official / "config.json").read_text())
    (official / "config.json").write_text(json.dumps({**config, "model_type": "llava_onevision"}))
    assert "weights have a LoRA beside them" in message_of(official, tmp_path / "out")
