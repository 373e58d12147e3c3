"""
Greedy decoding for many prompts at a time, for evaluation and captioning. All prompts begin with the video, which has
most of their tokens: this prefix is computed once for all prompts about a clip, and its KV cache is stored once.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicLayer, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .conversation_cache import CACHE

logger = logging.getLogger(__name__)


@dataclass
class Prompt:
    """
    A question as token ids.

    Args:
        clip: The index of its clip in the batch.
        prefix: The tokens up to and including the video placeholder; empty if there is no video.
        suffix: The tokens after it.
    """

    clip: int
    prefix: list[int]
    suffix: list[int]


class Generator:
    """
    Args:
        model: A PLLaVA, not wrapped by PEFT.
        processor: Its processor.
        batch_size: Prompts answered together; halved whenever memory runs out.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int):
        self.model, self.processor, self.batch_size = model, processor, batch_size

    def encode_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """
        Run the vision tower: uint8 `(frames, 3, height, width)`, not normalised yet -> `(frames, patches, C)`. One
        clip at a time, because rounding would otherwise depend on which clips are encoded together.

        Raises:
            RuntimeError: if there is not enough memory for the frames.
        """
        try:
            frames = self.processor.video_processor.normalize_frames(pixels.to(self.model.device))
            return self.model.model.encode_frames(frames).last_hidden_state
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            raise _out_of_memory_error(self.model, f"the {len(pixels)} frames of one clip", str(error)) from error

    def answer(
        self,
        prompts: list[Prompt],
        features: list[torch.Tensor],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> list[tuple[str, bool]]:
        """
        Answer the prompts by greedy decoding. If memory runs out, the batch size is halved, and stays so.

        Args:
            features: The vision tower's output for each clip, `(frames, patches, C)`.
            max_new_tokens: The length limit of an answer.
            stop: Texts that end an answer, and are not part of it.
            options: For `generate`, such as `repetition_penalty`.

        Returns:
            Each answer, and whether it was cut off at the length limit.

        Raises:
            RuntimeError: if there is not enough memory for one prompt.
        """
        results: list[tuple[str, bool]] = []
        while len(results) < len(prompts):
            part = prompts[len(results) : len(results) + self.batch_size]
            try:
                results += self._generate(part, features, max_new_tokens, stop, options)
                continue
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                message = str(error)
            clear_device_cache(garbage_collection=True)  # after `except`, whose traceback keeps tensors alive
            if len(part) == 1:
                raise _out_of_memory_error(self.model, "one question about a clip", message)
            self.batch_size = len(part) // 2
            logger.warning("Not enough memory for %d questions at a time: %d from here on", len(part), self.batch_size)
        return results

    def _generate(
        self,
        prompts: list[Prompt],
        features: list[torch.Tensor],
        max_new_tokens: int,
        stop: Sequence[str],
        options: dict[str, Any],
    ) -> list[tuple[str, bool]]:
        tokenizer, device = self.processor.tokenizer, self.model.device
        pad = tokenizer.pad_token_id or 0
        ids, mask = _pad_left([prompt.suffix for prompt in prompts], pad, device)
        inputs = dict(options)
        if prompts[0].prefix:
            prefix_ids, prefix_mask, cache = self._prefill_prefixes(prompts, features, pad)
            inputs |= cache
            ids, mask = torch.cat([prefix_ids, ids], dim=1), torch.cat([prefix_mask, mask], dim=1)
        if stop:
            inputs.update(stop_strings=list(stop), tokenizer=tokenizer)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            **inputs,
        )[:, ids.shape[1] :]
        eos = self.model.generation_config.eos_token_id
        ends = [pad, *(eos if isinstance(eos, list) else [] if eos is None else [eos])]
        at_limit = output.shape[1] == max_new_tokens
        results = []
        for text, row in zip(tokenizer.batch_decode(output, skip_special_tokens=True), output.tolist(), strict=True):
            end = min([text.index(each) for each in stop if each in text], default=len(text))
            results.append((text[:end].strip(), at_limit and end == len(text) and row[-1] not in ends))
        return results

    def _prefill_prefixes(
        self, prompts: list[Prompt], features: list[torch.Tensor], pad: int
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """
        Compute the KV cache of the prompts' prefixes, each different prefix once.

        Returns:
            The prefixes' token ids and mask, `(prompts, tokens)`, and the cache by the name under which `generate`
            takes it.
        """
        device, video = self.model.device, self.processor.video_token_id
        num_video_tokens = self.model.config.num_video_tokens
        keys = [(prompt.clip, *prompt.prefix[:-1]) for prompt in prompts]
        unique = list(dict.fromkeys(keys))
        ids, mask = _pad_left([[*key[1:], *[video] * num_video_tokens] for key in unique], pad, device)
        pooled = torch.stack(self.model.model.pool([features[key[0]] for key in unique]))
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            mm_encoder_outputs={"video": BaseModelOutputWithPooling(pooler_output=pooled)},
            use_cache=True,
            logits_to_keep=1,
        )
        indices = torch.tensor([unique.index(key) for key in keys], device=device)
        if keys != unique:
            share_prefixes(output[CACHE], indices)
        return ids[indices], mask[indices], {CACHE: output[CACHE]}


