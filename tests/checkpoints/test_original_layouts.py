"""Image models in the layouts of original LLaVA and of TinyLLaVA, in which the vision tower may be elsewhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llava_models import (
    TEXT,
    TinyModel,
    edit_config,
    rewrite_weights,
    write_image_processor,
    write_model,
)
from original_llava import (
    MODELS,
    TOWER,
    write_original,
    write_tower,
)
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    Qwen2Config,
)
from typer.testing import CliRunner

import pllava
from pllava.cli import app
from pllava.convert import convert
from pllava.convert.families import FIRST_PATCH, PADDING, SQUEEZED, TILES


@torch.no_grad()
def assert_same_answers(model: PreTrainedModel, directory: Path, tiny: TinyModel) -> None:
    """The logits of the same weights in transformers' layout, for an image in full."""
    loaded = pllava.load_model(directory)
    image = torch.randn(1, 3, *[tiny.vision.image_size] * 2, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, 17, *[500] * tiny.grid**2, 33, 499]])
    assert loaded.config.image_token_id == 500
    logits = loaded(input_ids=ids, pixel_values=image).logits[..., :512]
    torch.testing.assert_close(logits, model(input_ids=ids, pixel_values=image).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_tower", [True, False], ids=["tower inside", "tower named"])
@pytest.mark.parametrize("model_type", MODELS)
def test_original_llava_gives_the_logits_of_transformers_llava(tmp_path, model_type, has_tower):
    model, source = write_original(tmp_path, model_type, has_tower)
    lines = []
    directory = convert(source, tmp_path / "out", report=lines.append)
    assert "(original LLaVA)" in lines[0] and "model.image_newline" in lines[1] and "inv_freq" in lines[1]
    tiny = MODELS[model_type]
    assert_same_answers(model, directory, tiny)
    processor = pllava.PllavaProcessor.from_pretrained(directory)
    assert processor.chat_template == pllava.processing_pllava.CHAT_TEMPLATES[tiny.template]
    size = processor.image_processor.size
    assert tiny.vision.image_size in (size.get("shortest_edge"), size.get("height"))
    origin = json.loads((directory / "config.json").read_text())["origin"]
    assert origin["vision_tower"].keys() == {"fingerprint"} != origin["source"]
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert "The vision tower is a local model." in card and f"| {origin['vision_tower']['fingerprint']} |" in card


def test_the_class_tells_the_text_model_where_the_model_type_does_not(tmp_path):
    model, source = write_original(tmp_path, "llava_qwen", has_tower=True)
    edit_config(source, lambda config: {**config, "model_type": "llava"})  # as in lmms-lab's OneVision
    assert_same_answers(model, convert(source, tmp_path / "out"), MODELS["llava_qwen"])


def test_another_copy_of_the_vision_tower_is_taken_where_the_named_one_is_pickled(tmp_path):
    model, source = write_original(tmp_path, "llava", has_tower=False)
    shutil.copytree(tmp_path / "tower", tmp_path / "copy")
    (tmp_path / "tower" / "model.safetensors").rename(tmp_path / "tower" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pickles \(pytorch_model.bin\)(.|\n)*--vision-tower"):
        convert(source, tmp_path / "out")
    assert_same_answers(model, convert(source, tmp_path / "out", vision_tower=tmp_path / "copy"), MODELS["llava"])


def test_the_command_takes_a_vision_tower_and_a_pooling(tmp_path):
    _, source = write_original(tmp_path, "llava", has_tower=False)
    edit_config(source, lambda config: {**config, "mm_vision_tower": "/data/clip"})
    arguments = ["convert", str(source), str(tmp_path / "out")]
    options = ["--vision-tower", str(tmp_path / "tower"), "--num-frames", "4", "--pooling", "merge-2x2x2"]
    failed = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
    assert failed.exit_code == 1 and "/data/clip is the vision tower; pass" in failed.stderr
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code == 0, done.output
    assert "4 frames per clip, pooled by merge-2x2x2 to 8 tokens" in done.output and PADDING in done.output
    config = pllava.PllavaConfig.from_pretrained(tmp_path / "out")
    assert (config.num_frames, config.pooling, config.pooling_shape) == (4, "merge", [2, 2, 2])


def test_the_vision_tower_can_be_that_of_another_llava(tmp_path):
    model, source = write_original(tmp_path, "llava", has_tower=False)
    other = tmp_path / "other"
    write_model(other, replace(MODELS["llava"], text=Qwen2Config(**TEXT)))
    weights = load_file(other / "model.safetensors")
    tower = load_file(tmp_path / "tower" / "model.safetensors")
    for key in [key for key in weights if TOWER.fullmatch(key)]:
        weights[key] = tower[TOWER.sub(r"vision_model.\2", key)]
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert_same_answers(model, convert(source, tmp_path / "out", vision_tower=other), MODELS["llava"])


def test_a_vision_tower_that_is_not_there_is_an_error_that_says_what_to_pass(tmp_path):
    _, source = write_original(tmp_path, "llava", has_tower=True)
    edit_config(source, lambda config: {**config, "mm_vision_tower": "/data/clip-vit-large"})
    with pytest.raises(ValueError, match="/data/clip-vit-large is the vision tower; pass"):
        convert(source, tmp_path / "out")


def test_the_tower_has_the_dtype_of_the_rest(tmp_path):
    _, source = write_original(tmp_path, "llava", has_tower=False)
    weights = {key: weight.bfloat16() for key, weight in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    directory = convert(source, tmp_path / "out")
    written = load_file(directory / "model.safetensors")
    assert {weight.dtype for weight in written.values()} == {torch.bfloat16}
    assert any("vision_tower" in name for name in written)


def test_what_differs_is_reported(tmp_path):
    _, source = write_original(tmp_path, "llava", has_tower=True)
    for value, expected in (("pad", [PADDING]), ("anyres_max_9", [TILES, SQUEEZED]), ("square", [])):
        edit_config(source, lambda config, value=value: {**config, "image_aspect_ratio": value})
        lines = []
        convert(source, tmp_path / value, report=lines.append)
        assert [line for line in lines if "difference" in line] == [f"a difference: {text}" for text in expected]


# --- TinyLLaVA -------------------------------------------------------------------------------------------------------


TINY_LLAVA = replace(MODELS["llava_qwen"], template="plain")


def write_factory(tmp_path: Path, strategy: str) -> tuple[PreTrainedModel, Path]:
    directory = tmp_path / "source"
    model = write_model(directory, TINY_LLAVA)
    tower = write_tower(tmp_path / "tower", directory, TINY_LLAVA)
    (directory / "preprocessor_config.json").unlink()

    def name(saved: str) -> str:
        saved = TOWER.sub(r"vision_tower._vision_tower.vision_model.\2", saved)
        saved = saved.replace("multi_modal_projector.linear_1.", "connector._connector.0.")
        return saved.replace("multi_modal_projector.linear_2.", "connector._connector.2.")

    def config(saved: dict) -> dict:
        return {
            **{"architectures": ["TinyLlavaForConditionalGeneration"], "model_type": "tinyllava"},
            **{"connector_type": "mlp2x_gelu", "llm_model_name_or_path": "Qwen/Qwen2-0.5B", "hidden_size": 32},
            **{"vision_model_name_or_path": str(tower), "vision_model_name_or_path2": "", "image_token_index": -200},
            **{"vision_feature_layer": -2, "vision_feature_select_strategy": strategy, "vocab_size": 512},
            **{"image_aspect_ratio": "square", "tokenizer_padding_side": "right"},
            **{"text_config": saved["text_config"], "vision_config": saved["vision_config"]},
        }

    rewrite_weights(directory, name)
    edit_config(directory, config)
    return model, directory


@pytest.mark.parametrize("strategy", ["patch", "cls_patch"])
def test_tinyllava_gives_the_logits_of_transformers_llava(tmp_path, strategy):
    model, source = write_factory(tmp_path, strategy)
    lines = []
    directory = convert(source, tmp_path / "out", report=lines.append)
    assert "(TinyLLaVA)" in lines[0]
    assert (f"a difference: {FIRST_PATCH}" in lines) == (strategy == "patch")
    assert_same_answers(model, directory, TINY_LLAVA)
    processor = pllava.PllavaProcessor.from_pretrained(directory)
    assert processor.chat_template == pllava.processing_pllava.CHAT_TEMPLATES["plain"]
    assert dict(processor.image_processor.size) == {"height": 70, "width": 70}


def test_tinyllava_may_name_its_tower_with_the_towers_kind_or_not_at_all(tmp_path):
    model, source = write_factory(tmp_path, "cls_patch")
    edit_config(source, lambda config: {**config, "vision_model_name_or_path": f"siglip:{tmp_path / 'tower'}"})
    assert_same_answers(model, convert(source, tmp_path / "out"), TINY_LLAVA)
    edit_config(source, lambda config: {**config, "vision_model_name_or_path": ""})
    with pytest.raises(ValueError, match="does not name its vision tower .* --vision-tower"):
        convert(source, tmp_path / "out2")
    write_image_processor(source, TINY_LLAVA)  # then it has everything
    assert_same_answers(model, convert(source, tmp_path / "out2"), TINY_LLAVA)


@torch.no_grad()
def test_tinyllava_differs_only_in_the_first_patch(tmp_path):
    """Its code drops the first of SigLIP's patches; without that token, the answers are those of its own code."""
    model, source = write_factory(tmp_path, "patch")
    loaded = pllava.load_model(convert(source, tmp_path / "out"))
    image = torch.randn(1, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    hidden = model.model.vision_tower(image, output_hidden_states=True).hidden_states[-2][:, 1:]
    own_tokens = model.model.multi_modal_projector(hidden)
    tokens = loaded.get_image_features(image).pooler_output[:, 1:]
    torch.testing.assert_close(tokens, own_tokens, rtol=0, atol=1e-5)
