"""Saving and loading: by import and by remote code, and errors for checkpoints that do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bare_environment import run_bare
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
)

import pllava

CODE = {
    "chat_templates_pllava.py",
    "configuration_pllava.py",
    "modeling_pllava.py",
    "pipeline_pllava.py",
    "processing_pllava.py",
    "video_decoding_pllava.py",
    "video_download_pllava.py",
    "video_frames_pllava.py",
    "video_images_pllava.py",
    "video_index_pllava.py",
    "video_source_pllava.py",
    "video_processing_pllava.py",
    "video_sampling_pllava.py",
}
# Loads a checkpoint by its remote code, and saves it again
REMOTE = """
import sys

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
    pipeline,
)

clip, source, target, results = sys.argv[1:]


def read(checkpoint):
    load = {"pretrained_model_name_or_path": checkpoint, "trust_remote_code": True}
    config = AutoConfig.from_pretrained(**load)
    processor = AutoProcessor.from_pretrained(**load)
    chat = [{"role": "user", "content": [{"type": "video", "path": clip}, {"type": "text", "text": "What happens?"}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    pixels = AutoVideoProcessor.from_pretrained(**load)(clip, return_tensors="pt")["pixel_values_videos"]
    classes = {"AutoConfig": type(config), "AutoProcessor": type(processor)}
    outputs = {"pixels": pixels}
    for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        model = auto.from_pretrained(**load)
        classes[auto.__name__] = type(model)
        with torch.no_grad():
            outputs[auto.__name__] = model(**inputs)[0]
    assert all(kind.__module__.startswith("transformers_modules.") for kind in classes.values()), classes
    pipe = pipeline("video-text-to-text", checkpoint, trust_remote_code=True, max_new_tokens=6)
    assert type(pipe).__module__.startswith("transformers_modules."), type(pipe)
    outputs["answers"] = pipe([clip, {"path": clip, "start": 1.0}], text="What happens?", batch_size=2)
    if checkpoint == source:
        for task in ("image-text-to-text", "any-to-any"):
            stock = pipeline(task, checkpoint, trust_remote_code=True, max_new_tokens=6)
            outputs[task] = stock(text=chat, return_full_text=False)[0]["generated_text"]
        model.save_pretrained(target)
        processor.save_pretrained(target)
    return outputs, {name: kind.__name__ for name, kind in classes.items()}


torch.save([read(source), read(target)], results)
"""
CHAT_TEXT = "What happens?"


@pytest.fixture(scope="module")
def remote(checkpoint: str, clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Outputs of a process without the package, from the checkpoint and from a copy that it saved."""
    directory = tmp_path_factory.mktemp("remote")
    target, results = directory / "again", directory / "results.pt"
    run = run_bare(REMOTE, clips[0], checkpoint, target, results, HF_MODULES_CACHE=str(directory / "modules"))
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = torch.load(results)
    return {"first": first, "second": second, "target": target}


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(processor: pllava.PllavaProcessor, clips: list[Path]) -> dict[str, torch.Tensor]:
    media = {"type": "video", "path": str(clips[0])}
    chat = [{"role": "user", "content": [media, {"type": "text", "text": CHAT_TEXT}]}]
    return processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModel])
def test_loading_by_import_gives_identical_outputs(
    checkpoint: str, model: pllava.PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor], auto: type
) -> None:
    loaded = auto.from_pretrained(checkpoint)
    assert type(loaded) is (pllava.PllavaModel if auto is AutoModel else pllava.PllavaForConditionalGeneration)
    with torch.no_grad():
        expected = (model.model if auto is AutoModel else model)(**inputs)[0]
        assert torch.equal(loaded(**inputs)[0], expected)


