"""
KV caches of the last conversations. A prompt that begins like one of them, with the same media, is computed from where
they differ: the video of a conversation is encoded and prefilled once, whatever the number of questions about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, DynamicLayer, GenerationConfig, PreTrainedModel
from transformers.generation.utils import ALL_CACHE_NAMES

from .configuration_pllava import PllavaConfig

CACHE = ALL_CACHE_NAMES[0]  # the name of `generate`'s argument: `past_key_values` in older versions of transformers
MAX_CONVERSATIONS = 8
MAX_BYTES = 4 * 2**30  # 13B's whole context takes 3.4 GB in bfloat16, and one clip of 7B's 1.2 GB
MEDIA = {"pixel_values": "image_token_id", "pixel_values_videos": "video_token_id"}


class ConversationCache:
    """
    Keeps what a model computed for its last conversations, within a number and a size, and drops the oldest first. For
    one thread at a time.

    Caches that cannot be cut at any token (sliding windows, linear attention, quantised or static caches) are not
    kept, nor is anything kept with beams: all prompts are then computed in full.

    Args:
        model: A PLLaVA, not wrapped by PEFT.
        max_conversations, max_bytes: Bounds of what is kept between two calls.
    """

    def __init__(self, model: PreTrainedModel, max_conversations: int = MAX_CONVERSATIONS, max_bytes: int = MAX_BYTES):
        self.model, self.max_conversations, self.max_bytes = model, max_conversations, max_bytes
        self._kept: list[_Kept] = []  # the newest last

    def resume(self, inputs: Mapping[str, Any]) -> Conversation:
        """
        Find what is known of a prompt.

        Args:
            inputs: The processor's, for one prompt: `input_ids` `(1, tokens)`, its mask, and the pixels of its media.
        """
        keys, settings = _token_keys(self.model.config, inputs), _settings(self.model)
        # The last token is always computed: its logits give the answer's first token
        shared = [_common_length(kept.keys, keys[:-1]) if kept.settings == settings else 0 for kept in self._kept]
        length = _between_media(self.model.config, inputs, keys, max(shared, default=0))
        if length == 0:
            return Conversation(self, inputs, keys, settings)
        index = shared.index(max(shared))
        kept = self._kept[index]
        rest = kept.keys[length:]
        if len(rest) < length and all(isinstance(key, int) for key in rest):  # a little text: not worth the memory
            del self._kept[index]
        return Conversation(self, inputs, keys, settings, kept.first(length))

    def keep(self, kept: _Kept) -> None:
        """Add a conversation, unless it is too large, and drop the oldest that exceed the bounds."""
        if kept.num_bytes > self.max_bytes:
            return
        self._kept.append(kept)
        while len(self._kept) > self.max_conversations or sum(each.num_bytes for each in self._kept) > self.max_bytes:
            del self._kept[0]

    def clear(self) -> None:
        """Drop all conversations."""
        self._kept.clear()


class Conversation:
    """
    A prompt, and what is known of it. `cached_tokens` of its tokens need not be computed. From
    [`ConversationCache.resume`].
    """

    def __init__(
        self,
        conversations: ConversationCache,
        inputs: Mapping[str, Any],
        keys: list[int | bytes],
        settings: tuple,
        known: _Kept | None = None,
    ):
        self.cached_tokens = 0 if known is None else len(known.keys)
        self._conversations, self._inputs, self._keys, self._settings = conversations, inputs, keys, settings
        self._known = known

    def generate(self, **options: Any) -> Tensor:
        """
        As the model's `generate`, with the same tokens as without a cache. Afterwards the conversation is kept, up to
        the answer's last token; if generation was interrupted, up to the end of the prompt.

        Args:
            options: Those of `generate`, without inputs.
        """
        model, inputs = self._conversations.model, self._inputs
        if not _takes_dynamic_cache(model.generation_config, options):
            self.cached_tokens = 0
            return model.generate(**inputs, **options)
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        if self._known is not None:
            inputs = _without_known_media(model.config, inputs, self.cached_tokens)
            self._known.fill(cache)
            self._known = None  # each layer frees its part as soon as it has grown
        keys = self._keys
        try:
            output = model.generate(**inputs, **options, **{CACHE: cache})
            keys = keys + output[0, len(keys) :].tolist()
            return output
        except torch.OutOfMemoryError:  # the next answer shall have the memory
            self._conversations.clear()
            cache.layers.clear()
            raise
        finally:
            if kept := _Kept.of(cache, keys, self._settings):
                self._conversations.keep(kept)


@dataclass(frozen=True)
class _Kept:
    """
    A conversation that was computed.

    Args:
        settings: Those under which it was computed, see `_settings`.
        keys: Its tokens, see `_token_keys`.
        layers: The keys and values of each layer, `(1, heads, tokens, head size)`.
    """

    settings: tuple
    keys: list[int | bytes]
    layers: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, cache: DynamicCache, keys: list[int | bytes], settings: tuple) -> _Kept | None:
        """Return what a cache holds of these tokens; None if there is nothing, or it cannot be cut at any token."""
        layers = cache.layers
        if not layers or any(type(layer) is not DynamicLayer or not layer.is_initialized for layer in layers):
            return None
        # After an interruption, layers may differ in length, and may have tokens that nobody knows
        length = min(len(keys), *(layer.get_seq_length() for layer in layers))
        return cls(settings, keys, [(layer.keys, layer.values) for layer in layers]).first(length)

    def first(self, length: int) -> _Kept:
        """Return the first tokens, which share the memory."""
        layers = [(keys[..., :length, :], values[..., :length, :]) for keys, values in self.layers]
        return _Kept(self.settings, self.keys[:length], layers)

    def fill(self, cache: DynamicCache) -> None:
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)


def _settings(model: PreTrainedModel) -> tuple:
    """Return what else the keys and values depend on: poolings, RoPE, and the adapter's strength in each layer."""
    config = model.config
    adapters = tuple(
        (*module.active_adapters, *module.scaling.values(), module.disable_adapters)
        for module in model.modules()
        if hasattr(module, "lora_A")
    )
    rope = str(config.text_config.rope_parameters)
    return str(config.video_pooling), str(config.image_pooling), rope, adapters


