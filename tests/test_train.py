"""The collator and the trainer: the real SFTTrainer on real clips."""

import json

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForImageTextToText
from trl import SFTConfig

from pllava import lora_config
from pllava.train import VideoChatCollator, build_trainer


@pytest.fixture
def clip(clips):
    return str(clips[0])


def conversation(*turns, media=()):
    messages = []
    for question, answer in turns:
        content = [*({"type": kind} for kind in media), {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        media = ()
    return messages


def test_labels_are_the_assistants_words_and_end_tokens(processor, clip):
    turns = [("Say USER: or ASSISTANT: to me?", "red circle"), ("And now?", "it leaves")]
    example = {"messages": conversation(*turns, media=["video"]), "videos": [clip]}
    text_only = {"messages": conversation(("How many?", "three"))}
    batch = VideoChatCollator(processor)([example, text_only])
    learned = [row[row != -100] for row in batch["labels"]]
    assert processor.tokenizer.decode(learned[0]) == "red circle</s>it leaves</s>"
    assert processor.tokenizer.decode(learned[1]) == "three</s>"
    assert batch["pixel_values_videos"].shape == (1, 4, 3, 48, 48)
    assert (batch["input_ids"] == processor.video_token_id).sum() == processor.num_visual_tokens
    assert batch["labels"][batch["attention_mask"] == 0].eq(-100).all()
    assert batch["attention_mask"][1, -1] == 0  # padded on the right


def test_random_sampling_is_random_and_uniform_is_not(processor, clip):
    example = {"messages": conversation(("What?", "red"), media=["video"]), "videos": [clip]}
    random, uniform = VideoChatCollator(processor), VideoChatCollator(processor, sampling="uniform")
    assert not torch.equal(random([example])["pixel_values_videos"], random([example])["pixel_values_videos"])
    assert torch.equal(uniform([example])["pixel_values_videos"], uniform([example])["pixel_values_videos"])


def test_a_part_without_a_source_is_an_error(processor, clip):
    example = {"messages": conversation(("What?", "red"), media=["video", "video"]), "videos": [clip]}
    with pytest.raises(ValueError, match="more video parts than the example has videos"):
        VideoChatCollator(processor)([example])


def test_training_changes_the_adapter_and_the_projector_only(processor, checkpoint, clip, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = Dataset.from_list(
        [{"messages": conversation(("What is it?", "purple purple purple"), media=["video"]), "videos": [clip]}] * 4
    )
    args = SFTConfig(
        str(tmp_path / "out"),
        max_steps=80,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        warmup_steps=0,
        logging_steps=5,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = build_trainer(model, processor, rows, args, peft_config=lora_config(r=8, lora_alpha=8))
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "multi_modal_projector.modules_to_save" in name for name in trainable)
    assert any("multi_modal_projector" in name for name in trainable)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(losses[-1]) < 0.5 * float(losses[0]), losses

    trainer.save_model()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"]
    base = AutoModelForImageTextToText.from_pretrained(checkpoint)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload().eval()
    after = loaded.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("_proj" in name and "vision" not in name for name in changed), changed
    batch = VideoChatCollator(processor, sampling="uniform")([rows[0]])
    with torch.no_grad():
        trained, merged = trainer.model.eval()(**batch).loss, loaded(**batch).loss
    torch.testing.assert_close(trained, merged, atol=1e-3, rtol=1e-3)
