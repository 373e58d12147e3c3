"""Decoding a benchmark's clips ahead in worker processes; a clip that cannot be read becomes one with an error."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from ...media import AS_SAMPLED, MediaGate, MediaRefused
from ...media.batch import is_remote
from ...media.decoding import collecting_damages
from ...video_processing_pllava import UNNORMALIZED
from ...video_source_pllava import VideoDecodeError, is_address, public_name
from ...workers import DECODE_TIMEOUT, ordered_map

CLIPS_AHEAD = 8  # per worker


@dataclass
class DecodedClip:
    """
    Args:
        pixels: uint8 `(frames, 3, height, width)`, not normalised yet; None if the clip cannot be read.
        error: Why it cannot be read.
        damaged: What is wrong with a clip that is read only in part.
        seconds: Time for decoding and preprocessing.
    """

    pixels: torch.Tensor | None
    error: str | None = None
    damaged: str | None = None
    seconds: float = 0.0


def decode_clips(
    processor: ProcessorMixin,
    sources: Iterable[dict[str, Any]],
    num_workers: int,
    gate: MediaGate | None = None,
) -> Iterator[DecodedClip]:
    """
    Decode `sources`, dicts as the video processor takes them, in order. A few are read ahead. Those whose "path" is an
    http(s) address come through the gate (see `media/batch.py`).
    """
    decode, ahead = _Decoder(processor, gate), CLIPS_AHEAD * num_workers
    return ordered_map(decode, sources, num_workers, ahead, DECODE_TIMEOUT, decode.lost)


class _Decoder:
    def __init__(self, processor: ProcessorMixin, gate: MediaGate | None):
        self.processor, self.gate = processor, gate

    def __call__(self, source: dict[str, Any]) -> DecodedClip:
        start, pixels, error = time.perf_counter(), None, None
        with collecting_damages() as damages:
            try:
                pixels = self._process(source)["pixel_values_videos"][0]
            except (MediaRefused, VideoDecodeError) as problem:
                error = str(problem)
        return DecodedClip(pixels, error, damages[0] if damages else None, time.perf_counter() - start)

    def _process(self, source: dict[str, Any]) -> BatchFeature:
        process = self.processor.video_processor
        if not is_remote(source["path"]):
            return process(source, return_tensors="pt", **UNNORMALIZED)
        frames, _ = self.gate.load_video(source["path"], process, None, source.get("start"), source.get("end"))
        return process(frames, return_tensors="pt", **AS_SAMPLED["videos_kwargs"], **UNNORMALIZED)

    def lost(self, source: dict[str, Any], reason: str) -> DecodedClip:
        path = source["path"]
        return DecodedClip(None, f"{public_name(path) if is_address(path) else path}: {reason}")
