"""
Video instructions -> training batches: decodes, samples, expands placeholders, and masks all but the assistant's
words.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import ProcessorMixin

IGNORE_INDEX = -100


@dataclass
class VideoChatCollator:
    """
    Makes a batch of conversations about videos and images.

    An example is a dict with `messages` (`[{"role", "content"}, ...]`, the content a string or a list of parts) and,
    where the parts of type "video" and "image" do not name their file themselves, `videos` and `images`: lists in the
    order of these parts.

    Args:
        processor: A [`PllavaProcessor`] whose chat template marks the assistant's words with `{% generation %}`.
        sampling (`str`): How frames are drawn from a clip: "random" in each interval, as the paper trains, or
        "uniform".
    """

    processor: ProcessorMixin
    sampling: str = "random"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `input_ids`, `attention_mask` and `labels`, int64 `(batch, sequence)`, padded on the right; `labels` are
            -100 except on the assistant's words and the end token behind them. `pixel_values_videos` float32 `(videos,
            frames, 3, height, width)` and `pixel_values` float32 `(images, 3, height, width)` where the batch has any.
        """
        batch = self.processor.apply_chat_template(
            [with_media(example) for example in examples],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding": True, "padding_side": "right", "sampling": self.sampling},
        )
        supervised = batch.pop("assistant_masks").bool()
        return {**batch, "labels": batch["input_ids"].masked_fill(~supervised, IGNORE_INDEX)}


def with_media(example: dict[str, Any]) -> list[dict[str, Any]]:
    """The example's messages, each video and image part naming its source."""
    sources = {kind: iter(example.get(f"{kind}s") or []) for kind in ("video", "image")}
    messages = []
    for message in example["messages"]:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        messages.append({**message, "content": [_with_source(part, sources) for part in content]})
    return messages


def _with_source(part: dict[str, Any], sources: dict[str, Any]) -> dict[str, Any]:
    # `datasets` fills the keys that other rows' parts have with None: leave those out
    part = {key: value for key, value in part.items() if value is not None}
    kind = part["type"]
    if kind not in sources or part.keys() & {kind, "path", "url"}:
        return part
    source = next(sources[kind], None)
    if source is None:
        raise ValueError(f"The messages have more {kind} parts than the example has {kind}s")
    return {**part, kind: source}
