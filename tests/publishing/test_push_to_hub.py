"""`push_to_hub` of models, processors and trainers, which users of transformers know: the Hub accepts the cards."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
from hub_client import card_of, commits, run
from local_hub import local_hub

import pllava
from pllava.model_card_pllava import build_card
from pllava.model_pooling import choose_pooling
from pllava.train.saving import name_base

ROOT = Path(pllava.__file__).parent


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub").mkdir()
    with local_hub(tmp_path / "hub") as hub:
        yield hub


LOAD = (
    "import pllava; from transformers import AutoProcessor; name = {!r}; model = pllava.load_model(name, check=False);"
)


def test_a_model_and_a_processor(hub, checkpoint, tmp_path):
    processor = "AutoProcessor.from_pretrained(name).push_to_hub('me/mine')"
    run(hub, tmp_path, "-c", LOAD.format(checkpoint) + processor)
    first = card_of(hub, "me/mine")
    assert first.text.startswith("\n# mine") and "placeholder" in first.text and first.data.pipeline_tag is None
    run(hub, tmp_path, "-c", LOAD.format(checkpoint) + "model.push_to_hub('me/mine')")
    card = card_of(hub, "me/mine")
    assert card.data.pipeline_tag == "video-text-to-text" and 'pipeline("video-text-to-text"' in card.text
    run(hub, tmp_path, "-c", LOAD.format(checkpoint) + processor)
    assert str(card_of(hub, "me/mine")) == str(card), "the processor's card does not replace the model's"


@pytest.mark.parametrize(
    ("pooling", "words"),
    [
        ("average-16x12x12", "average-pooled to 16 x 12 x 12 = 2,304 tokens"),
        ("slowfast", "pooled along a slow and a fast path, to 4 x 12 x 24 and 16 x 4 x 4 = 1,408 tokens"),
        ("merge", "merged where they are alike in time, to 8 x 12 x 12 = 1,152 tokens"),
    ],
)
def test_cards_say_in_words_how_videos_and_images_are_pooled(processor, pooling, words):
    chosen = choose_pooling(pllava.PllavaConfig(), pooling)
    config = pllava.PllavaConfig(pooling=chosen.name, pooling_shape=chosen.shape)
    processor = copy.copy(processor)
    processor.pooling, processor.pooling_shape = chosen.name, chosen.shape
    cards = [build_card("me/mine", config), build_card("me/mine", processor, processor=True)]
    for text in (" ".join(card.text.split()) for card in cards):
        assert words in text and "An image" not in text
    config.image_pooling_shape = processor.image_pooling_shape = [1, 24, 24]
    cards = [build_card("me/mine", config), build_card("me/mine", processor, processor=True)]
    for text in (" ".join(card.text.split()) for card in cards):
        assert words in text and " An image is read by itself, as 24 x 24 = 576 tokens. ## How to use" in text


def test_a_card_on_the_hub_that_was_edited_stays(hub, checkpoint, tmp_path):
    push = LOAD.format(checkpoint) + "model.push_to_hub('me/mine')"
    run(hub, tmp_path, "-c", push)
    card = hub.folder / "me" / "mine" / "README.md"
    card.write_text(card.read_text().replace("## Limits", "## What I found\n\n## Limits"))
    run(hub, tmp_path, "-c", push)
    assert "What I found" in card.read_text()


def test_a_merged_adapter(hub, checkpoint, tmp_path):
    """A model that PEFT has merged is pushed with the card of a model, not with an empty one."""
    merge = (
        "from peft import get_peft_model; model = get_peft_model(model, pllava.lora_config(r=4)).merge_and_unload();"
    )
    run(hub, tmp_path, "-c", LOAD.format(checkpoint) + merge + "model.push_to_hub('me/merged')")
    card = card_of(hub, "me/merged")
    assert card.data.pipeline_tag == "video-text-to-text" and "Model Card for Model ID" not in card.text


@pytest.fixture(scope="module")
def captions(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    rows = [f"{shutil.copy(clip, folder) and clip.name},A red circle." for clip in clips]
    (folder / "captions.csv").write_text("\n".join(["video,caption", *rows]))
    return folder


def test_a_trainer_of_transformers(hub, captions, tmp_path):
    """The script in examples/, which has `trainer.push_to_hub()` added at its end."""
    script = (ROOT / "examples" / "finetune_on_captions.py").read_text().replace("num_train_epochs=3", "max_steps=2")
    (tmp_path / "train.py").write_text(script.replace("trainer.save_model()", "trainer.push_to_hub()"))
    result = run(hub, tmp_path, "train.py", captions)
    assert commits(hub) == ["End of training"]
    assert "names its base model by a folder of this machine" in result.stderr
    card = card_of(hub, "me/my-captioner")
    assert card.data.pipeline_tag == "video-text-to-text" and card.data.library_name == "peft"
    assert card.data.get("base_model") is None and "**The base model is a folder" in card.text
    assert 'from_pretrained("me/my-captioner"' in card.text and "### Framework versions" not in card.text
    assert "| steps | 2 of 2," in card.text and "loss.png" in card.text
    assert "average-pooled to 16 x 3 x 3 = 144 tokens" in card.text
    assert re.search(r"\| frames of a clip \| 16(, drawn \w+)?, average-pooled to 16 x 3 x 3 \|", card.text)
    assert not list((hub.folder / "me" / "my-captioner").glob("*.bin"))


def test_a_trainer_names_a_base_on_the_hub_by_its_commit(hub, captions, tmp_path):
    run(hub, tmp_path, "pllava", "push", "nano", "me/nano")
    script = (ROOT / "examples" / "finetune_on_captions.py").read_text().replace("num_train_epochs=3", "max_steps=2")
    script = script.replace("pllava.NANO", '"me/nano"').replace("trainer.save_model()", "trainer.push_to_hub()")
    (tmp_path / "train.py").write_text(script)
    result = run(hub, tmp_path, "train.py", captions)
    assert "folder of this machine" not in result.stderr
    config = json.loads((hub.folder / "me" / "my-captioner" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/nano"
    assert config["revision"] == hub.find("models", "me/nano").resolve("main")
    card = card_of(hub, "me/my-captioner")
    assert card.data.base_model == "me/nano" and card.data.base_model_relation == "adapter"
    assert card.data.license == "apache-2.0"


def test_a_base_model_that_is_not_the_one_on_the_hub_is_refused(checkpoint):
    model = pllava.load_model(checkpoint, check=False)
    model.config.name_or_path = "me/nano"
    with pytest.raises(ValueError, match="loaded from me/nano on the Hub, but `base_model` is me/other"):
        name_base(model, "me/other")