def test_configs_are_loaded_as_saved(checkpoint: str, processor: pllava.PllavaProcessor, config, clips) -> None:
    loaded = AutoConfig.from_pretrained(checkpoint)
    assert type(loaded) is pllava.PllavaConfig
    for name in ("num_frames", "pooling_shape", "video_token_id", "image_token_id", "vision_feature_layer"):
        assert getattr(loaded, name) == getattr(config, name)
    assert loaded.vision_config.num_hidden_layers == 3, "the config counts the layer that is not built, too"
    video_processor = AutoVideoProcessor.from_pretrained(checkpoint)
    assert type(video_processor) is pllava.PllavaVideoProcessor
    pixels = [one(clips[1], return_tensors="pt") for one in (video_processor, processor.video_processor)]
    assert torch.equal(pixels[0]["pixel_values_videos"], pixels[1]["pixel_values_videos"])


@pytest.mark.parametrize("copy", ["first", "second"])
def test_remote_code_gives_identical_outputs(
    model: pllava.PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor], remote: dict, copy: str
) -> None:
    outputs, classes = remote[copy]
    assert classes == {
        "AutoConfig": "PllavaConfig",
        "AutoProcessor": "PllavaProcessor",
        "AutoModel": "PllavaModel",
        "AutoModelForImageTextToText": "PllavaForConditionalGeneration",
        "AutoModelForMultimodalLM": "PllavaForConditionalGeneration",
    }
    assert torch.equal(outputs["pixels"], inputs["pixel_values_videos"])
    with torch.no_grad():
        assert torch.equal(outputs["AutoModel"], model.model(**inputs)[0])
        for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
            assert torch.equal(outputs[name], model(**inputs)[0])


def test_pipelines_by_remote_code(
    model: pllava.PllavaForConditionalGeneration,
    processor: pllava.PllavaProcessor,
    inputs: dict[str, torch.Tensor],
    remote: dict,
) -> None:
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.decode(ids, skip_special_tokens=True)
    first, second = remote["first"][0], remote["second"][0]
    assert first["image-text-to-text"] == first["any-to-any"] == expected
    assert first["answers"][0] == [{"generated_text": expected}]
    assert first["answers"][1] != first["answers"][0], "the sub-clip is another video"
    assert second["answers"] == first["answers"]


def test_saved_folders_contain_the_code(checkpoint: str, remote: dict) -> None:
    for folder in (Path(checkpoint), remote["target"]):
        assert CODE <= {file.name for file in folder.iterdir()}
        config = json.loads((folder / "config.json").read_text())
        for auto, reference in config["auto_map"].items():
            module, name = reference.split(".")
            assert f"class {name}(" in (folder / f"{module}.py").read_text(), auto
        assert set(config["auto_map"]) >= {
            "AutoConfig",
            "AutoModel",
            "AutoModelForImageTextToText",
            "AutoModelForMultimodalLM",
            "AutoProcessor",
            "AutoVideoProcessor",
        }
        pipeline = config["custom_pipelines"]["video-text-to-text"]
        assert pipeline["impl"] == "pipeline_pllava.VideoTextToTextPipeline"
        assert config["model_type"] == "pllava" and config["pooling_shape"] == [4, 3, 3]


# --- checkpoints that do not fit -------------------------------------------------------------------------------------

Weights = dict[str, torch.Tensor]


@pytest.fixture
def altered(checkpoint: str, tmp_path: Path) -> Callable[[Callable[[Weights], None]], str]:
    """Return a function that copies the checkpoint with its weights changed."""

    def alter(change: Callable[[Weights], None]) -> str:
        directory = Path(shutil.copytree(checkpoint, tmp_path / "altered"))
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return str(directory)

    return alter


def one_name(weights: Weights, part: str) -> str:
    return next(name for name in sorted(weights) if part in name)


