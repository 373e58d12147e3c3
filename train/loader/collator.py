"""
Video instructions -> training batches: decodes, samples, expands placeholders, and masks all but the assistant's
words.
"""

import os
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from ...data.media import fetch, find_medium
from ...video_decoding_pllava import VideoTruncatedWarning
from ...video_images_pllava import read_image
from ...workers import with_retries
from .feature_cache import FeatureCache
from .skipped import Skipped, SkippedExamples

IGNORE_INDEX = -100


@dataclass
class VideoChatCollator:
    """
    Makes a batch of conversations about videos and images.

    An example is a dict with `messages` (`[{"role", "content"}, ...]`, the content a string or a list of parts) and,
    where the parts of type "video" and "image" do not name their file themselves, `videos` and `images`: lists in the
    order of these parts.

    What cannot be read, or is too long, is left out of the batch, logged and counted by `skipped`.

    Args:
        processor: A [`PllavaProcessor`] whose chat template marks the assistant's words with `{% generation %}`.
        sampling (`str`): How frames are drawn from a clip: "random" in each interval, as the paper trains, or
            "uniform", "middle" or "start".
        max_length (`int`, *optional*): Limit of an example in tokens, those of its videos counted. A longer one loses
            its last turns; if not even one fits, it is left out.
        skipped ([`SkippedExamples`], *optional*): Counts what is left out, can write it to a file, and stops the run
            if it is too much.
        features ([`FeatureCache`], *optional*): Where the vision tower's features of a clip are looked up.

    Raises:
        ValueError: if no text fits into `max_length` beside a video.
    """

    processor: ProcessorMixin
    sampling: str = "random"
    max_length: int | None = None
    skipped: SkippedExamples = field(default_factory=SkippedExamples)
    features: FeatureCache | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length <= self.processor.num_visual_tokens:
            raise ValueError(
                f"max_length={self.max_length} counts the {self.processor.num_visual_tokens} tokens of a video, too: "
                "add the length of the text to these (the paper takes 512), or set it to None"
            )

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Returns:
            `input_ids`, `attention_mask` and `labels`, int64 `(batch, sequence)`, padded on the right; `labels` are
            -100 except on the assistant's words and the end token behind them. `pixel_values_videos` float32 `(videos,
            frames, 3, height, width)` and `pixel_values` float32 `(images, 3, height, width)` where the batch has any.
            If nothing in the batch could be read, it is one token without a label.
        """
        results = [self.skipped.count(self.try_encode(example)) for example in examples]
        self.skipped.check(self.skipped.seen, self.skipped.unreadable)
        return self.pad([result for result in results if not isinstance(result, Skipped)])

    def try_encode(self, example: dict[str, Any], seed: int | None = None) -> dict[str, Any] | Skipped:
        """[`encode`], or what is wrong with the example."""
        media: list[str] = []
        try:
            if example.get("error"):  # the row was no conversation
                raise ValueError(example["error"])
            media += [find_medium(item).name for item in _media(example)]
            return with_retries(self.encode, example, seed)
        except (OSError, TemplateError, ValueError, VideoTruncatedWarning) as error:  # OSError: of a cache of features
            reason = "too long" if isinstance(error, TooLongError) else "unreadable"
            return Skipped(str(example.get("source")), str(example.get("id")), media, reason, str(error))

    def encode(self, example: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """
        Args:
            seed: Makes the frames that are drawn depend on nothing else.

        Returns:
            `input_ids` and `labels`, int64 `(sequence)`; the videos (`pixel_values_videos`, `(frames, 3, height,
            width)` each) and images (`pixel_values`, `(3, height, width)` each) as lists; `feature_keys` of the videos
            (see [`read_video`]); `lost_turns`, how many of the assistant's turns did not fit. The media are tensors,
            which a worker hands over in shared memory; that takes a file descriptor and a connection for each, so that
            the rest are NumPy arrays.

        Raises:
            VideoDecodeError: if a video cannot be read.
            VideoTruncatedWarning: if it ends early: it is not the clip that was described.
            TooLongError: if not even the first answer fits.
        """
        messages = with_media(example)
        text = self.encode_text(messages)
        end, lost_turns = self._fitting(text["labels"])
        ids, labels = text["input_ids"][:end], text["labels"][:end]
        if (labels == IGNORE_INDEX).all():
            raise ValueError("The assistant says nothing in this conversation: there is nothing to learn")
        images, videos = (
            np.count_nonzero(ids == token) // self.processor.num_visual_tokens
            for token in (self.processor.image_token_id, self.processor.video_token_id)
        )
        return {
            "input_ids": ids,
            "labels": labels,
            "pixel_values": text["pixel_values"][:images],
            **self.read_videos(messages, videos, seed),
            "lost_turns": lost_turns,
        }

    def encode_text(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels` and images of a conversation; its videos are not read, only given their tokens."""
        blank = {"type": "video", "video": np.zeros((1, 2, 2, 3), dtype=np.uint8)}
        inputs = self.processor.apply_chat_template(
            [
                {**turn, "content": [blank if part["type"] == "video" else part for part in turn["content"]]}
                for turn in messages
            ],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
        )
        ids = inputs["input_ids"][0].numpy()
        labels = np.where(inputs["assistant_masks"][0], ids, IGNORE_INDEX)
        return {"input_ids": ids, "labels": labels, "pixel_values": list(inputs.get("pixel_values", ()))}

    def read_videos(self, messages: list[dict[str, Any]], count: int, seed: int | None) -> dict[str, list]:
        """The first `count` videos of a conversation as `pixel_values_videos`, and their `feature_keys`."""
        parts = [part for turn in messages for part in turn["content"] if part["type"] == "video"][:count]
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.random.default_generator.manual_seed(seed)
            videos = [self.read_video({key: part[key] for key in part if key != "type"}) for part in parts]
        return {"pixel_values_videos": [video for video, _ in videos], "feature_keys": [key for _, key in videos]}

    def read_video(self, source: dict[str, Any]) -> tuple[torch.Tensor, str | None]:
        """
        The frames of one video, `(frames, 3, height, width)`. With a cache of features: these, `(frames, patches, C)`,
        where it has them, else the frames and the key under which their features belong there.
        """
        medium, key = find_medium(source), None
        with warnings.catch_warnings():
            warnings.simplefilter("error", VideoTruncatedWarning)
            if self.features is not None:
                medium = replace(medium, content=fetch(medium))  # once, though it is read twice
                key = self.features.key(medium, self.sampling)
                if (found := self.features.load(key)) is not None:
                    return found, None
            clip = {"video": medium.content, **medium.bounds}
            inputs = self.processor.video_processor(clip, sampling=self.sampling, return_tensors="pt")
        return inputs["pixel_values_videos"][0], key

    def _fitting(self, labels: np.ndarray) -> tuple[int, int]:
        """Where the last of the assistant's turns that fit ends, and how many do not."""
        if self.max_length is None or len(labels) <= self.max_length:
            return len(labels), 0
        spoken = labels != IGNORE_INDEX
        ends = np.flatnonzero(spoken & ~np.append(spoken[1:], False)) + 1
        fitting = ends[ends <= self.max_length]
        if not len(fitting):
            raise TooLongError(f"{len(labels)} tokens, and no answer ends within the {self.max_length} let through")
        return int(fitting[-1]), len(ends) - len(fitting)

    def pad(self, encoded: list[dict[str, Any]]) -> dict[str, Any]:
        """What [`encode`] gave, as a batch (see [`__call__`])."""
        pad_id = self.processor.tokenizer.pad_token_id
        ids = [torch.from_numpy(example["input_ids"]) for example in encoded] or [torch.tensor([pad_id])]
        labels = [torch.from_numpy(example["labels"]) for example in encoded] or [torch.tensor([IGNORE_INDEX])]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }
        for name in ("pixel_values_videos", "pixel_values"):
            media = [item for example in encoded for item in example[name]]
            if media:
                batch[name] = _stack(media)
        return batch


