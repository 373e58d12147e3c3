"""The backbones of `python -m pllava.nano train`: one recipe trains all, and the same code takes what it makes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_client import card_of, run
from local_hub import local_hub
from model_server import data_uri, model_server, text_part, user, video_part
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen3Model,
    SiglipVisionModel,
    pipeline,
)
from transformers.image_utils import IMAGENET_STANDARD_MEAN

import pllava
from pllava.convert import convert
from pllava.nano.training.models import BACKBONES, build_config
from pllava.nano.training.recipe import Recipe, read_recipe
from pllava.nano.training.train import is_bfloat16_fast, train
from pllava.nano.world.rendering import read_questions

# Values of LLaVA's own config
LLAVA = ("vision_config", "text_config", "vision_feature_layer", "vision_feature_select_strategy", "image_token_index")
CHANGES_IN_TRAINING = {"num_frames", "architectures", "dtype", "transformers_version", "use_cache"}


def test_the_default_backbone_is_that_of_the_shipped_checkpoint():
    shipped = pllava.PllavaConfig.from_pretrained(pllava.NANO).to_dict()
    built = build_config(
        AutoProcessor.from_pretrained(pllava.NANO), BACKBONES["clip-llama"], read_recipe().widths["nano"]
    ).to_dict()
    for config in (shipped, built):
        for part in (config, config["vision_config"], config["text_config"]):
            for name in CHANGES_IN_TRAINING & part.keys():
                del part[name]
    assert built == shipped


def test_backbones_have_about_the_same_size():
    processor = AutoProcessor.from_pretrained(pllava.NANO)
    with torch.device("meta"):
        configs = [build_config(processor, backbone, 128) for backbone in BACKBONES.values()]
        default, *others = [AutoModelForImageTextToText.from_config(config).num_parameters() for config in configs]
    assert all(0.9 * default < size < 1.1 * default for size in others)


def test_an_unknown_backbone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'dino-gpt': nano's are clip-llama, siglip-qwen3"):
        train(tmp_path / "out", tmp_path, "dino-gpt", read_recipe(), seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of SigLIP and Qwen3 after a few steps of all stages, and the work folder."""
    folder = tmp_path_factory.mktemp("siglip_qwen3")
    train(folder / "model", folder / "work", "siglip-qwen3", short_recipe(), seed=0)
    return folder


def short_recipe() -> Recipe:
    recipe = read_recipe()
    stages = {name: replace(getattr(recipe, name), steps=4) for name in ("tower_stage", "image_stage")}
    return replace(recipe, **stages, video_stage=replace(recipe.video_stage, steps=4, clips=8))


def image_models(trained: Path) -> list[Path]:
    return sorted((trained / "work" / "siglip-qwen3" / "image-models").iterdir())


def clips_of(trained: Path) -> Path:
    (folder,) = (trained / "work" / "clips").iterdir()
    return folder


@pytest.fixture(scope="module")
def answer(trained: Path) -> tuple[Path, str, str]:
    """A clip, a question about it, and what the pipeline answers."""
    row = read_questions(clips_of(trained))[0]
    pipe = pipeline("video-text-to-text", str(trained / "model"), trust_remote_code=True)
    (output,) = pipe(row["video"], text=row["question"], generate_kwargs={"do_sample": False})
    return Path(row["video"]), row["question"], output["generated_text"]


@pytest.mark.slow
def test_an_image_model_is_used_again_only_if_its_values_are_equal(trained, tmp_path):
    shutil.copytree(trained / "work", tmp_path / "work")
    (first,) = image_models(tmp_path)
    before = (first / "seconds.json").stat().st_mtime_ns
    recipe = short_recipe()
    train(tmp_path / "again", tmp_path / "work", "siglip-qwen3", recipe, seed=0)
    assert image_models(tmp_path) == [first] and (first / "seconds.json").stat().st_mtime_ns == before
    recipe = replace(recipe, image_stage=replace(recipe.image_stage, learning_rate=1e-3))
    train(tmp_path / "changed", tmp_path / "work", "siglip-qwen3", recipe, seed=0)
    assert len(image_models(tmp_path)) == 2 and clips_of(tmp_path).exists()


