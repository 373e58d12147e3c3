"""
The vision tower's features of clips, kept on disk: the tower is frozen, so that what it makes of a clip is the same in
every epoch, and it is most of the work of a step.
"""

import hashlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...data.media import Medium
from ...modeling_pllava import PllavaModel
from ...video_decoding_pllava import load_frames

logger = logging.getLogger(__name__)


class FeatureCache:
    """
    Files of features, `(frames, patches, C)` each, in the dtype that the tower gave. Their names are hashes of all
    that the features depend on: content of the clip, the frames that are drawn, their preparation, the tower's weights
    and its arithmetic. With a cache a clip keeps its frames from epoch to epoch, random ones, too.

    A file has 16 frames x 576 patches x 1024 values of two bytes at CLIP-L/336: 18.9 MB a clip, 14.8 TB for all of
    VideoChat2-IT. At 7B that saves about 5 % of a step. Where a run waits for decoding (`data_wait` in the logs), it
    is not the right tool: copies of the clips at the model's frame size, with a keyframe a second, decode quickly.

    Args:
        directory: Where the files are.
        tower: The vision tower.
        processor: Prepares the frames.
        arithmetic (`str`): What else decides the tower's numbers, as "bf16" under autocast.
        max_bytes (`int`, *optional*): What the directory may hold; more is not kept, which is said once.
        processes (`int`): How many processes fill it; each takes an equal part of what is free at the start.
    """

    def __init__(
        self,
        directory: Path,
        tower: nn.Module,
        processor: ProcessorMixin,
        arithmetic: str = "",
        max_bytes: int | None = None,
        processes: int = 1,
    ):
        self.directory, self.processor = directory, processor
        self._room, self._full = math.inf, False
        if max_bytes is not None:
            held = sum(file.stat().st_size for file in directory.rglob("*.safetensors"))
            self._room = (max_bytes - held) / processes
        digest = hashlib.sha256(f"{tower.dtype} {arithmetic}".encode())
        digest.update(processor.video_processor.to_json_string().encode())
        for name, weight in sorted(tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        self._base = digest.hexdigest()
        self._keys: list[str | None] | None = None

    def key(self, clip: Medium, sampling: str) -> str:
        """
        The name of a clip's features. Seeds torch's generator, so that the frames drawn next are those of the key.

        Args:
            clip: In a file, or its bytes (see [`fetch`]).
            sampling: How frames are drawn.
        """
        content = _digest(clip.content)
        _, metadata = load_frames(clip.content, lambda metadata: [])  # reads the index, and decodes no frame
        state = torch.random.default_generator.manual_seed(int(content[:15], 16)).get_state()
        indices = self.processor.video_processor.sample_frames(metadata, sampling=sampling, **clip.bounds)
        torch.random.default_generator.set_state(state)
        return hashlib.sha256(json.dumps([self._base, content, indices.tolist()]).encode()).hexdigest()

    def load(self, key: str) -> torch.Tensor | None:
        file = self._file(key)
        if not file.exists():
            return None
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor("features")

    def save(self, key: str, features: torch.Tensor) -> None:
        if features.nbytes > self._room:
            if not self._full:
                logger.warning("%s has reached its size: the features of further clips are not kept", self.directory)
            self._full = True
            return
        self._room -= features.nbytes
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({"features": features.detach().cpu().contiguous()}, partial)
        partial.replace(file)

    def attach(self, model: PllavaModel) -> None:
        """Has `model` take the features that a batch brings in place of a video, and keeps those of other videos."""
        model.register_forward_pre_hook(self._encode_videos, with_kwargs=True)

    def expect(self, keys: list[str | None]) -> None:
        """The keys of the videos of the next batch, and of no further one; None for a video that is not to be kept."""
        self._keys = keys

    def _encode_videos(self, model: PllavaModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        keys, self._keys = self._keys, None
        videos = kwargs.get("pixel_values_videos")
        if keys is None or videos is None:  # an evaluation's batch, or a text
            return args, kwargs
        pixels = [video for video in videos if video.ndim == 4]
        if pixels:
            frames = model.encode_frames(torch.cat(pixels)).last_hidden_state
            encoded = iter(frames.split([len(video) for video in pixels]))
        features = [next(encoded) if video.ndim == 4 else video for video in videos]
        for video, key, kept in zip(videos, keys, features, strict=True):
            if video.ndim == 4 and key is not None:
                self.save(key, kept)
        tokens = BaseModelOutputWithPooling(pooler_output=model.pool(features))
        return args, {**kwargs, "pixel_values_videos": None, "mm_encoder_outputs": {"video": tokens}}

    def _file(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.safetensors"


def _digest(content: str | bytes) -> str:
    """Of a file, of its bytes, or of a folder of frames."""
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    path = Path(content)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