@dataclass
class PreferenceCollator(VideoChatCollator):
    """
    Makes a batch for TRL's `DPOTrainer`: an example has `messages` that end with a question, and the better (`chosen`)
    and the worse (`rejected`) answer to it, as messages, too.
    """

    def encode(self, example: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """`chosen` and `rejected`, each as [`VideoChatCollator.encode`] gives it; labelled is the last answer only."""
        messages = with_media(example)
        answers = {name: self.encode_text(messages + with_media({"messages": example[name]})) for name in ANSWERS}
        for text in answers.values():
            if self.max_length is not None and len(text["labels"]) > self.max_length:
                raise TooLongError(f"{len(text['labels'])} tokens, of which {self.max_length} are let through")
            earlier = np.flatnonzero(text["labels"] == IGNORE_INDEX)
            prompt = earlier[earlier < np.flatnonzero(text["labels"] != IGNORE_INDEX).max()].max() + 1
            text["labels"][:prompt] = IGNORE_INDEX
        placeholders = np.count_nonzero(answers["chosen"]["input_ids"] == self.processor.video_token_id)
        videos = self.read_videos(messages, placeholders // self.processor.num_visual_tokens, seed)
        return {**{name: {**text, **videos} for name, text in answers.items()}, "lost_turns": 0}

    def pad(self, encoded: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Returns:
            As [`VideoChatCollator.__call__`], the chosen answers' rows and then the rejected ones', with
            `completion_mask` in place of `labels`: int64 `(batch, sequence)`, 1 on the answers.
        """
        batch = super().pad([example[name] for name in ANSWERS for example in encoded])
        labels = batch.pop("labels")
        return {**batch, "completion_mask": (labels != IGNORE_INDEX).long()}


ANSWERS = ("chosen", "rejected")


class TooLongError(ValueError):
    """Not even the first answer of a conversation fits into `max_length`."""


def _stack(media: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """One tensor, or a list where they differ in shape."""
    if len({item.shape for item in media}) > 1:
        return media
    if media[0].dtype == torch.bfloat16:  # features; NumPy does not know it
        return torch.stack(media)
    return torch.from_numpy(np.stack(media))  # in one thread: torch's would wait for the cores that workers are on


def _media(example: dict[str, Any]) -> list[Any]:
    return [*(example.get("videos") or []), *(example.get("images") or [])]


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
    if kind not in sources:
        return part
    if not part.keys() & {kind, "path", "url"}:
        part[kind] = next(sources[kind], None)
        if part[kind] is None:
            raise ValueError(f"The messages have more {kind} parts than the example has {kind}s")
    return {"type": kind, "image": _open_image(part)} if kind == "image" else part


def _open_image(source: Any) -> Any:
    """An image in a file, an address or bytes, also as `datasets` writes it; what is decoded already stays."""
    content = find_medium(source).content
    return read_image(content) if isinstance(content, (str, os.PathLike, bytes)) else content
