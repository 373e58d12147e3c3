"""The collator: labels, sampling, and what it does with `max_length`."""

import pytest
import torch
from train_examples import conversation

from pllava.train import VideoChatCollator

pytest_plugins = ["train_examples"]


def test_labels_are_the_assistants_words_and_end_tokens(processor, clip):
    turns = [("Say USER: or ASSISTANT: to me?", "red circle"), ("And now?", "it leaves")]
    example = {"messages": conversation(*turns, media=["video"]), "videos": [clip]}
    text_only = {"messages": conversation(("How many?", "three"))}
    batch = VideoChatCollator(processor)([example, text_only])
    learned = [row[row != -100] for row in batch["labels"]]
    assert processor.tokenizer.decode(learned[0]) == "red circle</s>it leaves</s>"
    assert processor.tokenizer.decode(learned[1]) == "three</s>"
    assert batch["pixel_values_videos"].shape == (1, 4, 3, 48, 48)
    assert (batch["input_ids"] == processor.video_token_id).sum() == processor.num_video_tokens
    assert batch["labels"][batch["attention_mask"] == 0].eq(-100).all()
    assert batch["attention_mask"][1, -1] == 0  # padded on the right


def test_workers_send_a_quarter_of_the_bytes_of_normalised_frames(processor, clip):
    example = {"messages": conversation(("What?", "red"), media=["video"]), "videos": [clip]}
    collator = VideoChatCollator(processor, sampling="uniform")
    (sent,), batch = collator.encode(example)["pixel_values_videos"], collator([example])
    expected = processor.video_processor(clip, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(batch["pixel_values_videos"], expected)
    assert sent.nbytes == expected.nbytes / 4


def test_random_sampling_is_random_and_uniform_is_not(processor, clip):
    example = {"messages": conversation(("What?", "red"), media=["video"]), "videos": [clip]}
    random, uniform = VideoChatCollator(processor), VideoChatCollator(processor, sampling="uniform")
    assert not torch.equal(random([example])["pixel_values_videos"], random([example])["pixel_values_videos"])
    assert torch.equal(uniform([example])["pixel_values_videos"], uniform([example])["pixel_values_videos"])


def test_a_part_without_a_source_is_an_error(processor, clip):
    example = {"messages": conversation(("What?", "red"), media=["video", "video"]), "videos": [clip]}
    with pytest.raises(ValueError, match="more video parts than the example has videos"):
        VideoChatCollator(processor).encode(example)


def test_a_long_conversation_loses_its_last_turns(processor, clip):
    turns = [("What is it?", "red circle"), ("And now?", "it leaves"), ("Why?", "red " * 8 + "red")]
    example = {"messages": conversation(*turns, media=["video"]), "videos": [clip]}
    whole = VideoChatCollator(processor).encode(example)
    for limit in range(processor.num_video_tokens + 1, len(whole["input_ids"]) + 1):
        collator = VideoChatCollator(processor, max_length=limit)
        batch = collator([example])
        answers = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100]).split("</s>")[:-1]
        assert answers == [answer.strip() for _, answer in turns][: len(answers)]
        assert batch["input_ids"].shape[1] <= limit
        visual = (batch["input_ids"] == processor.video_token_id).sum()
        if answers:
            assert visual == processor.num_video_tokens and collator.skipped.lost_turns == 3 - len(answers)
        else:
            assert collator.skipped.too_long == 1 and not visual and "pixel_values_videos" not in batch
    assert len(answers) == 3


def test_video_of_a_lost_turn_is_dropped(processor, clips):
    messages = conversation(("What?", "red"), media=["video"]) + conversation(("And this?", "blue"), media=["video"])
    example = {"messages": messages, "videos": [str(clips[0]), str(clips[1])]}
    batch = VideoChatCollator(processor, max_length=2 * processor.num_video_tokens)([example])
    assert batch["pixel_values_videos"].shape[0] == 1
    assert VideoChatCollator(processor)([example])["pixel_values_videos"].shape[0] == 2


def test_max_length_without_room_for_text_is_an_error(processor):
    with pytest.raises(ValueError, match="includes the 36 tokens of a video"):
        VideoChatCollator(processor, max_length=36)