PARTS = [
    "language_model.layers.0.mlp",
    "vision_tower",
    "layers.1.self_attn.k_proj.weight",
    "linear_2.weight",
    "lm_head",
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, pllava.PllavaForConditionalGeneration])
def test_a_missing_weight_is_an_error(altered: Callable, part: str, auto: type) -> None:
    removed = []

    def remove(weights: Weights) -> None:
        removed.append(one_name(weights, part))
        del weights[removed[0]]

    with pytest.raises(ValueError, match="missing keys") as caught:
        auto.from_pretrained(altered(remove))
    assert removed[0].split("model.")[-1].split("vision_tower.")[-1] in str(caught.value)


@pytest.mark.parametrize("part", PARTS)
def test_a_renamed_weight_is_an_error(altered: Callable, part: str) -> None:
    names = []

    def rename(weights: Weights) -> None:
        names.append(one_name(weights, part))
        weights[f"{names[0]}.renamed"] = weights.pop(names[0])

    with pytest.raises(ValueError, match="missing keys") as caught:
        pllava.PllavaForConditionalGeneration.from_pretrained(altered(rename))
    assert names[0].split("vision_tower.")[-1] in str(caught.value)


def test_an_unexpected_weight_is_an_error(altered: Callable) -> None:
    with pytest.raises(ValueError, match="unexpected keys.*image_newline"):
        pllava.PllavaForConditionalGeneration.from_pretrained(
            altered(lambda weights: weights.update({"image_newline": torch.zeros(32)}))
        )


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_of_another_shape_is_an_error(altered: Callable, part: str) -> None:
    names = []

    def cut(weights: Weights) -> None:
        names.append(one_name(weights, part))
        weights[names[0]] = weights[names[0]][..., :-1].contiguous()

    with pytest.raises(ValueError, match="mismatched keys") as caught:
        pllava.PllavaForConditionalGeneration.from_pretrained(altered(cut))
    assert names[0].split("vision_tower.")[-1] in str(caught.value)


def test_loading_info_is_returned_on_request(checkpoint: str) -> None:
    model, info = pllava.PllavaForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    assert isinstance(model, pllava.PllavaForConditionalGeneration) and not info["missing_keys"]


def test_vision_layers_above_the_one_that_is_read_are_ignored(
    altered: Callable, model: pllava.PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    """Checkpoints of the original and of LLaVA have all of CLIP's layers."""

    def add_third_layer(weights: Weights) -> None:
        names = [name for name in weights if "vision_tower" in name and "layers.1." in name]
        assert len(names) == 16
        weights.update({name.replace("layers.1.", "layers.2."): weights[name].clone() for name in names})

    loaded = pllava.PllavaForConditionalGeneration.from_pretrained(altered(add_third_layer))
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_both_names_of_the_vision_tower_load(
    altered: Callable, model: pllava.PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    """Versions of transformers save `vision_tower.vision_model.` or `vision_tower.`; each loads both."""

    def change_level(weights: Weights) -> None:
        long, short = "vision_tower.vision_model.", "vision_tower."
        for name in [name for name in weights if short in name]:
            other = name.replace(long, short) if long in name else name.replace(short, long)
            weights[other] = weights.pop(name)

    loaded = pllava.PllavaForConditionalGeneration.from_pretrained(altered(change_level))
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


# --- processors that do not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("num_frames", 8), ("pooling_shape", [4, 2, 2])])
def test_a_processor_and_a_config_that_disagree_are_an_error(
    checkpoint: str, tmp_path: Path, name: str, value: int | list[int]
) -> None:
    directory = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(ValueError, match=f"disagree on `{name}`") as caught:
        AutoProcessor.from_pretrained(directory)
    assert str(config[name]) in str(caught.value) and str(value) in str(caught.value)


def test_a_processor_loads_without_a_model(processor: pllava.PllavaProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    assert AutoProcessor.from_pretrained(tmp_path).num_video_tokens == 36


def test_a_processor_may_be_changed_while_loading(checkpoint: str) -> None:
    changed = AutoProcessor.from_pretrained(checkpoint, pooling_shape=[2, 3, 3])
    assert changed.num_video_tokens == 18
