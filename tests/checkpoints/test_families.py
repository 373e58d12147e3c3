"""Every family of image models becomes a PLLaVA that answers as the model did, about the same image."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from llava_models import (
    FAMILIES,
    FULL,
    IMAGE_ID,
    clip,
    edit_config,
    rewrite_weights,
    siglip_384,
    write_llava,
    write_model,
)
from llava_models import TEXT as TINY_TEXT
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlavaProcessor,
    Phi3Config,
    PreTrainedModel,
)

import pllava
from pllava.chat_templates_pllava import CHAT_TEMPLATES
from pllava.convert import convert, families

EXACT = {"rtol": 0, "atol": 1e-5}
TEXT = torch.tensor([[1, 17, 250]])
MORE_TEXT = torch.tensor([[33, 499]])
WITH_TILES = [name for name, tiny in FAMILIES.items() if name.startswith(("next", "onevision"))]


def placeholders(token: int, count: int) -> torch.Tensor:
    return torch.cat([TEXT, torch.full((1, count), token), MORE_TEXT], dim=1)


def random_pixels(family: str, *shape: int) -> torch.Tensor:
    side = FAMILIES[family].vision.image_size
    return torch.randn(*shape, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def source_logits(source: PreTrainedModel, family: str, image: torch.Tensor) -> torch.Tensor:
    """
    The source's logits for an image, `(1, 3, height, width)`. Of a model that adds tiles in higher resolution, take
    the tokens of the whole image, which come first.
    """
    grid = FAMILIES[family].grid
    ids = placeholders(IMAGE_ID, grid**2)
    if family not in WITH_TILES:
        return source(input_ids=ids, pixel_values=image).logits
    tiles = torch.cat([image, random_pixels(family, 4)])[None]
    size = torch.tensor([[2 * image.shape[2], 2 * image.shape[3]]])
    features = source.get_image_features(pixel_values=tiles, image_sizes=size).pooler_output[0]
    assert len(features) > grid**2, "there are tiles as well"
    embeds = source.get_input_embeddings()(ids)
    embeds = embeds.masked_scatter((ids == IMAGE_ID)[..., None], features[: grid**2])
    return source(inputs_embeds=embeds).logits


@torch.no_grad()
def assert_equal_logits(directory, family: str, expected: torch.Tensor, image: torch.Tensor) -> None:
    """An image in full, and a video of one frame that is not pooled."""
    model = pllava.load_model(directory, check=False)
    ids = placeholders(model.config.image_token_id, FAMILIES[family].grid ** 2)
    logits = model(input_ids=ids, pixel_values=image).logits
    torch.testing.assert_close(logits[..., :512], expected, **EXACT)
    ids = placeholders(model.config.video_token_id, FAMILIES[family].grid ** 2)
    logits = model(input_ids=ids, pixel_values_videos=image[None]).logits
    torch.testing.assert_close(logits[..., :512], expected, **EXACT)


def unpooled(family: str) -> dict:
    """Options of `convert` for one frame that is not pooled."""
    return {"num_frames": 1, "pooling": f"average-1x{FAMILIES[family].grid}x{FAMILIES[family].grid}"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_gives_the_logits_of_the_source(tmp_path, family):
    source = write_llava(tmp_path / "source", family)
    directory = convert(tmp_path / "source", tmp_path / "out", **unpooled(family))
    image = random_pixels(family, 1)
    expected = source_logits(source, family, image)
    assert (source_logits(source, family, -image) - expected)[:, -1].abs().max() > 1e-2, "the image matters"
    assert_equal_logits(directory, family, expected, image)


def test_values_that_a_config_leaves_out_are_those_of_its_family(tmp_path):
    """Older transformers did not save the default values of a config."""
    source = write_llava(tmp_path / "source", "onevision")

    def shorten(config: dict) -> dict:
        del config["vision_feature_layer"], config["vision_feature_select_strategy"]
        del config["text_config"]["model_type"]
        return config

    edit_config(tmp_path / "source", shorten)
    directory = convert(tmp_path / "source", tmp_path / "out", **unpooled("onevision"))
    image = random_pixels("onevision", 1)
    assert_equal_logits(directory, "onevision", source_logits(source, "onevision", image), image)


def old_name(name: str) -> str:
    """As transformers before 4.52 had it, and `llava-hf` repositories have it still."""
    name = re.sub(r"^language_model\.(?!model\.|lm_head\.)", "language_model.model.", name.removeprefix("model."))
    name = f"language_model.{name}" if name.startswith("lm_head.") else name
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


def new_name(name: str) -> str:
    """As the parameters of transformers' models are named today."""
    name = old_name(name).replace("vision_tower.vision_model.", "vision_tower.")
    name = name.replace("language_model.model.", "language_model.")
    return "lm_head.weight" if name == "language_model.lm_head.weight" else f"model.{name}"


