"""
The vision tower's features of clips, kept on disk: the tower is frozen, so that what it makes of a clip is the same in
every epoch, and it is most of the work of a step.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import ProcessorMixin


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
        self._awaited: deque[tuple[int, str | None]] = deque()
        self._seen: list[torch.Tensor] = []

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

    def watch(self, tower: nn.Module) -> None:
        """Saves what the tower makes, in the model's forward, of the videos that [`expect`] has announced."""
        tower.register_forward_hook(self._save_output)

    def expect(
        self, images: Iterable[torch.Tensor], videos: Iterable[torch.Tensor], keys: Iterable[str | None]
    ) -> None:
        """Announces what the tower is to see next: images, then the videos that are not features already."""
        self._awaited.clear()
        self._seen.clear()
        self._awaited.extend((1, None) for _ in images)
        self._awaited.extend((len(video), key) for video, key in zip(videos, keys, strict=True) if video.ndim == 4)

    def _save_output(self, tower: nn.Module, args: Any, output: Any) -> None:
        if not self._awaited:  # nothing is to be kept: neither here
            return
        # The tower may see some frames of a video at a time, or several videos
        self._seen.extend(output.last_hidden_state[:, 1:].unbind())  # without CLS, as the model takes them
        while self._awaited and len(self._seen) >= self._awaited[0][0]:
            count, key = self._awaited.popleft()
            if key is not None:
                self.save(key, torch.stack(self._seen[:count]))
            del self._seen[:count]

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
