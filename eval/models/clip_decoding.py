"""A benchmark's clips, decoded ahead in worker processes; one that cannot be read comes as what is wrong with it."""

import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import ProcessorMixin

from ...video_decoding_pllava import VideoTruncatedWarning
from ...video_source_pllava import VideoDecodeError
from ...workers import end_with_parent, unchanged


@dataclass
class DecodedClip:
    """
    Args:
        pixels: `(frames, 3, height, width)` as the vision tower takes them; None if the clip cannot be read.
        error: Why it cannot be read.
        damaged: What is wrong with a clip that can be read in part.
        seconds: What decoding and preparing took.
    """

    pixels: torch.Tensor | None
    error: str | None
    damaged: str | None
    seconds: float


def decode_clips(
    processor: ProcessorMixin, sources: Iterable[dict[str, Any]], dtype: torch.dtype, num_workers: int
) -> Iterator[DecodedClip]:
    """Decodes `sources`, dicts as the video processor takes them, in their order. Of these a few are read ahead."""
    workers = {"prefetch_factor": 8} if num_workers else {}
    return iter(
        DataLoader(
            _Decoder(processor, dtype),
            sampler=sources,
            batch_size=None,
            collate_fn=unchanged,
            num_workers=num_workers,
            worker_init_fn=end_with_parent,
            **workers,
        )
    )


class _Decoder:
    def __init__(self, processor: ProcessorMixin, dtype: torch.dtype):
        self.processor, self.dtype = processor, dtype

    def __getitem__(self, source: dict[str, Any]) -> DecodedClip:
        began, pixels, error = time.perf_counter(), None, None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", VideoTruncatedWarning)
            try:
                processed = self.processor.video_processor(source, return_tensors="pt")
                pixels = processed["pixel_values_videos"][0].to(self.dtype)
            except VideoDecodeError as problem:
                error = str(problem)
        damaged = [str(each.message) for each in caught if issubclass(each.category, VideoTruncatedWarning)]
        return DecodedClip(pixels, error, damaged[0] if damaged else None, time.perf_counter() - began)
