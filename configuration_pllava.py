"""PLLaVA's configuration: LLaVA's, with the number of frames and the shape that they are pooled to."""

import math
import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig

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

# What `origin` says of a source
SOURCE_KEYS = {"repo_id", "revision", "fingerprint", "license", "origin"}
ONE_WORD = re.compile(r"[\w./-]{1,200}")
MAX_ORIGINS = 10  # of local models that were made from local models

# Maxima, several times those of any published model (the minimum is 1): an untrusted checkpoint that exceeds them is
# refused before memory is allocated for it
LIMITS = {
    "num_frames": 4096,
    "num_visual_tokens": 131_072,
    "text_config.num_hidden_layers": 512,
    "text_config.hidden_size": 65_536,
    "text_config.intermediate_size": 262_144,
    "text_config.vocab_size": 1_048_576,
    "vision_config.num_hidden_layers": 512,
    "vision_config.hidden_size": 65_536,
    "vision_config.intermediate_size": 262_144,
    "vision_config.image_size": 4096,
    "vision_config.patch_size": 4096,
}


@strict
class PllavaConfig(LlavaConfig):
    r"""
    Configuration of a [`PllavaForConditionalGeneration`]: that of LLaVA (`LlavaConfig`) with five more values.

    Args:
        num_frames (`int`, *optional*, defaults to 16):
            Number of frames that the processor samples from a clip (T in the paper). The model takes any number:
            more frames are pooled to the same shape, fewer are repeated up to this number.
        pooling_shape (`list[int]`, *optional*, defaults to `[16, 12, 12]`):
            Frames, rows and columns (T', h', w') of the pooled visual tokens. In figure 7 of the paper, 12 rows and
            columns score as well as CLIP's 24.
        video_token_index (`int`, *optional*, defaults to 32001):
            Id of the `<video>` placeholder, also available as `video_token_id`.
        image_token_index (`int`, *optional*, defaults to 32000):
            Id of the `<image>` placeholder, also available as `image_token_id`.
        origin (`dict`, *optional*):
            How the weights were made: the `kind` of their source, the `source` and, where there is one, the `base` and
            the `adapter`, each with its id and commit on the Hub and a fingerprint of what was read; and the `alpha`
            at which a LoRA was merged. `pllava convert` and the trainers write it.

    Raises:
        ValueError: if the pooling shape is not three positive numbers, a value exceeds its maximum in `LIMITS`, or the
            vision tower is not a CLIP or does not have the layer `vision_feature_layer`.

    Example:

    ```python
    >>> from pllava import PllavaConfig, PllavaForConditionalGeneration

    >>> config = PllavaConfig(num_frames=8, pooling_shape=[8, 12, 12])
    >>> config.num_visual_tokens
    1152
    ```"""

    model_type = "pllava"
    attribute_map = {"image_token_id": "image_token_index", "video_token_id": "video_token_index"}

    num_frames: int = 16
    pooling_shape: list[int] | tuple[int, ...] = (16, 12, 12)
    video_token_index: int = 32001
    vision_feature_layer: int = -2
    origin: dict | None = None

    def __post_init__(self, **kwargs):
        kwargs = {"auto_map": dict(AUTO_MAP), "custom_pipelines": dict(CUSTOM_PIPELINES), **kwargs}
        super().__post_init__(**kwargs)
        self.pooling_shape = list(self.pooling_shape)  # JSON has no tuples: a loaded config must equal the saved one
        if len(self.pooling_shape) != 3 or min(self.pooling_shape) < 1:
            raise ValueError(
                f"`pooling_shape` is (frames, rows, columns), three positive integers; got {self.pooling_shape}"
            )
        for name, limit in LIMITS.items():
            value = attrgetter(name)(self)
            if not 1 <= value <= limit:
                raise ValueError(f"`{name}` must be between 1 and {limit:,}; got {value:,}")
        if self.vision_config.model_type != "clip_vision_model":
            raise ValueError(
                "PLLaVA pools the patch grid of a CLIP vision tower (`clip_vision_model`); got "
                f"`{self.vision_config.model_type}`"
            )
        if self.vision_feature_select_strategy != "default":
            raise ValueError(
                "PLLaVA pools the patches, without CLS: `vision_feature_select_strategy` must be 'default'; got "
                f"{self.vision_feature_select_strategy!r}"
            )
        _ = self.num_vision_layers  # raises an error if the layer does not exist
        check_origin(self.origin)

    @property
    def num_visual_tokens(self) -> int:
        """Number of tokens per video or image in the text: T' * h' * w'."""
        return math.prod(self.pooling_shape)

    @property
    def num_vision_layers(self) -> int:
        """Number of vision layers up to the hidden state that is read; those above it are not built."""
        layer, layers = self.vision_feature_layer, self.vision_config.num_hidden_layers
        built = layer if layer >= 0 else layers + 1 + layer
        if not 1 <= built <= layers:
            raise ValueError(
                f"`vision_feature_layer` counts the {layers} layers of the vision tower, from 1 to {layers} or from "
                f"{-layers} to -1; got {layer}"
            )
        return built


def check_origin(origin: Any, depth: int = 0) -> None:
    """Raise a `ValueError` if it is not None, nor has the form of [`PllavaConfig`]'s `origin`, which cards print."""
    names = {"kind": str, "alpha": (int, float), "rank": int, "source": dict, "base": dict, "adapter": dict}
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
