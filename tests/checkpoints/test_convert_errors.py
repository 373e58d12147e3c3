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
