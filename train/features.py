"""
The vision tower's features of clips, kept on disk: the tower is frozen, so that what it makes of a clip is the same in
every epoch, and it is most of the work of a step.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling_pllava import PllavaModel


class FeatureCache:
    """
    Files of features, `(frames, patches, C)` each, in the dtype that the tower gave. Their names are hashes of all
    that the features depend on: content of the clip, its bounds, the choice of frames, their preparation, the tower's
    weights and its arithmetic. With a cache a clip keeps its frames from epoch to epoch, random ones, too.

    Args:
        directory: Where the files are; they take 16 frames x 576 patches x 1024 values for a clip at CLIP-L/336.
        tower: The vision tower.
        processor: Prepares the frames.
        arithmetic (`str`): What else decides the tower's numbers, as "bf16" under autocast.
    """

    def __init__(self, directory: Path, tower: nn.Module, processor: ProcessorMixin, arithmetic: str = ""):
        self.directory = directory
        digest = hashlib.sha256(f"{tower.dtype} {arithmetic}".encode())
        digest.update(processor.video_processor.to_json_string().encode())
        for name, weight in sorted(tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        self._base = digest.hexdigest()
        self._keys: list[str | None] = []

    def key(self, source: dict[str, Any], sampling: str) -> str:
        """The name of a clip's features. `source` is a dict as the video processor takes it."""
        bounds = {name: source.get(name) for name in ("start", "end")}
        digest = hashlib.sha256(json.dumps([self._base, sampling, bounds]).encode())
        for chunk in _content(source):
            digest.update(chunk)
        return digest.hexdigest()

    def load(self, key: str) -> torch.Tensor | None:
        file = self._file(key)
        if not file.exists():
            return None
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor("features")

    def save(self, key: str, features: torch.Tensor) -> None:
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({"features": features.detach().cpu().contiguous()}, partial)
        partial.replace(file)

    def attach(self, model: PllavaModel) -> None:
        """Has `model` take the features that a batch brings in place of a video, and keeps those of other videos."""
        model.register_forward_pre_hook(self._encode_videos, with_kwargs=True)

    def expect(self, keys: list[str | None]) -> None:
        """The keys of the videos of the next batch; none for a video that is not to be kept."""
        self._keys = keys

    def _encode_videos(self, model: PllavaModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        videos = kwargs.pop("pixel_values_videos", None)
        if videos is None:
            return args, kwargs
        pixels = [video for video in videos if video.ndim == 4]
        if pixels:
            frames = model.encode_frames(torch.cat(pixels)).last_hidden_state
            encoded = iter(frames.split([len(video) for video in pixels]))
        features = [next(encoded) if video.ndim == 4 else video for video in videos]
        for video, key, kept in zip(videos, self._keys, features, strict=True):
            if video.ndim == 4 and key is not None:
                self.save(key, kept)
        tokens = BaseModelOutputWithPooling(pooler_output=model.pool(features))
        return args, {**kwargs, "mm_encoder_outputs": {"video": tokens}}

    def _file(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.safetensors"


def _content(source: dict[str, Any]) -> Iterator[bytes]:
    if source.get("bytes") is not None:
        yield source["bytes"]
        return
    path = source.get("path") or source.get("video")
    if isinstance(path, dict):
        yield from _content(path)
        return
    if not isinstance(path, str):
        raise ValueError(f"Features are kept for videos in files or bytes; got a {type(path).__name__}")
    files = sorted(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]  # a folder of frames
    for file in files:
        yield file.read_bytes()