@pytest.mark.slow
def test_the_auto_classes_load_what_both_stages_trained(trained):
    model, processor = (
        each.from_pretrained(trained / "model") for each in (AutoModelForImageTextToText, AutoProcessor)
    )
    vision, text = model.model.vision_tower, model.model.language_model
    assert isinstance(vision, SiglipVisionModel) and isinstance(text, Qwen3Model)
    assert model.lm_head.weight is text.embed_tokens.weight
    for each in (processor.image_processor, processor.video_processor):
        assert list(each.image_mean) == IMAGENET_STANDARD_MEAN

    (image_model,) = image_models(trained)
    start = AutoModelForImageTextToText.from_pretrained(image_model)
    changed = {
        name.split(".")[1]
        for name, weight in model.named_parameters()
        if not torch.equal(weight, start.get_parameter(name))
    }
    assert changed == {"multi_modal_projector", "language_model"}  # the vision tower is frozen in stage 2
    facts = json.loads((trained / "model" / "training.json").read_text())
    assert (facts["backbone"], facts["image_stage"]["steps"], facts["video_stage"]["steps"]) == ("siglip-qwen3", 4, 4)
    assert facts["bf16"] is is_bfloat16_fast()


@pytest.mark.slow
def test_the_image_model_of_stage_1_converts(trained, tmp_path):
    """Saved as transformers' own LLaVA, it becomes a PLLaVA that reads images in full, with the same logits."""
    processor = AutoProcessor.from_pretrained(trained / "model")
    (image_model,) = image_models(trained)
    start = AutoModelForImageTextToText.from_pretrained(image_model)
    image_model = LlavaForConditionalGeneration(LlavaConfig(**{name: getattr(start.config, name) for name in LLAVA}))
    missing, unexpected = image_model.load_state_dict(start.state_dict(), strict=False)
    assert unexpected == [] and {name.split(".")[2] for name in missing} == {"post_layernorm", "head"}
    for each in (image_model, processor.image_processor, processor.tokenizer):
        each.save_pretrained(tmp_path / "llava")

    converted = pllava.load_model(convert(tmp_path / "llava", tmp_path / "converted"))
    assert (converted.config.num_frames, converted.config.num_image_tokens) == (16, 36)
    ids = torch.tensor([[1, *[converted.config.image_token_id] * 36, 300, 301]])
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = (model(input_ids=ids, pixel_values=pixels).logits for model in (start, converted))
    torch.testing.assert_close(logits[..., : expected.shape[-1]], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_it_is_evaluated_pushed_and_chats_from_the_hub(trained, answer, tmp_path):
    clip, question, said = answer
    (tmp_path / "hub").mkdir()
    with local_hub(tmp_path / "hub") as hub:
        data = clips_of(trained)
        model = trained / "model"
        run(hub, tmp_path, "pllava", "eval", model, "--data", data, "--out", "results", "--limit", 2)
        metrics = json.loads((tmp_path / "results" / "nano" / "metrics.json").read_text())
        assert metrics["coverage"] == 1.0 and {each["evaluated"] for each in metrics["per_task"].values()} == {2}
        assert metrics["run"]["num_frames"] == 16

        run(hub, tmp_path, "pllava", "push", model, "me/siglip-nano")
        assert card_of(hub, "me/siglip-nano").data.pipeline_tag == "video-text-to-text"
        chat = run(hub, tmp_path, "pllava", "chat", clip, question, "--model", "me/siglip-nano")
        assert chat.stdout.strip() == said.strip()


@pytest.mark.slow
def test_it_is_served(trained, answer, tmp_path):
    clip, question, said = answer
    with model_server(tmp_path, str(trained / "model")) as server:
        client = server.client()
        (name,) = [each.id for each in client.models.list()]
        messages = [user(video_part(data_uri(clip)), text_part(question))]
        reply = client.chat.completions.create(model=name, messages=messages, temperature=0)
    assert reply.choices[0].message.content == said
