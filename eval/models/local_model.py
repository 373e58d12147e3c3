"""
A local model's answers to many questions.

What they have in common is computed once: a clip is decoded once for all questions about it and all ways to ask them,
and its frames go through the vision tower once. `generation.py` does the same for the language model.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, lru_cache, partial
from itertools import islice
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from ...adapters import set_alpha
from ...chat_templates_pllava import CHAT_TEMPLATES
from ...loading import Checkpoint
from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Clip, Sample
from ..variants import Variant, choose_frames
from .answer import Answer, Seconds
from .batching import plan
from .clip_decoding import DecodedClip, decode_clips
from .generation import Generator, Prompt, too_little_memory


class LocalModel:
    """
    Args:
        model: As `load_model` gives it; or a function that does, called when the first answer is needed.
        processor: Its processor.
        adapter: Where the model's adapter is from.
        chat_template: In place of the benchmarks' own.
        batch_size: Questions answered together; fewer where there is not enough memory for them.
        num_workers: Processes that decode ahead.
        checkpoint: What a model that is not loaded yet will be.
    """

    def __init__(
        self,
        model: PreTrainedModel | Callable[[], PreTrainedModel],
        processor: ProcessorMixin,
        adapter: str | None = None,
        chat_template: str | None = None,
        batch_size: int = 16,
        num_workers: int = 2,
        checkpoint: Checkpoint | None = None,
    ):
        self.processor, self.chat_template = processor, chat_template
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seconds = Seconds()
        self._load = (lambda: model) if isinstance(model, nn.Module) else model
        self.checkpoint = checkpoint or _checkpoint(model, adapter)

    @cached_property
    def loaded(self) -> PreTrainedModel:
        """
        The model, in its adapter's wrapper if it has one.

        Raises:
            ValueError: if it is not the one that was announced.
        """
        loaded = self._load()
        found = _checkpoint(loaded, self.checkpoint.adapter)
        if found != self.checkpoint:
            raise ValueError(f"The model that was loaded is {found}, but its configs announce {self.checkpoint}")
        return loaded

    @cached_property
    def generator(self) -> Generator:
        return Generator(_without_adapter(self.loaded), self.processor, self.batch_size)

    @property
    def model(self) -> PreTrainedModel:
        return self.generator.model

    def describe(self, variant: Variant) -> dict[str, Any]:
        """What the answers depend on beside the benchmark."""
        checkpoint = self.checkpoint
        return {
            **asdict(checkpoint),
            "alpha": checkpoint.alpha if variant.alpha is None else variant.alpha,
            "num_frames": self.processor.num_frames,
            "pooling_shape": list(variant.pooling_shape or checkpoint.pooling_shape),
            "chat_template": self.chat_template,
            "control": variant.control,
        }

    def answers(
        self,
        benchmark: Benchmark,
        samples: Sequence[Sample],
        variants: Sequence[Variant],
        is_done: Callable[[Variant, Sample], bool],
        take: Callable[[int], bool] = lambda piece: True,
    ) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]:
        """
        Batch by batch, the answers that are not there yet.

        The batches are made of all samples, done or not, and a batch of which one answer is missing runs whole: so
        that a run that was killed goes on to the very numbers of one that was not, whatever the number of processes.

        Args:
            take: Whether this process is the one to do a piece of the work, by its number.
        """
        encode = lru_cache(maxsize=None)(partial(self.encode, benchmark))  # each prompt once, for plan and variants
        lengths = [max(sum(map(len, encode(q, True))) for q in sample.questions) for sample in samples]
        taken: deque[tuple[list[list[Sample]], list[list[Variant]], dict[Clip, Any]]] = deque()

        def sources() -> Iterator[dict[str, Any]]:
            """Is read ahead of the answers, and takes a window of batches where it begins to decode it."""
            for piece, window in enumerate(plan(samples, lengths, self.batch_size)):
                missing = [
                    [v for v in variants if not all(is_done(v, sample) for sample in batch)] for batch in window
                ]
                if any(missing) and take(piece):
                    clips = _clips(window, missing)
                    taken.append((window, missing, clips))
                    yield from clips.values()

        dtype = getattr(torch, self.checkpoint.dtype)
        decoded = self._timed(decode_clips(self.processor, sources(), dtype, self.num_workers))
        for first in decoded:
            window, missing, keys = taken.popleft()
            clips = dict(zip(keys, [first, *islice(decoded, len(keys) - 1)], strict=True))
            features: dict[Clip, torch.Tensor] = {}
            for place, (batch, batch_variants) in enumerate(zip(window, missing, strict=True)):
                began = time.perf_counter()
                results = list(self._answer_batch(benchmark, encode, batch, batch_variants, clips, features))
                self.seconds.model += time.perf_counter() - began
                for variant, answered in results:
                    yield variant, [pair for pair in answered if not is_done(variant, pair[0])]
                still_asked = {sample.clip for later in window[place + 1 :] for sample in later}
                features = {key: value for key, value in features.items() if key in still_asked}

    def _timed(self, decoded: Iterator[DecodedClip]) -> Iterator[DecodedClip]:
        began = time.perf_counter()
        for clip in decoded:
            if clip.pixels is not None:
                clip.pixels = clip.pixels.clone()  # out of the shared memory, of which each tensor keeps a file open
            self.seconds.waited += time.perf_counter() - began
            self.seconds.decode += clip.seconds
            yield clip
            began = time.perf_counter()

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _template(self, benchmark: Benchmark) -> str | None:
        """The benchmark's template for the family of the model's own, which a model of another family keeps."""
        own = self.processor.chat_template
        family = "im_start" if "<|im_start|>" in own else "vicuna" if "USER:" in own else None
        return self.chat_template or benchmark.chat_template.get(family)

    def encode(self, benchmark: Benchmark, question: str, with_video: bool) -> tuple[list[int], list[int]]:
        """A question's prompt as token ids: up to the `<video>`, which is one token still, and behind it."""
        chat = benchmark.chat(question, [{"type": "video"}] if with_video else [])
        options = {"continue_final_message": True} if benchmark.primer else {"add_generation_prompt": True}
        template = self._template(benchmark)
        text = self.processor.apply_chat_template(chat, CHAT_TEMPLATES.get(template, template), **options)
        tokenizer = self.processor.tokenizer
        has_start = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not has_start).input_ids
        video = self.processor.video_token_id
        if ids.count(video) != with_video:
            raise ValueError(f"{benchmark.title}: the chat template writes {ids.count(video)} <video> into {text!r}")
        cut = ids.index(video) + 1 if with_video else 0
        return ids[:cut], ids[cut:]

    # --- a batch -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _answer_batch(
        self,
        benchmark: Benchmark,
        encode: Callable[[str, bool], tuple[list[int], list[int]]],
        batch: list[Sample],
        variants: list[Variant],
        clips: dict[Clip, DecodedClip],
        features: dict[Clip, torch.Tensor],
    ) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]:
        """`features` is what the vision tower made of clips before; what this batch needs is added."""
        keys = {key: clips[key] for key in _clips([batch], [variants])}
        order = {key: place for place, key in enumerate(key for key in keys if keys[key].pixels is not None)}
        asked = [sample for sample in batch if sample.clip in order]
        for key in order.keys() - features.keys():
            features[key] = self._encode_frames(clips[key].pixels)
        for variant in variants:
            seen = [features[key][choose_frames(variant.control, len(features[key]), key)] for key in order]
            with self._set(variant):
                prompts = [
                    Prompt(order[sample.clip], *encode(q, variant.control != "no_video"))
                    for sample in asked
                    for q in sample.questions
                ]
                texts = iter(self.generator.answer(benchmark, prompts, seen) if prompts else ())
            answered = []
            for sample in batch:
                clip = keys[sample.clip]
                if clip.pixels is None:
                    answered.append((sample, Answer(error=clip.error)))
                    continue
                said = [next(texts) for _ in sample.questions]
                answer = Answer(
                    tuple(benchmark.answer_prefix + text for text, _ in said),
                    truncated=any(cut for _, cut in said),
                    damaged=clip.damaged,
                )
                answered.append((sample, answer))
            yield variant, answered

    @contextmanager
    def _set(self, variant: Variant) -> Iterator[None]:
        if variant.alpha is not None:
            set_alpha(self.loaded, variant.alpha)
        if variant.pooling_shape is not None:
            self.model.config.pooling_shape = list(variant.pooling_shape)
        try:
            yield
        finally:
            if variant.alpha is not None:
                set_alpha(self.loaded, self.checkpoint.alpha)
            if variant.pooling_shape is not None:
                self.model.config.pooling_shape = list(self.checkpoint.pooling_shape)

    def _encode_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """
        `(frames, 3, height, width)` -> what the vision tower makes of them, `(frames, patches, C)`. A clip by itself:
        with others, rounding would depend on which are new.

        Raises:
            RuntimeError: if there is not enough memory for it.
        """
        try:
            return self.model.model.encode_frames(pixels.to(self.model.device)).last_hidden_state
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            raise too_little_memory(self.model, f"the {len(pixels)} frames of one clip", str(error)) from error


def _clips(batches: list[list[Sample]], variants: list[list[Variant]]) -> dict[Clip, dict[str, Any]]:
    """What has to be decoded, each clip once: the sources by their keys."""
    wanted = [sample for batch, missing in zip(batches, variants, strict=True) if missing for sample in batch]
    return {sample.clip: sample.source for sample in wanted}


def _without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _checkpoint(model: PreTrainedModel, adapter: str | None) -> Checkpoint:
    """Of a model that is loaded."""
    alpha = next((lora.lora_alpha for lora in getattr(model, "peft_config", {}).values()), None)
    plain = _without_adapter(model)
    return Checkpoint.of(plain.config, str(plain.dtype).removeprefix("torch."), adapter, alpha)
