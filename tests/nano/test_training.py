"""nano's training: its recipe, its conversations, and the labels from which the vision tower learns."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoModelForImageTextToText, AutoProcessor

from pllava import NANO, load_model
from pllava.nano.training.conversations import image_conversations, video_conversations
from pllava.nano.training.models import BACKBONES, build_config
from pllava.nano.training.recipe import RECIPE, ImageStage, Stage, VideoStage, read_recipe
from pllava.nano.training.tower import Frames, PatchLabels, collate_frames, label_patches, train_tower
from pllava.nano.training.train import training_args
from pllava.nano.world import drawing, questions, scenes
from pllava.nano.world.rendering import render
from pllava.train.loader.collator import IGNORE_INDEX

STAGE = {"steps": 10, "batch_size": 8, "learning_rate": 1e-3, "most_shapes": 3}
TYPES = dict.fromkeys(questions.TYPES, 1)


def video_stage(**values):
    options = {"clips": 48, "num_frames": 16, "lora_r": 4, "pooling_shape": [16, 3, 3], "types": TYPES}
    return VideoStage(**{**STAGE, **options, "mix": {"questions": [1, 1]}, **values})


def image_stage(**values):
    return ImageStage(**{**STAGE, "pooling_shape": [1, 6, 6], **values})


def first_questions(rows):
    return [row["messages"][0]["content"][-1]["text"] for row in rows]


def test_captions_go_through_all_clips_before_one_comes_again(rendered):
    rows = list(video_conversations(rendered, video_stage(mix={"caption": [1, 1]}), seed=0).take(96))
    first, second = ([row["videos"][0] for row in part] for part in (rows[:48], rows[48:]))
    assert set(first) == set(second) and len(set(first)) == 48 and first != second


def test_questions_of_a_rare_type_are_asked_as_often_as_their_weight_says(rendered):
    stage = video_stage(types={"order": 3, "colour": 1})
    rows = list(video_conversations(rendered, stage, seed=0).take(400))
    shares = [
        sum(text.startswith(start) for text in first_questions(rows)) / 400
        for start in ("Which shows first", "What colour")
    ]
    assert shares == pytest.approx([0.75, 0.25], abs=0.07)
    conversations = {json.dumps(row["messages"]) for row in rows}
    assert len(conversations) > 100 and len({row["videos"][0] for row in rows}) > 30
    assert all(len(set(map(str, row["messages"][::2]))) == len(row["messages"]) // 2 for row in rows)


def test_video_conversations_are_about_the_first_clips_of_a_stage(rendered):
    rows = video_conversations(rendered, video_stage(clips=6), seed=0).take(24)
    assert {Path(row["videos"][0]).stem for row in rows} == {f"{index:05d}" for index in range(6)}


def test_each_batch_has_one_kind_and_the_mixture_changes(tmp_path):
    render(tmp_path, clips=16, seed=1, listings=True)
    mix = {"listing": [1, 0], "caption": [0, 1]}
    rows = list(video_conversations(tmp_path, video_stage(clips=16, steps=100, mix=mix), seed=0).take(8 * 120))
    asked = first_questions(rows)
    batches = [set(asked[start : start + 8]) for start in range(0, len(asked), 8)]
    assert all(len(batch) == 1 for batch in batches)
    listings = [batch == {"Trace the shapes."} for batch in batches]
    assert sum(listings[:25]) > 15 > 10 > sum(listings[75:100]) and not any(listings[100:])


def test_images_are_still_or_not_shown_at_all():
    stage = image_stage(mix={"questions": [1, 1], "unseen": [1, 1]})
    rows = list(image_conversations(stage, seed=0).take(160))
    shown = [row for row in rows if row["images"]]
    assert 40 < len(shown) < 120 and {row["images"][0].size for row in shown} == {(96, 96)}
    assert all(row["messages"][0]["content"][0]["type"] == "text" for row in rows if not row["images"])


def test_images_of_a_simpler_world_have_fewer_shapes():
    stage = image_stage(most_shapes=1, mix={"listing": [1, 1]})
    listings = [row["messages"][1]["content"][0]["text"] for row in image_conversations(stage, seed=0).take(40)]
    assert not any("," in listing for listing in listings)


@pytest.mark.parametrize(("instructions", "bf16"), [({"avx2": True}, False), ({"avx512_bf16": True}, True)])
def test_training_is_in_bfloat16_where_the_processor_has_it(tmp_path, monkeypatch, instructions, bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_args(tmp_path, video_stage(), seed=0, workers=0).bf16 is bf16


def test_an_unknown_kind_is_refused(rendered):
    with pytest.raises(ValueError, match=r"no conversations of the kinds \['unseen'\]; there are listing"):
        video_conversations(rendered, video_stage(mix={"unseen": [1, 1]}), seed=0)


def test_a_recipe_with_a_wrong_value_is_refused(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.read_text().replace("lora_r", "lora_rank"))
    with pytest.raises(ValueError, match="recipe.yaml is not a recipe like .*lora_rank"):
        read_recipe(file)


def test_patches_are_labelled_with_the_shape_that_is_on_them():
    rng, labelled = random.Random(0), 0
    for _ in range(50):
        scene, frame = scenes.sample_scene(rng), rng.randrange(scenes.NUM_FRAMES)
        patches = drawing.draw_frame(scene, frame).reshape(6, 16, 6, 16, 3).swapaxes(1, 2).reshape(36, 256, 3)
        places = {row["answer"] for row in questions.image_questions(scene, frame, rng) if row["type"] == "grid"}
        for patch, label in zip(patches, label_patches(scene, frame, grid=6).tolist(), strict=True):
            form, colour, column, row = label
            if form:
                colours = (patch == list(scenes.COLOURS.values())[colour - 1]).all(-1)
                assert colours.any() and f"column {column + 1}, row {row + 1}" in places
                labelled += 1
            else:
                assert label == [0, 0, IGNORE_INDEX, IGNORE_INDEX]
                assert (patch == scene.ground).all(-1).mean() > 0.5  # an edge of a shape at most
    assert labelled > 100


def test_stage_0_changes_the_tower_and_nothing_else(tmp_path):
    processor = AutoProcessor.from_pretrained(NANO)
    model = AutoModelForImageTextToText.from_config(build_config(processor, BACKBONES["clip-llama"], 32))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    stage = Stage(steps=2, batch_size=16, learning_rate=4e-3, most_shapes=1)
    args = training_args(tmp_path, stage, seed=0, workers=0)
    train_tower(model, processor.image_processor, args, stage.most_shapes, seed=0)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all("vision_tower" in name for name in changed)


def test_stage_0_learns_from_frames_without_shapes():
    model, processor = load_model(NANO, check=False), AutoProcessor.from_pretrained(NANO)
    empty = ((scene, 0) for scene, _ in Frames(most_shapes=1, seed=0) if scene.actors[0].path[0] is None)
    batch = collate_frames(processor.image_processor, 6, list(islice(empty, 2)))
    loss = PatchLabels(model.model)(**batch)["loss"]
    loss.backward()
    patches = model.model.vision_tower.get_parameter("embeddings.patch_embedding.weight")
    assert loss > 0 and patches.grad.isfinite().all()


def test_places_are_in_the_content_of_the_shipped_tower():
    """A linear function of a patch's features gives the column and row of the shape on it, on frames not fitted to."""
    model, processor = load_model(NANO, check=False), AutoProcessor.from_pretrained(NANO)
    frames = list(islice(Frames(most_shapes=3, seed=5), 200))
    batch = collate_frames(processor.image_processor, 6, frames)
    with torch.inference_mode():
        features = model.model.encode_frames(batch["pixel_values"].to(model.dtype)).last_hidden_state.float()
    labels = batch["labels"]
    shown = labels[..., 0] > 0
    features, cells = pad(features[shown], (0, 1), value=1), labels[shown][:, 2:].float()
    half = len(cells) // 2
    fit = torch.linalg.lstsq(features[:half], cells[:half]).solution
    assert (features[half:] @ fit - cells[half:]).abs().mean() < 0.5
