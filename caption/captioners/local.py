"""Captions by a model in this process. A clip is decoded and goes through the vision tower once for all prompts."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from ...adapters import plain_model
from ...generation import Generator, Prompt, split_prompt
from ...media import AS_SAMPLED
from ...processing_pllava import PllavaProcessor
from ...video_processing_pllava import UNNORMALIZED
from ..clips import Failed, Row
from ..quality import RETRY_LENGTH, RETRY_OPTIONS, embed, find_flags
from ..rows import Settings, caption_row, text_hash
from .decoding import Decoded


class LocalCaptioner:
    """
    Captions decoded clips.

    Args:
        model: From [`load_model`].
        processor: Its processor.
        settings: What each row records, with `max_new_tokens`.
        batch_size: Captions generated together; halved whenever memory runs out.
        retry_flagged: Whether captions with flags are made again in another way. The second one is kept if it has
            no flags.
        with_embeddings: Whether rows have an "embedding" of their clip.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: PllavaProcessor,
        settings: Settings,
        batch_size: int,
        retry_flagged: bool = False,
        with_embeddings: bool = False,
    ):
        self.processor, self.settings = processor, settings
        self.retry_flagged, self.with_embeddings = retry_flagged, with_embeddings
        self._generator = Generator(plain_model(model), processor, batch_size)
        self._encode = cache(self._encode_prompt)

    @torch.inference_mode()
    def __call__(self, batch: Sequence[Decoded | Failed]) -> list[Row]:
        """Return the rows of a batch: for each clip one of each prompt, or one with its error."""
        readable = [clip for clip in batch if isinstance(clip, Decoded)]
        features = [self._generator.encode_frames(self._pixels(clip)) for clip in readable]
        prompts = [
            Prompt(index, *self._encode(prompt)[1:])
            for index, clip in enumerate(readable)
            for prompt in clip.clip.prompts
        ]
        texts, encoded = iter(self._generate(prompts, features) if prompts else ()), iter(features)
        rows: list[Row] = []
        for clip in batch:
            if isinstance(clip, Failed):
                rows.append(clip.row)
                continue
            embedding = embed(self._generator.model.model.pool([next(encoded)])[0]) if self.with_embeddings else None
            for prompt in clip.clip.prompts:
                facts = {"prompt_hash": self._encode(prompt)[0], "frames": clip.indices, "damaged": clip.damaged}
                caption, about = next(texts)
                rows.append(
                    caption_row(clip.clip, prompt, caption, self.settings, **facts, **about, embedding=embedding)
                )
        return rows

    def _pixels(self, clip: Decoded) -> torch.Tensor:
        """Return the frames as the vision tower takes them, but not normalised yet."""
        options = {**AS_SAMPLED["videos_kwargs"], **UNNORMALIZED}
        return self.processor.video_processor(clip.frames, return_tensors="pt", **options)["pixel_values_videos"][0]

    def _encode_prompt(self, prompt: str) -> tuple[str, list[int], list[int]]:
        """Return the hash of a prompt as the model gets it, and its token ids up to the video and after it."""
        chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}]
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        return text_hash(text), *split_prompt(self.processor, text)

    def _generate(self, prompts: list[Prompt], features: list[torch.Tensor]) -> list[tuple[str, dict[str, Any]]]:
        """Return each caption, with its flags and whether it was made again."""
        length = self.settings["max_new_tokens"]
        captions = [(text, find_flags(text, cut)) for text, cut in self._generator.answer(prompts, features, length)]
        results = [(text, {"flags": flags}) for text, flags in captions]
        flagged = [index for index, (_, flags) in enumerate(captions) if flags] if self.retry_flagged else []
        if flagged:
            again = [prompts[index] for index in flagged]
            retried = self._generator.answer(again, features, RETRY_LENGTH * length, **RETRY_OPTIONS)
            for index, (text, cut) in zip(flagged, retried, strict=True):
                flags = find_flags(text, cut)
                kept = (text, flags) if len(flags) < len(captions[index][1]) else captions[index]
                results[index] = kept[0], {"flags": kept[1], "retried": True}
        return results