@pytest.mark.parametrize("rename", [old_name, new_name])
@pytest.mark.parametrize("family", ["interleave", "next-vicuna", "vip"])
def test_old_and_new_names_of_weights_are_read(tmp_path, family, rename):
    source = write_llava(tmp_path / "source", family)
    rewrite_weights(tmp_path / "source", rename)
    directory = convert(tmp_path / "source", tmp_path / "out", **unpooled(family))
    image = random_pixels(family, 1)
    assert_equal_logits(directory, family, source_logits(source, family, image), image)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_model_has_its_familys_prompt_and_the_papers_pooling(tmp_path, family):
    write_llava(tmp_path / "source", family)
    lines = []
    directory = convert(tmp_path / "source", tmp_path / "out", report=lines.append)
    assert "LLaVA image checkpoint" in lines[0]
    tiny, processor, model = FAMILIES[family], AutoProcessor.from_pretrained(directory), pllava.load_model(directory)
    half = -(-tiny.grid // 2)
    for each in (model.config, processor):
        assert (each.num_frames, each.pooling, each.pooling_shape) == (16, "average", [16, half, half])
        assert each.image_pooling_shape == [1, tiny.grid, tiny.grid]
    assert f"16 frames per clip, pooled by average-16x{half}x{half} to {16 * half**2} tokens" in lines
    assert processor.chat_template == CHAT_TEMPLATES[tiny.template]
    assert model.config.video_token_id == len(processor.tokenizer) - 1 > model.config.image_token_id
    eos = model.generation_config.eos_token_id
    assert tuple(eos if isinstance(eos, list) else [eos]) == tiny.ends
    text, source_text = model.config.text_config, tiny.text
    for key in ("tie_word_embeddings", "sliding_window", "attention_bias", "num_key_value_heads", "rope_parameters"):
        assert getattr(text, key, None) == getattr(source_text, key, None), key
    chat = [{"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "What is it?"}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(chat, **options)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == tiny.grid**2
    answer = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8))
SQUARE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_has_the_pixels_of_the_source(tmp_path, family):
    """LLaVA-NeXT squeezes an image into a square, and PLLaVA crops it: they are the same for a square."""
    write_llava(tmp_path / "source", family)
    lines = []
    directory = convert(tmp_path / "source", tmp_path / "out", report=lines.append)
    own, processor = AutoImageProcessor.from_pretrained(tmp_path / "source"), AutoProcessor.from_pretrained(directory)
    squeezes = any("squeezes" in line for line in lines)
    assert squeezes == family.startswith("next")
    image = SQUARE if squeezes else IMAGE
    expected = own(images=image, return_tensors="pt")["pixel_values"]
    expected = expected[0, :1] if expected.ndim == 5 else expected  # the tiles follow the whole image
    pixels = processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    video = processor.video_processor([np.stack([np.asarray(image)] * 2)], return_tensors="pt")["pixel_values_videos"]
    assert video.shape[-2:] == pixels.shape[-2:]


def test_the_image_processor_is_found_inside_a_saved_processor(tmp_path):
    """transformers 5 saves one processor_config.json, where older ones saved a preprocessor_config.json beside it."""
    write_llava(tmp_path / "source", "interleave")
    own = AutoImageProcessor.from_pretrained(tmp_path / "source")
    (tmp_path / "source" / "preprocessor_config.json").unlink()
    LlavaProcessor(own, AutoTokenizer.from_pretrained(tmp_path / "source")).save_pretrained(tmp_path / "source")
    assert not (tmp_path / "source" / "preprocessor_config.json").exists()
    processor = AutoProcessor.from_pretrained(convert(tmp_path / "source", tmp_path / "out"))
    pixels = processor.image_processor(images=IMAGE, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, own(images=IMAGE, return_tensors="pt")["pixel_values"], rtol=0, atol=1e-6)
    (tmp_path / "source" / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="no preprocessor_config.json"):
        convert(tmp_path / "source", tmp_path / "out2")


# --- tied embeddings -------------------------------------------------------------------------------------------------


def test_tied_embeddings_are_written_once_and_grow_together(tmp_path):
    write_llava(tmp_path / "source", "onevision")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    tokenizer.add_tokens([f"<{number}>" for number in range(512 - len(tokenizer))], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "source")
    model = pllava.load_model(convert(tmp_path / "source", tmp_path / "out"))
    assert model.lm_head.weight is model.get_input_embeddings().weight and len(model.lm_head.weight) == 576
    assert model.config.video_token_id == 512


@pytest.mark.parametrize("differs", [False, True])
def test_output_embeddings_that_are_stored_beside_tied_ones_are_used_if_they_differ(tmp_path, differs):
    write_llava(tmp_path / "source", "onevision")
    file = tmp_path / "source" / "model.safetensors"
    weights = load_file(file)
    embeddings = weights["language_model.model.embed_tokens.weight"]
    weights["language_model.lm_head.weight"] = embeddings + 1 if differs else embeddings.clone()
    save_file(weights, file, metadata={"format": "pt"})
    lines = []
    model = pllava.load_model(convert(tmp_path / "source", tmp_path / "out", report=lines.append))
    assert ("lm_head, which is tied" in lines[1]) == (not differs)
    torch.testing.assert_close(model.lm_head.weight, weights["language_model.lm_head.weight"], rtol=0, atol=0)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (not differs)


# --- videos, as the source pools them --------------------------------------------------------------------------------


def pooled_conversion(tmp_path, family):
    """The source, and a conversion that pools as the source does, to half the rows and columns."""
    source = write_llava(tmp_path / "source", family)
    half = -(-FAMILIES[family].grid // 2)
    out = convert(tmp_path / "source", tmp_path / "out", num_frames=3, pooling=f"average-3x{half}x{half}")
    return source, pllava.load_model(out)


@torch.no_grad()
@pytest.mark.parametrize("family", ["onevision", "onevision-qwen3"])
def test_videos_differ_from_onevisions_only_in_the_interpolation_of_an_odd_grid(tmp_path, family):
    source, model = pooled_conversion(tmp_path, family)
    frames, grid = random_pixels(family, 1, 3), FAMILIES[family].grid
    expected = source.get_video_features(frames).pooler_output[:, :-1]  # the last one is the image newline
    tokens = model.get_video_features(frames).pooler_output
    difference = (tokens - expected).abs().max()
    assert difference > 1e-3 if grid % 2 else difference < 1e-5
    model.config.pooling_shape = [3, grid, grid]
    projected = model.get_video_features(frames).pooler_output.unflatten(1, (3, grid**2))[0]
    interpolated = source.model.apply_pooling(projected).flatten(0, 1)[None]
    torch.testing.assert_close(interpolated, expected, **EXACT)


@torch.no_grad()
def test_videos_differ_from_next_videos_only_in_the_order_of_pooling_and_projector(tmp_path):
    source, model = pooled_conversion(tmp_path, "next-video")
    frames = random_pixels("next-video", 1, 3)
    expected = torch.cat([*source.get_video_features(frames).pooler_output]).flatten(0, -2)[None]
    tokens = model.get_video_features(frames).pooler_output
    assert tokens.shape == expected.shape and (tokens - expected).abs().max() > 1e-3
    projector, model.model.multi_modal_projector = model.model.multi_modal_projector, nn.Identity()
    pooled_before = projector(model.get_video_features(frames).pooler_output)
    torch.testing.assert_close(pooled_before, expected, **EXACT)


# --- options ---------------------------------------------------------------------------------------------------------


def test_frames_and_pooling_are_chosen_in_the_notation_of_the_poolings(tmp_path):
    write_llava(tmp_path / "source", "interleave")
    directory = convert(tmp_path / "source", tmp_path / "out", num_frames=8, pooling="slowfast-2x3x5+8x1x1")
    model, processor = pllava.load_model(directory), AutoProcessor.from_pretrained(directory)
    for each in (model.config, processor):
        assert (each.num_frames, each.pooling, each.pooling_shape) == (8, "slowfast", [[2, 3, 5], [8, 1, 1]])
    assert processor.num_video_tokens == 38


def test_rope_is_scaled_if_the_tokens_of_a_video_exceed_the_context(tmp_path, caplog):
    write_llava(tmp_path / "source", "interleave")
    lines = []
    directory = convert(
        tmp_path / "source", tmp_path / "out", num_frames=2000, pooling="average-2000x5x5", report=lines.append
    )
    context = FAMILIES["interleave"].text.max_position_embeddings
    assert lines[-1] == f"RoPE is scaled by 2: a video's tokens do not fit the context of {context:,}"
    rope = pllava.load_model(directory).config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 2.0)
    with pytest.raises(ValueError, match="does not fit"):
        convert(tmp_path / "source", tmp_path / "out2", pooling="average-16x6x6")


@pytest.mark.parametrize(
    ("vision", "grid", "half"), [(clip(24), 24, 12), (siglip_384(), 27, 14)], ids=["CLIP", "SigLIP"]
)
def test_published_towers_have_the_papers_pooling_for_their_grid(tmp_path, vision, grid, half):
    text = replace(FAMILIES["vicuna"], vision=vision, text=LlamaConfig(**TINY_TEXT, max_position_embeddings=4096))
    write_model(tmp_path / "source", replace(text, options=FULL if vision.model_type.startswith("siglip") else {}))
    processor = AutoProcessor.from_pretrained(convert(tmp_path / "source", tmp_path / "out"))
    assert processor.pooling_shape == [16, half, half] and processor.image_pooling_shape == [1, grid, grid]


def test_lora_adapts_the_fused_layers_of_a_text_model(tmp_path):
    text = Phi3Config(**TINY_TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    write_model(tmp_path / "source", replace(FAMILIES["vicuna"], text=text))
    model = pllava.load_model(convert(tmp_path / "source", tmp_path / "out"))
    adapted = get_peft_model(model, pllava.lora_config(r=4))
    targets = {name.split(".")[-4] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert targets == {"qkv_proj"}


def test_the_documentation_names_every_family_and_its_prompt():
    text = (Path(pllava.__file__).parent / "docs" / "conversion.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1]: line for line in text.splitlines() if line.startswith("| ")}
    for family in families.FAMILIES:
        assert family.is_pllava or any(family.name in row for row in rows), family.name
    prompts = {tiny.template for tiny in FAMILIES.values()}
    assert all(f"`{prompt}`" in text for prompt in prompts)
