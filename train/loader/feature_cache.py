"""
A cache of the vision tower's features on the disk. The tower is frozen, so that the features of the same frames are
equal in every epoch, and computing them is most of the work of a step.
"""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...data.media import Medium
from ...files import new_file
from ...modeling_pllava import PllavaModel
from ...video_decoding_pllava import load_frames

logger = logging.getLogger(__name__)


class FeatureCache:
    """
    Files of features, `(frames, patches, C)` each, in the tower's dtype. A file's name is a hash of all that the
    features depend on: the clip's content and frame indices, the preprocessing, the tower's weights and dtype, and the
    layers that are read. The pooling comes after them. With a cache a clip has the same frames in all epochs, also
    under random sampling.

    A clip takes 16 frames x 576 patches x 1024 values of two bytes at CLIP-L/336: 18.9 MB, and VideoChat2-IT 14.8 TB.
    At 7B the cache saves about 5 % of a step. If a run waits for decoding (`data_wait` in the logs), rather make
    copies of the clips at the model's frame size, with a keyframe per second: they decode quickly.

    Args:
        model: Has the frozen vision tower, and says which of its layers are read.
        processor: Samples and preprocesses the frames.
        autocast (`str`): The dtype under which the tower runs, if it is not its own: "bf16".
        max_bytes (`int`, *optional*): Size limit of the directory; further features are not saved, with one warning.
        processes (`int`): How many processes fill it; each may use an equal part of what is free at the start.
    """

    def __init__(
        self,
        directory: Path,
        model: PllavaModel,
        processor: ProcessorMixin,
        autocast: str = "",
        max_bytes: int | None = None,
        processes: int = 1,
    ):
        self.directory, self.processor = directory, processor
        self._free_bytes, self._is_full = math.inf, False
        if max_bytes is not None:
            used = sum(file.stat().st_size for file in directory.rglob("*.safetensors"))
            self._free_bytes = (max_bytes - used) / processes
        tower = model.vision_tower
        digest = hashlib.sha256(f"{tower.dtype} {autocast} {model.config.vision_layers}".encode())
        digest.update(processor.video_processor.to_json_string().encode())
        for name, weight in sorted(tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        self._tower_digest = digest.hexdigest()
        self._keys: list[str | None] | None = None

    def key(self, clip: Medium, sampling: str) -> str:
        """
        Return the name of a clip's features. Seeds torch's generator, so that the next call of the video processor
        samples the frames of this key.

        Args:
            clip: A file or its bytes (see [`fetch`]).
        """
        content = _digest(clip.content)
        _, metadata = load_frames(clip.content, lambda metadata: [])  # reads the index, and decodes no frame
        state = torch.random.default_generator.manual_seed(int(content[:15], 16)).get_state()
        indices = self.processor.video_processor.sample_frames(metadata, sampling=sampling, **clip.bounds)
        torch.random.default_generator.set_state(state)
        return hashlib.sha256(json.dumps([self._tower_digest, content, indices.tolist()]).encode()).hexdigest()

    def load(self, key: str) -> torch.Tensor | None:
        file = self._file(key)
        if not file.exists():
            return None
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor("features")

    def save(self, key: str, features: torch.Tensor) -> None:
        if features.nbytes > self._free_bytes:
            if not self._is_full:
                logger.warning("%s has reached its size limit: no further features are saved", self.directory)
            self._is_full = True
            return
        self._free_bytes -= features.nbytes
        with new_file(self._file(key)) as partial:
            save_file({"features": features.detach().cpu().contiguous()}, partial)

    def attach(self, model: PllavaModel) -> None:
        """Make `model` use cached features that a batch has in place of videos, and save those of other videos."""
        model.register_forward_pre_hook(self._encode_videos, with_kwargs=True)

    def expect(self, keys: list[str | None]) -> None:
        """Set the keys of the videos in the next batch only; None for a video whose features are not to be saved."""
        self._keys = keys

    def _encode_videos(self, model: PllavaModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        keys, self._keys = self._keys, None
        videos = kwargs.get("pixel_values_videos")
        if keys is None or videos is None:  # a batch of an evaluation, or one without videos
            return args, kwargs
        pixels = [video for video in videos if video.ndim == 4]
        if pixels:
            encoded = model.encode_frames(torch.cat(pixels)).last_hidden_state
            new_features = iter(encoded.split([len(video) for video in pixels]))
        features = [next(new_features) if video.ndim == 4 else video for video in videos]
        for video, key, feature in zip(videos, keys, features, strict=True):
            if video.ndim == 4 and key is not None:
                self.save(key, feature)
        tokens = BaseModelOutputWithPooling(pooler_output=torch.stack(model.pool(features)))
        return args, {**kwargs, "pixel_values_videos": None, "mm_encoder_outputs": {"video": tokens}}

    def _file(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.safetensors"


def _digest(content: str | bytes) -> str:
    """Return the hash of a file, of its bytes, or of a folder of frames."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    path, digest = Path(content), hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
