"""The "video-text-to-text" pipeline and transformers' own: videos, lists, streams, chats, batches, errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from model_inputs import TOKENS
from PIL import Image
from transformers import Pipeline, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import pllava
from pllava import PllavaForConditionalGeneration, PllavaProcessor, VideoTextToTextPipeline

QUESTION = "What happens in the video?"


def part(clip: Path) -> dict:
    return {"type": "video", "path": str(clip)}


def chat(*media: dict, text: str = QUESTION) -> list[dict]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def pipe(model: PllavaForConditionalGeneration, processor: PllavaProcessor) -> VideoTextToTextPipeline:
    return pipeline("video-text-to-text", model=model, processor=processor, max_new_tokens=TOKENS, device="cpu")


def texts(answers: Any) -> list[str]:
    return [records[0]["generated_text"] for records in answers]


# --- transformers' pipelines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_stock_pipelines_take_a_video_in_a_chat(
    checkpoint: str, clips: list[Path], answer: Callable[..., str], task: str
) -> None:
    stock = pipeline(task, model=checkpoint, max_new_tokens=TOKENS, device="cpu")
    image = {"type": "image", "image": Image.new("RGB", (48, 48), (200, 0, 0))}
    for messages in (chat(part(clips[0])), chat(part(clips[0]), part(clips[1])), chat(image), chat()):
        records = stock(text=messages, return_full_text=False)
        assert records[0]["generated_text"] == answer(messages)
    spoken = stock(text=chat(part(clips[0])))[0]["generated_text"][-1]
    assert spoken == {"role": "assistant", "content": answer(chat(part(clips[0])))}


# --- videos, lists and streams ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(clips: list[Path], answer: Callable[..., str]) -> list[str]:
    """Return the answers about the clips, which must differ for the tests to show anything."""
    answers = [answer(chat(part(clip))) for clip in clips]
    assert len(set(answers)) == 3
    return answers


def test_question_is_answered(pipe: Pipeline, clips: list[Path], expected: list[str], answer: Callable) -> None:
    for video in (str(clips[0]), clips[0], clips[0].read_bytes(), {"path": clips[0]}, {"video": clips[0]}):
        assert pipe(video, text=QUESTION) == [{"generated_text": expected[0]}]
    with open(clips[0], "rb") as file:
        assert pipe(file, QUESTION) == [{"generated_text": expected[0]}]
    assert pipe(clips[0]) == [{"generated_text": answer(chat(part(clips[0]), text="Describe the video."))}]
    assert pipe({"path": clips[0], "text": QUESTION}) == [{"generated_text": expected[0]}]
    assert pipe({"path": clips[0], "start": 1.0}, QUESTION) == [
        {"generated_text": answer(chat({**part(clips[0]), "start": 1.0}))}
    ]


def test_list_of_frames_is_one_video(pipe: Pipeline) -> None:
    frames = [Image.new("RGB", (48, 48), (60 * number, 0, 0)) for number in range(4)]
    array = np.stack([np.array(frame) for frame in frames])
    assert pipe(frames, text=QUESTION) == pipe(array, text=QUESTION)
    assert isinstance(pipe(frames, text=QUESTION)[0], dict)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_lists_keep_order(
    pipe: Pipeline, clips: list[Path], expected: list[str], answer: Callable, batch_size: int
) -> None:
    assert texts(pipe(clips, text=QUESTION, batch_size=batch_size)) == expected
    questions = [QUESTION, "Which of the two is larger, the first one or the second one?", "How often?"]
    by_question = [answer(chat(part(clip), text=text)) for clip, text in zip(clips, questions, strict=True)]
    assert texts(pipe(clips, text=questions, batch_size=batch_size)) == by_question
    rows = [{"video": str(clip), "text": text} for clip, text in zip(clips, questions, strict=True)]
    assert texts(pipe(rows, batch_size=batch_size)) == by_question


def test_question_with_special_tokens_is_treated_as_text(
    pipe: Pipeline, checkpoint: str, clips: list[Path], expected: list[str], answer: Callable
) -> None:
    questions = [QUESTION, "What is <video>?", "Is </s><image> <|im_end|> USER: text?"]
    alone = [answer(chat(part(clip), text=text)) for clip, text in zip(clips, questions, strict=True)]
    assert texts(pipe(clips, text=questions, batch_size=3)) == alone and alone[0] == expected[0]
    stock = pipeline("image-text-to-text", model=checkpoint, max_new_tokens=TOKENS, device="cpu")
    records = stock(text=chat(part(clips[1]), text=questions[1]), return_full_text=False)
    assert records[0]["generated_text"] == alone[1]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_streams_keep_order(pipe: Pipeline, clips: list[Path], expected: list[str], batch_size: int) -> None:
    def rows() -> Any:
        for number, clip in enumerate(clips):
            yield {"id": number, "video": {"path": str(clip), "bytes": None}, "text": QUESTION}

    options = {"batch_size": batch_size}
    assert texts(pipe(iter(clips), text=QUESTION, **options)) == expected
    assert texts(pipe((clip for clip in clips), text=QUESTION, **options)) == expected
    assert texts(pipe(rows(), **options)) == expected
    assert texts(pipe((chat(part(clip)) for clip in clips), **options)) == expected
    assert texts(pipe(IterableDataset.from_generator(rows), **options)) == expected
    assert texts(pipe(Dataset.from_list(list(rows())), **options)) == expected
    assert texts(pipe(KeyDataset(list(rows()), "video"), text=QUESTION, **options)) == expected


def test_streams_are_read_lazily(pipe: Pipeline, clips: list[Path], expected: list[str]) -> None:
    read = []

    def endless() -> Any:
        while True:
            read.append(1)
            yield clips[0]

    answers = iter(pipe(endless(), text=QUESTION, batch_size=2))
    assert [next(answers), next(answers)] == [[{"generated_text": expected[0]}]] * 2
    assert len(read) < 8


# --- chats and batches -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chats(clips: list[Path]) -> list[list[dict]]:
    """Return chats whose inputs differ in keys and sizes: without media, with videos, with an image and a video."""
    image = {"type": "image", "image": Image.new("RGB", (48, 48), (200, 0, 0))}
    turns = [*chat(part(clips[2])), {"role": "assistant", "content": "It bounces."}, *chat(text="How often?")]
    return [
        chat(text="Hello"),
        chat(part(clips[0]), part(clips[1])),
        chat(part(clips[1]), part(clips[0]), text="Which of the two is larger?"),
        chat(image, part(clips[2])),
        turns,
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batched_chats_equal_single_chats(
    pipe: Pipeline, chats: list, answer: Callable[..., str], batch_size: int
) -> None:
    alone = [answer(messages) for messages in chats]
    assert texts(pipe(chats, return_full_text=False, batch_size=batch_size)) == alone
    assert texts(pipe(text=chats, return_full_text=False, batch_size=batch_size)) == alone
    full = texts(pipe(chats, batch_size=batch_size))
    assert [messages[-1] for messages in full] == [{"role": "assistant", "content": text} for text in alone]
    assert [messages[:-1] for messages in full] == chats


def test_chat_is_answered_or_continued(pipe: Pipeline, chats: list, answer: Callable[..., str]) -> None:
    for messages in (pipe(chats[1]), pipe(text=chats[1])):
        assert messages[0]["generated_text"][-1]["content"] == answer(chats[1])
    started = [*chats[1], {"role": "assistant", "content": [{"type": "text", "text": "It"}]}]
    continued = pipe(started)[0]["generated_text"]
    assert len(continued) == 2 and continued[-1]["content"][0]["text"].startswith("It")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_options_are_applied(pipe: Pipeline, clips: list[Path], answer: Callable[..., str], batch_size: int) -> None:
    options = {"batch_size": batch_size}
    two = pipe(clips[:2], text=QUESTION, processor_kwargs={"num_frames": 2}, **options)
    assert texts(two) == [answer(chat(part(clip)), num_frames=2) for clip in clips[:2]]
    ragged = pipe(clips[:2], text=QUESTION, processor_kwargs={"fps": 4}, **options)
    assert texts(ragged) == [answer(chat(part(clip)), fps=4) for clip in clips[:2]]
    sampled = pipe(clips[:2], text=QUESTION, generate_kwargs={"do_sample": True, "num_return_sequences": 3}, **options)
    assert [len(records) for records in sampled] == [3, 3]
    two_best = pipe(clips[:2], text=QUESTION, generate_kwargs={"num_beams": 2, "num_return_sequences": 2}, **options)
    best = pipe(clips[:2], text=QUESTION, generate_kwargs={"num_beams": 2}, **options)
    assert texts(two_best) == texts(best)
    ids = pipe(clips[:2], text=QUESTION, return_tensors=True, **options)
    assert all(set(records[0]) == {"generated_token_ids"} for records in ids)


def test_pipeline_runs_in_half_precision(
    model: PllavaForConditionalGeneration, checkpoint: str, clips: list[Path], expected: list[str]
) -> None:
    half = pipeline(
        "video-text-to-text", checkpoint, trust_remote_code=True, dtype="bfloat16", max_new_tokens=TOKENS, device="cpu"
    )
    assert half.model.dtype == half.dtype != model.dtype
    answers = half([*clips, clips[0]], text=QUESTION, batch_size=2)
    assert len(answers) == 4 and answers[0] == answers[3]


def test_task_is_registered_with_and_without_remote_code(
    checkpoint: str, clips: list[Path], expected: list[str]
) -> None:
    """The checkpoint refers to its remote code; `import pllava` registers the task for loaded models."""
    by_name = pipeline("video-text-to-text", checkpoint, trust_remote_code=True, max_new_tokens=TOKENS, device="cpu")
    assert by_name(clips[0], text=QUESTION) == [{"generated_text": expected[0]}]
    by_class = pipeline(
        "video-text-to-text",
        checkpoint,
        pipeline_class=pllava.VideoTextToTextPipeline,
        max_new_tokens=TOKENS,
        device="cpu",
    )
    assert type(by_class) is VideoTextToTextPipeline
    assert by_class(clips[0], text=QUESTION) == [{"generated_text": expected[0]}]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_invalid_inputs_raise_clear_errors(pipe: Pipeline, clips: list[Path]) -> None:
    with pytest.raises(ValueError, match="no video"):
        pipe(text=QUESTION)
    with pytest.raises(ValueError, match="3 videos, but 2 texts"):
        pipe(clips, text=[QUESTION, QUESTION])
    with pytest.raises(ValueError, match="nowhere.mp4.*no such file"):
        pipe("nowhere.mp4", text=QUESTION)
    with pytest.raises(ValueError, match="needs .path"):
        pipe([{"text": QUESTION}])
    with pytest.raises(ValueError, match="2 <video> placeholders, but 1|1 <video> placeholders, but 0"):
        pipe(chat({"type": "video"}))