def split_prompt(processor: ProcessorMixin, text: str) -> tuple[list[int], list[int]]:
    """
    Return a prompt as token ids: up to and including the `<video>` placeholder, which is a single token here, and
    after it. Without a placeholder, the first part is empty.

    Raises:
        ValueError: if there are several placeholders.
    """
    tokenizer, video = processor.tokenizer, processor.video_token_id
    has_start = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids = tokenizer(text, add_special_tokens=not has_start).input_ids
    if ids.count(video) > 1:
        raise ValueError(f"The prompt has {ids.count(video)} <video>, of which there may be one: {text!r}")
    cut = ids.index(video) + 1 if video in ids else 0
    return ids[:cut], ids[cut:]


class SharedPrefixLayer(DynamicLayer):
    """
    A layer of a KV cache for prompts that share prefixes. Each prefix is stored once, and copied for each prompt only
    while the layer's attention runs. For a 7B model, the prefix of a clip takes 1.2 GB in bfloat16, over all layers.

    Args:
        prefix: The layer with the prefixes' keys and values.
        indices: `(prompts,)`, the index of each prompt's prefix.
    """

    def __init__(self, prefix: DynamicLayer, indices: torch.Tensor):
        super().__init__()
        self.prefix_keys, self.prefix_values = prefix.keys, prefix.values
        self.indices = indices.to(prefix.keys.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return self._with_prefix(self.prefix_keys, keys), self._with_prefix(self.prefix_values, values)

    def get_seq_length(self) -> int:
        return self.prefix_keys.shape[-2] + super().get_seq_length()

    def _with_prefix(self, prefix: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        copied = prefix.expand(len(states), -1, -1, -1) if len(prefix) == 1 else prefix[self.indices]
        return torch.cat([copied, states], dim=-2)


def share_prefixes(cache: Cache, indices: torch.Tensor) -> None:
    """Turn a cache of prefixes into a cache of prompts, in place; `indices` has the index of each prompt's prefix."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[number] = SharedPrefixLayer(layer, indices)
        else:  # sliding-window layers drop old keys, so prompts cannot share them
            layer.batch_select_indices(indices)


def _out_of_memory_error(model: PreTrainedModel, what: str, message: str) -> RuntimeError:
    """Return the error for work that cannot be made any smaller."""
    return RuntimeError(
        f"There is not enough memory on {model.device} for {what}; --load-in-4bit takes less, --device-map auto uses "
        f"all devices ({message})"
    )


def _pad_left(rows: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask, `(rows, tokens)`."""
    tensors = [torch.tensor(row, device=device) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad, padding_side="left")
    masks = [torch.ones(len(row), dtype=torch.long, device=device) for row in rows]
    return ids, pad_sequence(masks, batch_first=True, padding_side="left")
