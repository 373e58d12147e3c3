"""
From conversations to batches: videos are decoded and sampled, texts tokenized with placeholders for the visual tokens,
all but the assistant's words masked, and examples padded.
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
from ...video_processing_pllava import UNNORMALIZED
from ...workers import with_retries
from .feature_cache import FeatureCache
from .skipped import Skipped, SkippedExamples

IGNORE_INDEX = -100
PREFERENCES = ("chosen", "rejected")
MEDIA = {"pixel_values_videos", "pixel_values"}


@dataclass
class VideoChatCollator:
    """
    Makes a batch of conversations about videos and images.

    An example is a dict with `messages` (`[{"role", "content"}, ...]`, where the content is a string or a list of
    parts). `videos` and `images` list the sources of the "video" and "image" parts that have none, in their order.

    Examples that cannot be read, or are too long, are left out of the batch, logged and counted by `skipped`.

    Args:
        processor: A [`PllavaProcessor`] whose chat template marks the assistant's words with `{% generation %}`.
        sampling (`str`): How frames are sampled: "random" in each interval, as in the paper's training, "uniform",
            "middle" or "start".
        max_length (`int`, *optional*): Limit of an example in tokens, including those of its videos. A longer example
            loses its last turns; if not even the first fits, it is skipped.
        skipped ([`SkippedExamples`], *optional*): Counts skipped examples, can list them in a file, and stops the run
            if they are too many.
        features ([`FeatureCache`], *optional*): Cache of the vision tower's features of clips.

    Raises:
        ValueError: if `max_length` leaves no room for text beside a video.
    """

    processor: ProcessorMixin
    sampling: str = "random"
    max_length: int | None = None
    skipped: SkippedExamples = field(default_factory=SkippedExamples)
    features: FeatureCache | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length <= self.processor.num_video_tokens:
            raise ValueError(
                f"max_length={self.max_length} includes the {self.processor.num_video_tokens} tokens of a video: add "
                "the length of the text to these (the paper takes 512), or set it to None"
            )

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Returns:
            `input_ids`, `attention_mask` and `labels`, int64 `(batch, sequence)`, padded on the right; `labels` are
            -100 except on the assistant's words and the end token behind them. `pixel_values_videos` float32 `(videos,
            frames, 3, height, width)` and `pixel_values` float32 `(images, 3, height, width)` if the batch has any.
            If no example could be read, the batch is one token without a label.
        """
        results = [self.skipped.count(self.try_encode(example)) for example in examples]
        self.skipped.check(self.skipped.seen, self.skipped.unreadable)
        return self.to_device(self.pad([result for result in results if not isinstance(result, Skipped)]))

    def try_encode(self, example: dict[str, Any], seed: int | None = None) -> dict[str, Any] | Skipped:
        """Return [`encode`] of the example, or what is wrong with it."""
        media: list[str] = []
        try:
            if example.get("error"):  # the row is not a conversation
                raise ValueError(example["error"])
            items = [*(example.get("videos") or []), *(example.get("images") or [])]
            media += [find_medium(item).name for item in items]
            return with_retries(self.encode, example, seed)
        except (OSError, TemplateError, ValueError, VideoTruncatedWarning) as error:  # OSError: from the feature cache
            reason = "too long" if isinstance(error, TooLongError) else "unreadable"
            return Skipped(str(example.get("source")), str(example.get("id")), media, reason, str(error))

    def encode(self, example: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """
        Args:
            seed: For the sampling of frames; by default torch's generator is used as it is.

        Returns:
            `input_ids` and `labels`, int64 `(sequence)`; lists of the videos (`pixel_values_videos`, uint8 `(frames,
            3, height, width)` each, not normalised yet) and images (`pixel_values`, float32 `(3, height, width)`
            each); `feature_keys` of the videos (see [`read_video`]); `lost_turns`, how many of the assistant's turns
            did not fit. Only media are tensors, which workers send in shared memory, at the cost of a file descriptor
            each; the rest are NumPy arrays.

        Raises:
            VideoDecodeError: if a video cannot be read.
            VideoTruncatedWarning: if it ends early: the text describes the whole clip.
            TooLongError: if not even the first answer fits.
        """
        messages = add_sources(example)
        text = self.encode_text(messages)
        end, lost_turns = self._fit(text["labels"])
        ids, labels = text["input_ids"][:end], text["labels"][:end]
        if (labels == IGNORE_INDEX).all():
            raise ValueError("The assistant says nothing in this conversation: there is nothing to learn")
        images, videos = (
            np.count_nonzero(ids == token) // size
            for token, size in (
                (self.processor.image_token_id, self.processor.num_image_tokens),
                (self.processor.video_token_id, self.processor.num_video_tokens),
            )
        )
        return {
            "input_ids": ids,
            "labels": labels,
            "pixel_values": text["pixel_values"][:images],
            **self.read_videos(messages, videos, seed),
            "lost_turns": lost_turns,
        }

    def encode_text(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids`, `labels` and images of a conversation; its videos have tokens, but are not read."""
        blank = {"type": "video", "video": np.zeros((1, 2, 2, 3), dtype=np.uint8)}
        inputs = self.processor.apply_chat_template(
            [
                {**turn, "content": [blank if part["type"] == "video" else part for part in turn["content"]]}
                for turn in messages
            ],
            tokenize=True,
            return_dict=True,
            return_tensors=None,  # the mask is found by a loop over the tokens, which is slow on tensors
            return_assistant_tokens_mask=True,
        )
        ids = np.array(inputs["input_ids"][0])
        labels = np.where(inputs["assistant_masks"][0], ids, IGNORE_INDEX)
        return {"input_ids": ids, "labels": labels, "pixel_values": list(inputs.get("pixel_values", ()))}

    def _fit(self, labels: np.ndarray) -> tuple[int, int]:
        """Return where the last of the assistant's turns that fit ends, and how many do not fit."""
        if self.max_length is None or len(labels) <= self.max_length:
            return len(labels), 0
        is_answer = labels != IGNORE_INDEX
        ends = np.flatnonzero(is_answer & ~np.append(is_answer[1:], False)) + 1
        fitting = ends[ends <= self.max_length]
        if not len(fitting):
            raise TooLongError(f"{len(labels)} tokens, and no answer ends within the allowed {self.max_length}")
        return int(fitting[-1]), len(ends) - len(fitting)

    def read_videos(self, messages: list[dict[str, Any]], count: int, seed: int | None) -> dict[str, list]:
        """Return the first `count` videos of a conversation as `pixel_values_videos`, and their `feature_keys`."""
        parts = [part for turn in messages for part in turn["content"] if part["type"] == "video"][:count]
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.random.default_generator.manual_seed(seed)
            videos = [self.read_video({key: part[key] for key in part if key != "type"}) for part in parts]
        return {"pixel_values_videos": [video for video, _ in videos], "feature_keys": [key for _, key in videos]}

    def read_video(self, source: dict[str, Any]) -> tuple[torch.Tensor, str | None]:
        """
        Return the frames of a video, uint8 `(frames, 3, height, width)`, and the key under which the feature cache is
        to save their features; or, if the cache has these, the features, `(frames, patches, C)`, and no key.
        """
        medium, key = find_medium(source), None
        with warnings.catch_warnings():
            warnings.simplefilter("error", VideoTruncatedWarning)
            if self.features is not None:
                medium = replace(medium, content=fetch(medium))  # downloaded once, though it is read twice
                key = self.features.key(medium, self.sampling)
                if (features := self.features.load(key)) is not None:
                    return features, None
            clip = {"video": medium.content, **medium.bounds}
            inputs = self.processor.video_processor(clip, sampling=self.sampling, return_tensors="pt", **UNNORMALIZED)
        return inputs["pixel_values_videos"][0], key

    def pad(self, encoded: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate results of [`encode`] into a batch; its media are still lists, for [`to_device`]."""
        pad_id = self.processor.tokenizer.pad_token_id
        ids = [torch.from_numpy(example["input_ids"]) for example in encoded] or [torch.tensor([pad_id])]
        labels = [torch.from_numpy(example["labels"]) for example in encoded] or [torch.tensor([IGNORE_INDEX])]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }
        for name in MEDIA:
            if media := [item for example in encoded for item in example[name]]:
                batch[name] = media
        return batch

    def to_device(self, batch: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
        """
        Move the media of a result of [`pad`] to the device, normalise frames there, and stack media of one shape (see
        [`__call__`]). Changes and returns the batch. The copies are asynchronous, if from pinned memory to a GPU.
        """
        for name in MEDIA & batch.keys():
            media = [item.to(device, non_blocking=True) for item in batch[name]]
            has_one_shape = len({item.shape for item in media}) == 1
            media = [torch.stack(media)] if has_one_shape else [item[None] for item in media]
            if name == "pixel_values_videos":  # of the videos, those that are cached features have a dimension less
                normalize = self.processor.video_processor.normalize_frames
                media = [normalize(videos) if videos.ndim == 5 else videos for videos in media]
            batch[name] = media[0] if has_one_shape else [item[0] for item in media]
        return batch


@dataclass
class PreferenceCollator(VideoChatCollator):
    """
    Makes a batch for TRL's `DPOTrainer`. An example has `messages` that end with a question, and the better (`chosen`)
    and the worse (`rejected`) answer to it, also as messages.
    """

    def encode(self, example: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """Return [`VideoChatCollator.encode`] of `chosen` and of `rejected`, with labels on the last answer only."""
        messages = add_sources(example)
        texts = {name: self.encode_text(messages + add_sources({"messages": example[name]})) for name in PREFERENCES}
        for text in texts.values():
            labels = text["labels"]
            if self.max_length is not None and len(labels) > self.max_length:
                raise TooLongError(f"{len(labels)} tokens, of which {self.max_length} are allowed")
            unlabelled = np.flatnonzero(labels == IGNORE_INDEX)
            prompt_end = unlabelled[unlabelled < np.flatnonzero(labels != IGNORE_INDEX).max()].max() + 1
            labels[:prompt_end] = IGNORE_INDEX
        placeholders = np.count_nonzero(texts["chosen"]["input_ids"] == self.processor.video_token_id)
        videos = self.read_videos(messages, placeholders // self.processor.num_video_tokens, seed)
        return {**{name: {**text, **videos} for name, text in texts.items()}, "lost_turns": 0}

    def pad(self, encoded: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Returns:
            A batch like [`VideoChatCollator.pad`]'s, with the rows of the chosen answers before the rejected
            ones', and `completion_mask` in place of `labels`: int64 `(batch, sequence)`, 1 on the answers.
        """
        batch = super().pad([example[name] for name in PREFERENCES for example in encoded])
        labels = batch.pop("labels")
        return {**batch, "completion_mask": (labels != IGNORE_INDEX).long()}


class TooLongError(ValueError):
    """Not even the first answer of a conversation fits into `max_length`."""


def add_sources(example: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the example's messages with the source of each video in its part, and each image opened."""
    sources = {kind: iter(example.get(f"{kind}s") or []) for kind in ("video", "image")}
    messages = []
    for message in example["messages"]:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        messages.append({**message, "content": [_add_source(part, sources) for part in content]})
    return messages


def _add_source(part: dict[str, Any], sources: dict[str, Any]) -> dict[str, Any]:
    part = {key: value for key, value in part.items() if value is not None}  # `datasets` adds other parts' keys
    kind = part["type"]
    if kind not in sources:
        return part
    if not part.keys() & {kind, "path", "url"}:
        part[kind] = next(sources[kind], None)
        if part[kind] is None:
            raise ValueError(f"The messages have more {kind} parts than the example has {kind}s")
    if kind == "video":
        return part
    content = find_medium(part).content
    is_file = isinstance(content, (str, os.PathLike, bytes))
    return {"type": kind, "image": read_image(content) if is_file else content}
