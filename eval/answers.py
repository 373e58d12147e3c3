"""
A local model's answers to many questions.

What they have in common is computed once. A clip is decoded once for all questions about it and all ways to ask them,
and its frames go through the vision tower once. All prompts begin with the video, which is most of their tokens: the
language model reads that beginning once for all questions of a batch about a clip, and each question goes on from its
keys and values.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..chat_templates_pllava import CHAT_TEMPLATES
from ..checkpoint_files import fingerprint
from ..loading import set_alpha
from .benchmark import Benchmark
from .clips import ClipLoader, DecodedClip
from .readers import Clip, Sample
from .variants import Variant, choose_frames

BATCHES_IN_WINDOW = 4  # whose clips are held together; a process takes whole windows
BUCKET = 32  # tokens by which the prompts of a batch differ at most
SENTENCE = 8  # words from which a reference lets expect an answer that is longer than a phrase


@dataclass
class Answer:
    """
    The texts that answer a sample's questions, or why there are none.

    Args:
        truncated: An answer reached the length limit.
        damaged: Why only a part of the clip could be read.
    """

    texts: tuple[str, ...] = ()
    error: str | None = None
    truncated: bool = False
    damaged: str | None = None


@dataclass
class Seconds:
    """By the clock: what the model took, and how long it waited for clips. Of all workers: what decoding took."""

    model: float = 0.0
    waited: float = 0.0
    decode: float = 0.0


@dataclass
class _Prompt:
    """A question as token ids: up to the video's last token, and behind it. `clip` counts the batch's clips."""

    clip: int
    prefix: list[int]
    suffix: list[int]


class LocalModel:
    """
    Args:
        model: As `load_model` gives it.
        processor: Its processor.
        adapter: Where the model's adapter is from.
        chat_template: In place of the benchmarks' own.
        batch_size: Questions answered together.
        num_workers: Processes that decode ahead.
        rank, world_size: Which of how many processes this is; they share the samples.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        adapter: str | None = None,
        chat_template: str | None = None,
        batch_size: int = 16,
        num_workers: int = 2,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.loaded, self.processor = model, processor
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.adapter, self.chat_template = adapter, chat_template
        self.batch_size, self.num_workers = batch_size, num_workers
        self.rank, self.world_size = rank, world_size
        self.seconds = Seconds()
        self.alpha = next((lora.lora_alpha for lora in getattr(model, "peft_config", {}).values()), None)
        config = self.model.config
        self.pooling_shape = tuple(config.pooling_shape)
        self.revision = getattr(config, "_commit_hash", None) or fingerprint(config.name_or_path)
        self.adapter_revision = fingerprint(adapter) if adapter else None

    def describe(self, variant: Variant) -> dict[str, Any]:
        """What the answers depend on beside the benchmark."""
        return {
            "model": self.model.config.name_or_path,
            "revision": self.revision,
            "adapter": self.adapter,
            "adapter_revision": self.adapter_revision,
            "alpha": self.alpha if variant.alpha is None else variant.alpha,
            "num_frames": self.processor.num_frames,
            "pooling_shape": list(variant.pooling_shape or self.pooling_shape),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "chat_template": self.chat_template,
            "control": variant.control,
        }

    def answers(
        self,
        benchmark: Benchmark,
        samples: Sequence[Sample],
        variants: Sequence[Variant],
        is_done: Callable[[Variant, Sample], bool],
    ) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]:
        """
        Batch by batch, this process's share of the answers that are not there yet.

        The batches are made of all samples, done or not, and a batch of which one answer is missing runs whole: so
        that a run that was killed goes on to the very numbers of one that was not, whatever the number of processes.
        """
        encode = lru_cache(maxsize=None)(partial(self.encode, benchmark))  # each prompt once, for plan and variants
        lengths = [max(sum(map(len, encode(q, True))) for q in sample.questions) for sample in samples]
        windows = plan(samples, lengths, self.batch_size)[self.rank :: self.world_size]
        missing = [
            [[v for v in variants if not all(is_done(v, sample) for sample in batch)] for batch in window]
            for window in windows
        ]
        todo = [pair for pair in zip(windows, missing, strict=True) if any(pair[1])]
        keys = [_clips(window, variants) for window, variants in todo]
        decoded = iter(
            ClipLoader(self.processor, [s for each in keys for s in each.values()], self.model.dtype, self.num_workers)
        )
        for (window, variants_of), sources in zip(todo, keys, strict=True):
            clips = {key: self._next(decoded) for key in sources}
            features: dict[Clip, torch.Tensor] = {}
            for place, (batch, batch_variants) in enumerate(zip(window, variants_of, strict=True)):
                began = time.perf_counter()
                results = list(self._answer_batch(benchmark, encode, batch, batch_variants, clips, features))
                self.seconds.model += time.perf_counter() - began
                for variant, answered in results:
                    yield variant, [pair for pair in answered if not is_done(variant, pair[0])]
                still_asked = {sample.clip for later in window[place + 1 :] for sample in later}
                features = {key: value for key, value in features.items() if key in still_asked}

    def _next(self, decoded: Iterator[DecodedClip]) -> DecodedClip:
        began = time.perf_counter()
        clip = next(decoded)
        if clip.pixels is not None:
            clip.pixels = clip.pixels.clone()  # out of the shared memory, of which each tensor keeps a file open
        self.seconds.waited += time.perf_counter() - began
        self.seconds.decode += clip.seconds
        return clip

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
            seen = [features[key][choose_frames(variant.control, len(features[key]), str(key))] for key in order]
            with self._set(variant):
                prompts = [
                    _Prompt(order[sample.clip], *encode(q, variant.control != "no_video"))
                    for sample in asked
                    for q in sample.questions
                ]
                texts = iter(self._generate(benchmark, prompts, seen) if prompts else ())
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
                set_alpha(self.loaded, self.alpha)
            if variant.pooling_shape is not None:
                self.model.config.pooling_shape = list(self.pooling_shape)

    def _encode_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """
        `(frames, 3, height, width)` -> what the vision tower makes of them, `(frames, patches, C)`. A clip by itself:
        with others, rounding would depend on which are new.
        """
        return self.model.model.encode_frames(pixels.to(self.model.device)).last_hidden_state

    def _generate(
        self, benchmark: Benchmark, prompts: list[_Prompt], features: list[torch.Tensor]
    ) -> list[tuple[str, bool]]:
        """Greedy answers, each with whether it was cut off at the length limit."""
        tokenizer, device = self.processor.tokenizer, self.model.device
        pad = tokenizer.pad_token_id or 0
        ids, mask = _pad_left([prompt.suffix for prompt in prompts], pad, device)
        inputs: dict[str, Any] = {}
        if prompts[0].prefix:
            prefix_ids, prefix_mask, inputs["past_key_values"] = self._read_prefixes(prompts, features, pad)
            ids, mask = torch.cat([prefix_ids, ids], dim=1), torch.cat([prefix_mask, mask], dim=1)
        if benchmark.stop:
            inputs.update(stop_strings=list(benchmark.stop), tokenizer=tokenizer)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=benchmark.max_new_tokens,
            **inputs,
        )[:, ids.shape[1] :]
        texts = tokenizer.batch_decode(output, skip_special_tokens=True)
        ends = torch.tensor(_as_list(self.model.generation_config.eos_token_id) + [pad], device=device)
        at_limit = output.shape[1] == benchmark.max_new_tokens
        results = []
        for text, row in zip(texts, output, strict=True):
            kept = min([text.index(stop) for stop in benchmark.stop if stop in text], default=len(text))
            cut = at_limit and kept == len(text) and not torch.isin(row[-1], ends)
            results.append((text[:kept].strip(), bool(cut)))
        return results

    def _read_prefixes(
        self, prompts: list[_Prompt], features: list[torch.Tensor], pad: int
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """
        What the prompts begin with, as token ids and mask `(prompts, tokens)`, and the language model's keys and
        values of it: computed once for each clip, and repeated for the prompts about it.
        """
        device, video = self.model.device, self.processor.video_token_id
        count = torch.Size(self.model.config.pooling_shape).numel()
        rows = list(dict.fromkeys((prompt.clip, *prompt.prefix[:-1]) for prompt in prompts))
        ids, mask = _pad_left([[*row[1:], *[video] * count] for row in rows], pad, device)
        pooled = self.model.model.pool([features[row[0]] for row in rows])
        cache = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            mm_encoder_outputs={"video": BaseModelOutputWithPooling(pooler_output=pooled)},
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        places = torch.tensor([rows.index((prompt.clip, *prompt.prefix[:-1])) for prompt in prompts], device=device)
        if places.tolist() != list(range(len(rows))):
            cache.batch_select_indices(places)
        return ids[places], mask[places], cache


def _clips(batches: list[list[Sample]], variants: list[list[Variant]]) -> dict[Clip, dict[str, Any]]:
    """What has to be decoded, each clip once: the sources by their keys."""
    wanted = [sample for batch, missing in zip(batches, variants, strict=True) if missing for sample in batch]
    return {sample.clip: sample.source for sample in wanted}


def plan(samples: Sequence[Sample], lengths: Sequence[int], batch_size: int) -> list[list[list[Sample]]]:
    """
    Windows of batches. Questions about the same clip stay together; in a window they are sorted into batches whose
    prompts, and as the references let expect whose answers, are of about the same length.

    Args:
        lengths: Of the samples' prompts, in tokens.
        batch_size: The largest number of questions in a batch; one sample may have two.
    """
    by_clip: dict[Clip, list[int]] = {}
    for index, sample in enumerate(samples):
        by_clip.setdefault(sample.clip, []).append(index)
    grouped = [index for indices in by_clip.values() for index in indices]
    size = BATCHES_IN_WINDOW * batch_size
    windows = []
    for start in range(0, len(grouped), size):
        window = sorted(
            grouped[start : start + size],
            key=lambda index: (lengths[index] // BUCKET, len(samples[index].reference.split()) >= SENTENCE),
        )
        windows.append(_batches([samples[index] for index in window], batch_size))
    return windows


def _batches(samples: list[Sample], batch_size: int) -> list[list[Sample]]:
    batches: list[list[Sample]] = [[]]
    for sample in samples:
        if batches[-1] and sum(len(each.questions) for each in [*batches[-1], sample]) > batch_size:
            batches.append([])
        batches[-1].append(sample)
    return batches


def _pad_left(rows: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of different lengths -> ids and mask, `(rows, tokens)`."""
    tensors = [torch.tensor(row, device=device) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad, padding_side="left")
    masks = [torch.ones(len(row), dtype=torch.long, device=device) for row in rows]
    return ids, pad_sequence(masks, batch_first=True, padding_side="left")


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
