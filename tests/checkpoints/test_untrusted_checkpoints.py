"""Untrusted checkpoints: refused quickly, in one line that names the file or the value."""

import json
import shutil
import time

import pytest
import torch
from layouts import IMAGE_BASE
from safetensors.torch import load_file
from typer.testing import CliRunner

from pllava import load_model, lora_config
from pllava.convert import convert
from pllava.origins import ModelSource
from pllava_cli import app


@pytest.fixture
def ours(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "ours")


@pytest.fixture
def image_base(tmp_path):
    return shutil.copytree(IMAGE_BASE, tmp_path / "image_base")


def error_of(function, *arguments):
    """Return the message of the `ValueError`, which must be one line and come soon."""
    start = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    assert time.perf_counter() - start < 5 and "\n" not in str(caught.value), str(caught.value)
    return str(caught.value)


def edit_config(directory, name, value):
    """Set a value in config.json; `part.name` is one of a nested config."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    *part, last = name.split(".")
    (config[part[0]] if part else config)[last] = value
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_frames", 10**9, ["`num_frames`", "4,096", "1,000,000,000"]),
        ("num_frames", "many", ["its config cannot be used", "'num_frames'", "'many'"]),
        ("pooling_shape", [10**6] * 3, ["`num_video_tokens`", "131,072"]),
        ("text_config.num_hidden_layers", 10**6, ["`text_config.num_hidden_layers`", "512", "1,000,000"]),
        ("text_config.num_attention_heads", 0, ["its config cannot be used", "ZeroDivisionError"]),
        ("text_config.vocab_size", 10**12, ["`text_config.vocab_size`", "1,048,576"]),
        ("text_config", "llama", ["its config cannot be used", "'text_config'", "'llama'"]),
        ("vision_config.num_hidden_layers", 10**6, ["`vision_config.num_hidden_layers`", "512"]),
        ("vision_config.patch_size", 0, ["`vision_config.patch_size`", "got 0"]),
    ],
)
def test_impossible_config_values_are_refused(ours, image_base, tmp_path, name, value, expected):
    for directory, load in ((ours, load_model), (image_base, lambda source: convert(source, tmp_path / "out"))):
        edit_config(directory, name, value)
        message = error_of(load, directory)
        assert all(part in message for part in expected), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value"), [("video_token_index", 10**9), ("image_token_index", -1)])
def test_a_placeholder_outside_the_vocabulary_is_refused(ours, name, value):
    edit_config(ours, name, value)
    assert f"`{name}` is {value}" in error_of(load_model, ours)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}, "outside the checkpoint's"),
        ({"metadata": {}, "weight_map": {"lm_head.weight": "/outside.safetensors"}}, "outside the checkpoint's"),
        ({"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}, "read from .safetensors only"),
        ({"metadata": {}, "weight_map": {"lm_head.weight": 3}}, "is mapped to 3"),
        ({"metadata": {}, "weight_map": ["model.safetensors"]}, "`weight_map`"),
        ([], "not a JSON object"),
    ],
    ids=str,
)
def test_a_shard_index_with_other_files_is_refused(ours, image_base, tmp_path, index, expected):
    for directory, load in ((ours, load_model), (image_base, lambda source: convert(source, tmp_path / "out"))):
        (directory / "model.safetensors").rename(tmp_path / "outside.safetensors")
        file = directory / "model.safetensors.index.json"
        file.write_text(json.dumps(index))
        message = error_of(load, directory)
        assert message.startswith(str(file)) and expected in message, message


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None], ids=["empty", "garbage", "truncated"])
def test_broken_weights_are_refused(ours, checkpoint, clips, tmp_path, content):
    weights = ours / "model.safetensors"
    content = weights.read_bytes()[:-100] if content is None else content
    weights.write_bytes(content)
    assert error_of(load_model, ours).startswith(f"{weights}: truncated, or not a safetensors file")
    arguments = ["chat", str(clips[0]), "What?", "--model", str(ours)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
    assert result.exit_code == 1 and f"{weights}: truncated" in result.stderr, result.stderr

    adapter = tmp_path / "adapter"
    lora_config().save_pretrained(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(content)
    message = error_of(load_model, checkpoint, adapter)
    assert message.startswith(f"{adapter / 'adapter_model.safetensors'}: truncated"), message


def test_a_config_that_chooses_its_weight_file_is_refused(ours, tmp_path):
    torch.save(load_file(ours / "model.safetensors"), ours / "adapter_model.bin")
    shutil.copy(ours / "model.safetensors", tmp_path / "outside.safetensors")
    for weights in ("adapter_model.bin", "../outside.safetensors", "evil.safetensors.index.json"):
        edit_config(ours, "transformers_weights", weights)
        message = error_of(load_model, ours)
        assert repr(weights) in message and "`transformers_weights`" in message
    with pytest.raises(ValueError, match="without a variant"):
        load_model(ours, variant="fp16")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_config.head_dim", 10**7),
        ("text_config.num_key_value_heads", 10**7),
        ("text_config.hidden_size", 65_536),
        ("text_config.num_hidden_layers", 200),
        ("vision_config.num_channels", 10**7),
        ("vision_config.image_size", 4096),
    ],
)
def test_a_config_larger_than_the_weight_files_is_refused(ours, name, value):
    edit_config(ours, name, value)
    message = error_of(load_model, ours)
    assert "its config describes" in message and f"{(ours / 'model.safetensors').stat().st_size:,} bytes" in message


@pytest.mark.parametrize(
    "name",
    ["vision_config.hidden_act", "text_config.hidden_act", "projector_hidden_act", "text_config.rope_parameters"],
)
def test_unknown_names_in_a_config_are_refused(ours, name):
    edit_config(ours, name, {"rope_type": "evil", "rope_theta": 1.0} if "rope" in name else "evil")
    message = error_of(load_model, ours)
    assert "its config cannot be used" in message and "evil" in message


def test_a_missing_shard_is_an_error(ours):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (ours / "model.safetensors").unlink()
    (ours / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match=f"{ours} .*model-00001-of-00001.safetensors"):
        load_model(ours)


def test_pickled_weights_are_refused(ours):
    torch.save(load_file(ours / "model.safetensors"), ours / "pytorch_model.bin")
    (ours / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load_model(ours)


@pytest.mark.parametrize(
    "origin",
    [
        {"kind": "official"},
        {"kind": "official", "source": "me/model"},
        {"kind": "official", "source": {"repo_id": "a](http://evil) **b**"}},
        {"kind": "official", "source": {"repo_id": "me/model", "more": "x"}},
        {"kind": "official", "source": {}, "alpha": "4"},
        {"kind": "official", "source": {"origin": {"kind": 3, "source": {}}}},
    ],
    ids=str,
)
def test_an_origin_of_another_form_is_refused(ours, origin):
    edit_config(ours, "origin", origin)
    assert "`origin` is not as" in error_of(load_model, ours)
    with pytest.raises(ValueError, match="`origin` is not as"):
        ModelSource.of(ours)


def test_an_endless_origin_is_refused(ours):
    origin = {"kind": "merged", "source": {}}
    for _ in range(50):
        origin = {"kind": "merged", "source": {"origin": origin}}
    edit_config(ours, "origin", origin)
    assert "`origin` is not as" in error_of(load_model, ours)


@pytest.mark.parametrize("card", ["---\n: [\n---\n", "---\nlicense: [1, {a: b}]\n---\n", "---\n- 1\n---\n", "\x00"])
def test_a_broken_card_has_no_license(image_base, tmp_path, card):
    (image_base / "README.md").write_text(card)
    convert(image_base, tmp_path / "out")
    assert "license:" not in (tmp_path / "out" / "README.md").read_text()
