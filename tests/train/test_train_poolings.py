"""Training with other poolings than the average, and with images in full."""

import copy

import pytest
import torch
from datasets import Dataset
from PIL import Image
from train_examples import conversation, sft_config
from transformers import AutoModelForImageTextToText
from trl import DPOConfig
from video_files import moving_frames

from pllava import lora_config
from pllava.model_pooling import choose_pooling, set_pooling
from pllava.train import PreferenceCollator, VideoChatCollator, build_trainer

pytest_plugins = ["train_examples"]


@pytest.fixture
def load(checkpoint, processor):
    """Return a function that loads the checkpoint with a pooling, and with images in full if asked: a pair."""

    def with_pooling(pooling, images_in_full=False):
        model, changed = AutoModelForImageTextToText.from_pretrained(checkpoint), copy.deepcopy(processor)
        set_pooling(model, changed, choose_pooling(model.config, pooling))
        if images_in_full:
            model.config.image_pooling_shape = changed.image_pooling_shape = [1, 6, 6]
        return model, changed

    return with_pooling


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(moving_frames(1, seed=3)[0]).save(file)
    return str(file)


@pytest.fixture
def mixed(four_clips, picture):
    """Rows with a clip, with an image, with both, and without media."""
    (first, second, *_) = four_clips["videos"]
    rows = [
        {"messages": conversation(("What is it?", "red"), media=["video"]), "videos": first, "images": []},
        {"messages": conversation(("What is it?", "a circle"), media=["image"]), "videos": [], "images": [picture]},
        {
            "messages": conversation(("Is it in it?", "three"), media=["image", "video"]),
            "videos": second,
            "images": [picture],
        },
        {"messages": conversation(("How many?", "twice")), "videos": [], "images": []},
    ]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("pooling", ["average-2x2x2", "slowfast-2x3x3+4x2x2", "merge-3x3x3"])
def test_batch_of_images_in_full_and_pooled_videos_trains(load, mixed, tmp_path, pooling):
    model, processor = load(pooling, images_in_full=True)
    batch = VideoChatCollator(processor, sampling="uniform")(list(mixed))
    assert batch["pixel_values"].shape == (2, 3, 48, 48) and batch["pixel_values_videos"].shape == (2, 4, 3, 48, 48)
    counts = [(batch["input_ids"] == token).sum() for token in (processor.image_token_id, processor.video_token_id)]
    assert counts == [2 * 36, 2 * model.config.num_video_tokens] and model.config.num_video_tokens != 36
    before = copy.deepcopy(model.model.multi_modal_projector.state_dict())
    args = sft_config(tmp_path / "out", max_steps=18, per_device_train_batch_size=4, learning_rate=2e-2)
    trainer = build_trainer(model, processor, mixed, args, lora_config(r=8, lora_dropout=0.0), sampling="uniform")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2, losses
    trained = trainer.model.base_model.model.model.multi_modal_projector.modules_to_save["default"].state_dict()
    assert all(not torch.equal(weight, before[name]) for name, weight in trained.items())


def test_long_example_loses_its_image_in_full_with_its_turn(load, clips, picture):
    _, processor = load("slowfast-2x3x3+4x2x2", images_in_full=True)
    messages = conversation(("What?", "red"), media=["video"]) + conversation(("And here?", "blue"), media=["image"])
    example = {"messages": messages, "videos": [str(clips[0])], "images": [picture]}
    whole = VideoChatCollator(processor)([example])
    length = whole["input_ids"].shape[1]
    collator = VideoChatCollator(processor, max_length=length - 1)
    batch = collator([example])
    assert whole["pixel_values"].shape[0] == 1 and "pixel_values" not in batch
    assert batch["pixel_values_videos"].shape[0] == 1 and collator.skipped.lost_turns == 1
    assert not (batch["input_ids"] == processor.image_token_id).any()
    with pytest.raises(ValueError, match="includes the 34 tokens of a video"):
        VideoChatCollator(processor, max_length=34)


def test_dpo_learns_with_slowfast(load, four_clips, picture, tmp_path):
    """About an image in full and a video of two paths."""
    model, processor = load("slowfast-2x3x3+4x2x2", images_in_full=True)
    worse = [{"role": "assistant", "content": [{"type": "text", "text": "a blue one"}]}]
    rows = [
        {
            "messages": conversation(("Is it in it?", "red"), media=["image", "video"])[:1],
            "videos": row["videos"],
            "images": [picture],
            "chosen": row["messages"][1:],
            "rejected": worse,
        }
        for row in four_clips
    ]
    batch = PreferenceCollator(processor)(rows[:2])
    for row in batch["input_ids"]:
        assert (row == processor.video_token_id).sum() == 34 and (row == processor.image_token_id).sum() == 36
    assert batch["pixel_values_videos"].shape[0] == batch["pixel_values"].shape[0] == 4
    assert torch.equal(*batch["pixel_values_videos"].chunk(2)) and torch.equal(*batch["pixel_values"].chunk(2))
    args = DPOConfig(
        str(tmp_path / "out"),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        warmup_steps=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = build_trainer(model, processor, Dataset.from_list(rows), args, lora_config(r=8, lora_dropout=0.0))
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3) and last["loss"] < 0.4
    assert last["rewards/accuracies"] == 1


def test_cached_features_give_the_losses_of_merged_tokens(load, mixed, tmp_path):
    """The cache holds what comes before the pooling: it is used again with another one."""

    def losses(pooling, cache, tower_calls):
        model, processor = load(pooling, images_in_full=True)
        model.model.vision_tower.register_forward_hook(lambda *args: tower_calls.append(1))
        args = sft_config(tmp_path / "out", max_steps=3, per_device_train_batch_size=4)
        adapter = lora_config(r=4, lora_dropout=0.0)
        trainer = build_trainer(model, processor, mixed, args, adapter, sampling="uniform", feature_cache=cache)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    cache, calls, later_calls = str(tmp_path / "cache"), [], []
    plain = losses("merge-3x3x3", None, [])
    cached, again = losses("merge-3x3x3", cache, calls), losses("merge-3x3x3", cache, later_calls)
    assert cached == again == pytest.approx(plain, rel=1e-4)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    assert len(later_calls) == 3 < len(calls)  # for the images
    other = losses("average-2x2x2", cache, [])
    assert other == pytest.approx(losses("average-2x2x2", None, []), rel=1e-4)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
