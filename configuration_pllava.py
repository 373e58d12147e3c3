"""PLLaVA's configuration: LLaVA's, with the number of frames and how their tokens are pooled."""

import math
import re
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig

from .pooling_pllava import PoolingMixin

if TYPE_CHECKING:  # transformers copies imported files into a checkpoint: this import adds the pipeline's
    from .pipeline_pllava import VideoTextToTextPipeline  # noqa: F401

# Saved in config.json: where transformers finds the classes among the code files in the checkpoint
AUTO_MAP = {
    "AutoConfig": "configuration_pllava.PllavaConfig",
    "AutoModel": "modeling_pllava.PllavaModel",
    "AutoModelForCausalLM": "modeling_pllava.PllavaForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_pllava.PllavaForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_pllava.PllavaForConditionalGeneration",
    "AutoProcessor": "processing_pllava.PllavaProcessor",
    "AutoVideoProcessor": "video_processing_pllava.PllavaVideoProcessor",
}
CUSTOM_PIPELINES = {
    "video-text-to-text": {
        "impl": "pipeline_pllava.VideoTextToTextPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}


@dataclass(frozen=True)
class VisionTower:
    """
    What differs between vision towers.

    Args:
        has_cls: Whether a CLS token comes before the patches.
        takes_patches: Whether its input are patches, cut out of the frame, instead of frames.
    """

    has_cls: bool
    takes_patches: bool = False


VISION_TOWERS = {
    "clip_vision_model": VisionTower(has_cls=True),
    "siglip_vision_model": VisionTower(has_cls=False),  # SigLIP 2 as well, but for NaFlex
    "siglip2_vision_model": VisionTower(has_cls=False, takes_patches=True),  # NaFlex
}

# What `origin` says of a source
SOURCE_KEYS = {"repo_id", "revision", "fingerprint", "license", "origin"}
ONE_WORD = re.compile(r"[\w./-]{1,200}")
MAX_ORIGINS = 10  # of local models that were made from local models

# Maxima, several times those of any published model (the minimum is 1): an untrusted checkpoint that exceeds them is
# refused before memory is allocated for it
LIMITS = {
    "num_frames": 4096,
    "num_video_tokens": 131_072,
    "num_image_tokens": 131_072,
    "text_config.num_hidden_layers": 512,
    "text_config.hidden_size": 65_536,
    "text_config.intermediate_size": 262_144,
    "text_config.vocab_size": 1_048_576,
    "vision_config.num_hidden_layers": 512,
    "vision_config.hidden_size": 65_536,
    "vision_config.intermediate_size": 262_144,
    "image_size": 4096,
    "vision_config.patch_size": 4096,
}


@strict
class PllavaConfig(PoolingMixin, LlavaConfig):
    r"""
    Configuration of a [`PllavaForConditionalGeneration`]: that of LLaVA (`LlavaConfig`) with a few more values.

    Args:
        num_frames (`int`, *optional*, defaults to 16):
            Number of frames that the processor samples from a clip (T in the paper). The model takes any number:
            more frames are pooled to the same shape, fewer are repeated up to this number.
        pooling (`str`, *optional*, defaults to `"average"`):
            How the tokens of a clip's frames become fewer: a name in `pooling_pllava.py`.
        pooling_shape (`list[int]` or `list[list[int]]`, *optional*, defaults to `[16, 12, 12]`):
            Frames, rows and columns (T', h', w') of the pooled tokens; of both paths for `"slowfast"`. In figure 7 of
            the paper, 12 rows and columns score as well as CLIP's 24.
        image_pooling_shape (`list[int]`, *optional*):
            Frames, rows and columns of an image's tokens, `[1, 24, 24]` for all of CLIP's. By default an image is
            pooled as a video in which nothing moves.
        vision_feature_layer (`int` or `list[int]`, *optional*, defaults to -2):
            The hidden state of the vision tower that is read; several are concatenated.
        projector_layernorm_eps (`float`, *optional*):
            Of a layer norm before the projector's first layer, which ViP-LLaVA has; by default there is none.
        video_token_index (`int`, *optional*, defaults to 32001):
            Id of the `<video>` placeholder, also available as `video_token_id`.
        image_token_index (`int`, *optional*, defaults to 32000):
            Id of the `<image>` placeholder, also available as `image_token_id`.
        origin (`dict`, *optional*):
            How the weights were made: the `kind` of their source, the `source` and, where there is one, the `base` and
            the `adapter` or the `vision_tower`, each with its id and commit on the Hub and a fingerprint of what was
            read; and the `alpha` at which a LoRA was merged. `pllava convert` and the trainers write it.

    Raises:
        ValueError: if the pooling is unknown or does not have such a shape, a value exceeds its maximum in `LIMITS`,
            or the vision tower is not one of `VISION_TOWERS` or does not have the layer `vision_feature_layer`.

    Example:

    ```python
    >>> from pllava import PllavaConfig, PllavaForConditionalGeneration

    >>> config = PllavaConfig(num_frames=8, pooling_shape=[8, 12, 12])
    >>> config.num_video_tokens
    1152
    ```"""

    model_type = "pllava"
    attribute_map = {"image_token_id": "image_token_index", "video_token_id": "video_token_index"}

    num_frames: int = 16
    pooling: str = "average"
    pooling_shape: list | tuple = (16, 12, 12)
    image_pooling_shape: list | tuple | None = None
    projector_layernorm_eps: float | None = None
    video_token_index: int = 32001
    vision_feature_layer: int | list[int] | tuple[int, ...] = -2
    origin: dict | None = None

    def __post_init__(self, **kwargs):
        kwargs = {"auto_map": dict(AUTO_MAP), "custom_pipelines": dict(CUSTOM_PIPELINES), **kwargs}
        super().__post_init__(**kwargs)
        self.normalize_shapes()
        tower = VISION_TOWERS.get(self.vision_config.model_type)
        if tower is None:
            raise ValueError(
                f"PLLaVA pools the patches of a vision tower of these types: {', '.join(VISION_TOWERS)}; got "
                f"`{self.vision_config.model_type}`"
            )
        for name, limit in LIMITS.items():
            value = attrgetter(name)(self)
            if not 1 <= value <= limit:
                raise ValueError(f"`{name}` must be between 1 and {limit:,}; got {value:,}")
        strategy = "default" if tower.has_cls else "full"
        if self.vision_feature_select_strategy != strategy:
            raise ValueError(
                "PLLaVA pools the patches, without CLS: for this vision tower, `vision_feature_select_strategy` must "
                f"be {strategy!r}; got {self.vision_feature_select_strategy!r}"
            )
        _ = self.num_vision_layers  # raises an error if a layer does not exist
        check_origin(self.origin)

    @property
    def image_size(self) -> int:
        """Height, and width, of the frames that the vision tower takes, in pixels."""
        vision = self.vision_config
        return getattr(vision, "image_size", None) or math.isqrt(vision.num_patches) * vision.patch_size

    @property
    def patch_grid(self) -> int:
        """Rows, and columns, of patches in a frame."""
        return self.image_size // self.vision_config.patch_size

    @property
    def vision_layers(self) -> list[int]:
        """The hidden states of the vision tower that are read, counted from 1."""
        layers, total = self.vision_feature_layer, self.vision_config.num_hidden_layers
        read = [
            layer if layer >= 0 else total + 1 + layer for layer in ([layers] if isinstance(layers, int) else layers)
        ]
        if not read or min(read) < 1 or max(read) > total:
            raise ValueError(
                f"`vision_feature_layer` counts the {total} layers of the vision tower, from 1 to {total} or from "
                f"{-total} to -1; got {layers}"
            )
        return read

    @property
    def num_vision_layers(self) -> int:
        """Number of vision layers up to the last hidden state that is read; those above it are not built."""
        return max(self.vision_layers)


def check_origin(origin: Any, depth: int = 0) -> None:
    """Raise a `ValueError` if it is not None, nor has the form of [`PllavaConfig`]'s `origin`, which cards print."""
    sources = dict.fromkeys(("source", "base", "adapter", "vision_tower"), dict)
    names = {"kind": str, "alpha": (int, float), "rank": int, **sources}
    valid = origin is None or (isinstance(origin, dict) and {"kind", "source"} <= origin.keys() <= names.keys())
    for name, value in (origin or {}).items() if valid else ():
        valid &= isinstance(value, names[name])
        if valid and names[name] is dict:
            nested = value.get("origin")
            texts = [part for key, part in value.items() if key != "origin"]
            valid &= depth < MAX_ORIGINS and value.keys() <= SOURCE_KEYS
            valid &= all(isinstance(text, str) and ONE_WORD.fullmatch(text) is not None for text in texts)
            check_origin(nested, depth + 1)
    if not valid:
        raise ValueError(f"`origin` is not as `pllava convert` and trainings write it: {origin!r:.200}; remove it")


__all__ = ["PllavaConfig"]
