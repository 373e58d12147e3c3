"""Inputs for tests of the model: chats with all kinds of media, token ids and pixels."""

from pathlib import Path

import torch

from pllava import PllavaForConditionalGeneration, PllavaProcessor

VIDEO_TOKENS = 36  # 4 x 3 x 3
TOKENS = 6  # the length of an answer: enough to tell two apart


def user(text: str, *media: dict) -> dict:
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def mixed_chats(clips: list[Path]) -> list[list[dict]]:
    """Eight chats: without media, with an image, one or two videos, both kinds, several turns, a system text."""
    first, second, third = ({"type": "video", "path": str(clip)} for clip in clips)
    image = {"type": "image", "image": torch.randint(256, (3, 48, 48), dtype=torch.uint8).numpy()}
    return [
        [user("Which of the two is larger?")],
        [user("What is in the picture?", image)],
        [user("What happens?", first)],
        [user("Which of the two is longer, and by how much?", second, third)],
        [user("Is the picture from the video?", image, third)],
        [
            user("What happens?", third),
            assistant("A red circle moves."),
            user("And here?", first),
            assistant("It"),
            user("?"),
        ],
        [{"role": "system", "content": "Be brief."}, user("How often does it bounce?", second)],
        [user("Hello"), assistant("Hello."), user("Compare them.", first, image, second, image)],
    ]


def encode(processor: PllavaProcessor, chats: list, padding_side: str = "left", **kwargs) -> dict[str, torch.Tensor]:
    return processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": padding_side, **kwargs},
    )


def text_with(processor: PllavaProcessor, videos: int = 0, images: int = 0) -> torch.Tensor:
    """Token ids `(1, sequence)` of a text with this many videos and images."""
    placeholders = processor.video_token * VIDEO_TOKENS * videos + processor.image_token * VIDEO_TOKENS * images
    return processor.tokenizer(f"USER:{placeholders} What happens? ASSISTANT:", return_tensors="pt").input_ids


def pixels(videos: int, frames: int = 4, seed: int = 0, size: int = 48) -> torch.Tensor:
    return torch.randn(videos, frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_equals_its_samples(
    model: PllavaForConditionalGeneration, processor: PllavaProcessor, chats: list, padding_side: str
) -> None:
    """A padded batch gives the logits of its samples, one by one."""
    batch = encode(processor, chats, padding_side)
    logits = model(**batch).logits
    for row, chat in enumerate(chats):
        alone = model(**encode(processor, [chat])).logits[0]
        torch.testing.assert_close(logits[row][batch["attention_mask"][row].bool()], alone, rtol=0, atol=1e-4)
