"""
The language model's part of an answer: greedy, and many prompts at a time. All prompts begin with the video, which is
most of their tokens: that beginning is read once for all prompts about a clip, and its keys and values are kept once.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicLayer, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..benchmarks.benchmark import Benchmark

logger = logging.getLogger(__name__)


@dataclass
class Prompt:
    """A question as token ids: up to the video's last token, and behind it. `clip` counts the batch's clips."""

    clip: int
    prefix: list[int]
    suffix: list[int]


class Generator:
    """
    Args:
        model: Without an adapter's wrapper.
        processor: Its processor.
        batch_size: Prompts answered together; fewer where there is not enough memory for them.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int):
        self.model, self.processor, self.batch_size = model, processor, batch_size

    def answer(
        self, benchmark: Benchmark, prompts: list[Prompt], features: list[torch.Tensor]
    ) -> list[tuple[str, bool]]:
        """
        Greedy answers, each with whether it was cut off at the length limit. Where memory runs out, half as many
        prompts are tried, and it stays at that.

        Args:
            features: Of each clip, what the vision tower made of its frames, `(frames, patches, C)`.

        Raises:
            RuntimeError: if there is not enough memory for one prompt.
        """
        results: list[tuple[str, bool]] = []
        while len(results) < len(prompts):
            part = prompts[len(results) : len(results) + self.batch_size]
            try:
                results += self._generate(benchmark, part, features)
                continue
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                problem = str(error)
            clear_device_cache(garbage_collection=True)  # behind `except`, which holds what was being computed
            if len(part) == 1:
                raise too_little_memory(self.model, "one question about a clip", problem)
            self.batch_size = len(part) // 2
            logger.warning("Not enough memory for %d questions at a time: %d from here on", len(part), self.batch_size)
        return results

    def _generate(
        self, benchmark: Benchmark, prompts: list[Prompt], features: list[torch.Tensor]
    ) -> list[tuple[str, bool]]:
        tokenizer, device = self.processor.tokenizer, self.model.device
        pad = tokenizer.pad_token_id or 0
        ids, mask = _pad_left([prompt.suffix for prompt in prompts], pad, device)
        inputs: dict[str, Any] = {}
        if prompts[0].prefix:
            prefix_ids, prefix_mask, inputs = self._read_prefixes(prompts, features, pad)
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
        self, prompts: list[Prompt], features: list[torch.Tensor], pad: int
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """
        What the prompts begin with, as token ids and mask `(prompts, tokens)`, and the language model's keys and
        values of it, by the name that `generate` takes them by: computed and kept once for each clip.
        """
        device, video = self.model.device, self.processor.video_token_id
        count = torch.Size(self.model.config.pooling_shape).numel()
        rows = list(dict.fromkeys((prompt.clip, *prompt.prefix[:-1]) for prompt in prompts))
        ids, mask = _pad_left([[*row[1:], *[video] * count] for row in rows], pad, device)
        pooled = self.model.model.pool([features[row[0]] for row in rows])
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            mm_encoder_outputs={"video": BaseModelOutputWithPooling(pooler_output=pooled)},
            use_cache=True,
            logits_to_keep=1,
        )
        name = "cache" if "cache" in output else "past_key_values"  # as older versions call it
        places = torch.tensor([rows.index((prompt.clip, *prompt.prefix[:-1])) for prompt in prompts], device=device)
        if places.tolist() != list(range(len(rows))):
            share_prefixes(output[name], places)
        return ids[places], mask[places], {name: output[name]}


class SharedPrefixLayer(DynamicLayer):
    """
    A layer's keys and values for prompts of which several begin alike. Each beginning is kept once; a copy for each
    prompt is made for the layer that attends to it, and dropped again. At 7B a clip takes 1.2 GB in bfloat16.

    Args:
        prefix: The layer's keys and values of the beginnings.
        places: `(prompts,)`, which of the beginnings each prompt has.
    """

    def __init__(self, prefix: DynamicLayer, places: torch.Tensor):
        super().__init__()
        self.prefix_keys, self.prefix_values = prefix.keys, prefix.values
        self.places = places.to(prefix.keys.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return self._behind(self.prefix_keys, keys), self._behind(self.prefix_values, values)

    def get_seq_length(self) -> int:
        return self.prefix_keys.shape[-2] + super().get_seq_length()

    def _behind(self, prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        shared = prefix.expand(len(own), -1, -1, -1) if len(prefix) == 1 else prefix[self.places]
        return torch.cat([shared, own], dim=-2)


def share_prefixes(cache: Cache, places: torch.Tensor) -> None:
    """Makes of the keys and values of beginnings those of prompts; `places` says which beginning each has."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[number] = SharedPrefixLayer(layer, places)
        else:  # attention in a window keeps a part only, which moves on
            layer.batch_select_indices(places)


def too_little_memory(model: PreTrainedModel, what: str, problem: str) -> RuntimeError:
    """What to do where not even this fits."""
    return RuntimeError(
        f"There is not enough memory on {model.device} for {what}; --load-in-4bit takes less, --device-map auto uses "
        f"all that there is ({problem})"
    )


def _pad_left(rows: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of different lengths -> ids and mask, `(rows, tokens)`."""
    tensors = [torch.tensor(row, device=device) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad, padding_side="left")
    masks = [torch.ones(len(row), dtype=torch.long, device=device) for row in rows]
    return ids, pad_sequence(masks, batch_first=True, padding_side="left")


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
