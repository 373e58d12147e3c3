"""
A model on this machine that answers a benchmark's questions in batches.

Shared work is done once: a clip is decoded once for all questions about it and all variants, and its frames go through
the vision tower once. `generation.py` does the same for the language model.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache, cached_property, partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from ...adapters import plain_model, set_alpha
from ...chat_templates_pllava import CHAT_TEMPLATES
from ...generation import Generator, Prompt, split_prompt
from ...loading import Checkpoint
from ...media.batch import PUBLIC_HOSTS, gate_for
from ...model_pooling import pooled
from ...pooling_pllava import parse_pooling
from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import ClipKey, Sample
from ..controls_and_sweeps import Variant, choose_frames
from .answerer import Answer, Answerer, Timing, Work
from .batching import plan_batches
from .clip_decoding import DecodedClip, decode_clips

# The original's models, by their own templates: their prompts in evaluation differ from those of training. Others keep
# their own template.
TEMPLATE_FAMILIES = {CHAT_TEMPLATES["plain"]: "vicuna", CHAT_TEMPLATES["eval_vcg_llavanext"]: "im_start"}


class LocalModel(Answerer):
    """
    Args:
        model: From [`load_model`]; or a function that returns it, called when the first answer is needed.
        processor: Its processor.
        adapter: Directory or Hub id of the model's adapter, if it has one.
        chat_template: Replaces the benchmarks' chat templates.
        batch_size: Questions answered together; halved whenever memory runs out.
        num_workers: Processes that decode ahead.
        checkpoint: Describes a model that is not loaded yet.
        allowed_media_domains: Hosts from which clips are fetched that are http(s) addresses, see [`MediaGate`].
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
        allowed_media_domains: Sequence[str] = PUBLIC_HOSTS,
    ):
        self.processor, self.chat_template = processor, chat_template
        self.batch_size, self.num_workers = batch_size, num_workers
        self.allowed_media_domains = allowed_media_domains
        self.timing = Timing()
        self._load = (lambda: model) if isinstance(model, nn.Module) else model
        self.checkpoint = checkpoint or _checkpoint(model, adapter)

    @cached_property
    def loaded(self) -> PreTrainedModel:
        """
        The model, wrapped by PEFT if it has an adapter.

        Raises:
            ValueError: if it is not the model that `checkpoint` describes.
        """
        loaded = self._load()
        actual = _checkpoint(loaded, self.checkpoint.adapter)
        if actual != self.checkpoint:
            raise ValueError(f"The loaded model is {actual}, but its configs describe {self.checkpoint}")
        return loaded

    @cached_property
    def generator(self) -> Generator:
        return Generator(plain_model(self.loaded), self.processor, self.batch_size)

    @property
    def model(self) -> PreTrainedModel:
        """The model without PEFT's wrapper."""
        return self.generator.model

    def describe(self, variant: Variant) -> dict[str, Any]:
        checkpoint = self.checkpoint
        return {
            **asdict(checkpoint),
            "alpha": checkpoint.alpha if variant.alpha is None else variant.alpha,
            "num_frames": self.processor.num_frames,
            "sampling": self.processor.video_processor.sampling,
            "pooling": variant.pooling or checkpoint.pooling,
            "chat_template": self.chat_template,
            "control": variant.control,
        }

    def answers(self, work: Work) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]:
        """
        Yield the missing answers batch by batch.

        The batches are made of all samples, and a batch runs whole if one of its answers is missing: in floating point
        an answer may depend on its batch, so a resumed run gives exactly the answers of an uninterrupted one, with any
        number of processes.
        """
        encode = cache(partial(self.encode, work.benchmark))
        lengths = [max(sum(map(len, encode(text, True))) for text in sample.questions) for sample in work.samples]
        claimed = deque()  # windows whose clips are being decoded: (batches and missing variants, keys of the clips)

        def sources() -> Iterator[dict[str, Any]]:
            """Yield the clips to decode. Workers read ahead, so a window is claimed when its decoding begins."""
            for number, window in enumerate(plan_batches(work.samples, lengths, self.batch_size)):
                todo = [(batch, missing) for batch in window if (missing := self._missing_variants(work, batch))]
                if todo and work.claim(number):
                    clips = {sample.clip: sample.source for batch, _ in todo for sample in batch}
                    claimed.append((todo, list(clips)))
                    yield from clips.values()

        gate = gate_for((sample.video for sample in work.samples), self.allowed_media_domains)
        decoded = self._timed(decode_clips(self.processor, sources(), self.num_workers, gate))
        for first in decoded:
            todo, keys = claimed.popleft()
            clips = dict(zip(keys, [first, *islice(decoded, len(keys) - 1)], strict=True))
            features: dict[ClipKey, torch.Tensor] = {}
            for index, (batch, missing) in enumerate(todo):
                began = time.perf_counter()
                results = list(self._answer_batch(work.benchmark, encode, batch, missing, clips, features))
                self.timing.model_seconds += time.perf_counter() - began
                for variant, answered in results:
                    yield variant, [pair for pair in answered if not work.is_done(variant, pair[0])]
                still_needed = {sample.clip for later, _ in todo[index + 1 :] for sample in later}
                features = {key: value for key, value in features.items() if key in still_needed}

    @staticmethod
    def _missing_variants(work: Work, batch: list[Sample]) -> list[Variant]:
        return [each for each in work.variants if not all(work.is_done(each, sample) for sample in batch)]

    def _timed(self, decoded: Iterator[DecodedClip]) -> Iterator[DecodedClip]:
        began = time.perf_counter()
        for clip in decoded:
            if clip.pixels is not None:
                clip.pixels = clip.pixels.clone()  # out of shared memory, where each tensor keeps a file open
            self.timing.waited_for_clips_seconds += time.perf_counter() - began
            self.timing.decode_seconds += clip.seconds
            yield clip
            began = time.perf_counter()

    # --- prompts -----------------------------------------------------------------------------------------------------

    def encode(self, benchmark: Benchmark, question: str, with_video: bool) -> tuple[list[int], list[int]]:
        """
        Return a question's prompt as token ids: up to and including the `<video>` placeholder, which is a single
        token here, and after it.
        """
        chat = benchmark.chat(question, [{"type": "video"}] if with_video else [])
        options = {"continue_final_message": True} if benchmark.primer else {"add_generation_prompt": True}
        template = self._template(benchmark)
        text = self.processor.apply_chat_template(chat, CHAT_TEMPLATES.get(template, template), **options)
        prefix, suffix = split_prompt(self.processor, text)
        if bool(prefix) != with_video:
            raise ValueError(f"{benchmark.title}: the chat template writes {int(bool(prefix))} <video> into {text!r}")
        return prefix, suffix

    @property
    def template_family(self) -> str | None:
        """The key of the model's templates in a benchmark's declaration; None if it keeps its own template."""
        return TEMPLATE_FAMILIES.get(self.processor.chat_template)

    def _template(self, benchmark: Benchmark) -> str | None:
        """Return the benchmark's template for the model's template family; None keeps the model's own template."""
        return self.chat_template or benchmark.chat_template.get(self.template_family)

    # --- a batch -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _answer_batch(
        self,
        benchmark: Benchmark,
        encode: Callable[[str, bool], tuple[list[int], list[int]]],
        batch: list[Sample],
        variants: list[Variant],
        clips: dict[ClipKey, DecodedClip],
        features: dict[ClipKey, torch.Tensor],
    ) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]:
        """Answer a batch in each variant. `features` caches the vision tower's output by clip."""
        readable = [sample for sample in batch if clips[sample.clip].pixels is not None]
        keys = list(dict.fromkeys(sample.clip for sample in readable))
        for key in keys:
            if key not in features:
                features[key] = self.generator.encode_frames(clips[key].pixels)
        for variant in variants:
            shown = [features[key][choose_frames(variant.control, len(features[key]), key)] for key in keys]
            prompts = [
                Prompt(keys.index(sample.clip), *encode(question, variant.control != "no_video"))
                for sample in readable
                for question in sample.questions
            ]
            with self._configured(variant):
                limits = benchmark.max_new_tokens, benchmark.stop
                results = iter(self.generator.answer(prompts, shown, *limits) if prompts else ())
            answered = []
            for sample in batch:
                clip = clips[sample.clip]
                if clip.pixels is None:
                    answered.append((sample, Answer(error=clip.error)))
                    continue
                texts, truncated = zip(*islice(results, len(sample.questions)), strict=True)
                texts = tuple(benchmark.answer_prefix + text for text in texts)
                answered.append((sample, Answer(texts, truncated=any(truncated), damaged=clip.damaged)))
            yield variant, answered

    @contextmanager
    def _configured(self, variant: Variant) -> Iterator[None]:
        """Set the model to a sweep's value, and back to its own afterwards."""
        with ExitStack() as settings:
            if variant.alpha is not None:
                set_alpha(self.loaded, variant.alpha)
                settings.callback(set_alpha, self.loaded, self.checkpoint.alpha)
            if variant.pooling not in (None, self.checkpoint.pooling):
                pooling = parse_pooling(variant.pooling, self.processor.num_frames)
                settings.enter_context(pooled(self.model, pooling))
            yield


def _checkpoint(model: PreTrainedModel, adapter: str | None) -> Checkpoint:
    """Describe a loaded model."""
    alpha = next((lora.lora_alpha for lora in getattr(model, "peft_config", {}).values()), None)
    base = plain_model(model)
    return Checkpoint.of(base.config, str(base.dtype).removeprefix("torch."), adapter, alpha)