def _takes_dynamic_cache(own: GenerationConfig, options: dict[str, Any]) -> bool:
    """Whether `generate`, with these options, uses the cache that it is given, for one sequence."""
    wanted = {**(options.get("generation_config") or own).to_dict(), **options}
    one = all(wanted.get(name) in (None, 1) for name in ("num_beams", "num_return_sequences"))
    return one and wanted.get("use_cache") is not False and wanted.get("cache_implementation") is None


# --- tokens and media ------------------------------------------------------------------------------------------------


def _places(config: PllavaConfig, inputs: Mapping[str, Any]) -> dict[str, tuple[list[int], int]]:
    """Return, by the name of their pixels, the placeholders of images and of videos, and how many each one has."""
    ids = inputs["input_ids"][0].tolist()
    places = {}
    for name, token in MEDIA.items():
        if (pixels := inputs.get(name)) is not None and len(pixels):
            found = [place for place, number in enumerate(ids) if number == getattr(config, token)]
            places[name] = found, max(len(found) // len(pixels), 1)
    return places


def _token_keys(config: PllavaConfig, inputs: Mapping[str, Any]) -> list[int | bytes]:
    """Return a prompt's token ids, with a digest of the pixels in place of each placeholder."""
    keys = inputs["input_ids"][0].tolist()
    for name, (places, size) in _places(config, inputs).items():
        digests = [_digest(pixels) for pixels in inputs[name]]
        for number, place in enumerate(places):
            keys[place] = digests[min(number // size, len(digests) - 1)]
    return keys


def _digest(pixels: Tensor) -> bytes:
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}".encode())
    digest.update(pixels.cpu().contiguous().view(torch.uint8).numpy())
    return digest.digest()


def _common_length(one: list, other: list) -> int:
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _between_media(config: PllavaConfig, inputs: Mapping[str, Any], keys: list[int | bytes], length: int) -> int:
    """Return `length`, or the beginning of the medium in whose placeholders it lies."""
    for places, size in _places(config, inputs).values():
        known = sum(place < length for place in places)
        if known % size:
            length = places[known - known % size]
    return length


def _without_known_media(config: PllavaConfig, inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the inputs without the pixels of the media in the first tokens."""
    left = dict(inputs)
    for name, (places, size) in _places(config, inputs).items():
        left[name] = left[name][sum(place < length for place in places) // size :]
    return {name: value for name, value in left.items() if name not in MEDIA or len(value)}
