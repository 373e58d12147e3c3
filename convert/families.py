"""
The image models that become PLLaVA, as data: how each family lays out its config and its weights, how it is prompted,
and in what it differs from PLLaVA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..pooling_pllava import POOLING_KEYS
from .refusals import REFUSED, REFUSED_VALUES

# --- layouts of config.json and of weight names ----------------------------------------------------------------------

SAME_KEYS = (
    *("text_config", "vision_config", "projector_hidden_act", "multimodal_projector_bias", "projector_layernorm_eps"),
    *("vision_feature_layer", "vision_feature_select_strategy", "tie_word_embeddings"),
    "num_frames",
    *POOLING_KEYS,
)
# What original code calls PLLaVA's `vision_feature_select_strategy`
STRATEGIES = {"patch": "default", "cls_patch": "full"}
TWO_LAYERS = ("mlp2x_gelu",)


@dataclass(frozen=True)
class Layout:
    """
    How the files of a checkpoint are laid out.

    Args:
        keys: Keys of its config, and PLLaVA's keys for the same values.
        renames: Patterns of its weight names, and what replaces them; `weight_names.py` does the rest.
        marker: A key that a config must have to be of this layout.
        flat: Whether the text model's values are not in a `text_config`, but at the top of the config.
        tower: The key of the vision tower's name, for what the checkpoint does not have of the tower.
        tower_values: By the tower's type, values of PLLaVA's config that its code does not read from the config.
        required: Keys of the config, and the values that they may have.
    """

    keys: Mapping[str, str] = field(default_factory=lambda: {key: key for key in SAME_KEYS})
    renames: tuple[tuple[str, str], ...] = ()
    marker: str | None = None
    flat: bool = False
    tower: str | None = None
    tower_values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    required: Mapping[str, tuple] = field(default_factory=dict)


TRANSFORMERS = Layout(keys={**{key: key for key in SAME_KEYS}, "vision_feature_layers": "vision_feature_layer"})
# haotian-liu/LLaVA and LLaVA-VL/LLaVA-NeXT
ORIGINAL = Layout(
    keys={
        "mm_vision_select_layer": "vision_feature_layer",
        "mm_vision_select_feature": "vision_feature_select_strategy",
    },
    renames=(
        (r"^model\.(embed_tokens|layers|norm)\.", r"language_model.\1."),
        (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
        (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
        (r"^model\.vision_tower\.vision_tower\.", "vision_tower."),
    ),
    marker="mm_vision_tower",
    flat=True,
    tower="mm_vision_tower",
    # `siglip_encoder.py` drops the last layer and reads all patches, whatever the config says
    tower_values={"siglip_vision_model": {"vision_feature_layer": -2, "vision_feature_select_strategy": "full"}},
    required={
        "mm_projector_type": TWO_LAYERS,
        "mm_resampler_type": (None, "identity", "spatial_pool"),  # without weights; the last one pools videos only
        "mm_use_im_start_end": (False, None),
    },
)
# TinyLLaVA/TinyLLaVA_Factory
FACTORY = Layout(
    renames=(
        (r"^connector\._connector\.0\.", "multi_modal_projector.linear_1."),
        (r"^connector\._connector\.2\.", "multi_modal_projector.linear_2."),
        (r"^vision_tower\._vision_tower\.", "vision_tower."),
    ),
    tower="vision_model_name_or_path",
    required={"connector_type": TWO_LAYERS},
)

# --- prompts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """
    A chat template, and for which models it is.

    Args:
        template: Its name in `chat_templates_pllava.py`.
        token: A token that the tokenizer must have.
        text_models: The types of text model; by default any.
    """

    template: str
    token: str | None = None
    text_models: tuple[str, ...] | None = None


QWEN = Prompt("chatml", "<|im_start|>", ("qwen2", "qwen3"))
YI = Prompt("eval_vcg_llavanext", "<|im_start|>")
LLAMA_3 = Prompt("llama_3", "<|start_header_id|>")
MISTRAL = Prompt("mistral", None, ("mistral",))
VICUNA = Prompt("plain")

# --- differences -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """
    What a base does otherwise than the PLLaVA that it becomes.

    Args:
        text: For the report of a conversion.
        when: Patterns of values in config.json or preprocessor_config.json, all of which must match.
    """

    text: str
    when: Mapping[str, str] = field(default_factory=dict)

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether a model with these values differs so."""
        return all(re.fullmatch(pattern, str(values.get(key))) for key, pattern in self.when.items())


TILES = "the base adds tiles of an image in higher resolution; PLLaVA reads the whole image once"
PADDING = "the base pads an image to a square; PLLaVA crops or resizes it, as its vision tower was trained"
FIRST_PATCH = "the base drops the first patch of its vision tower, as if it were a CLS token; PLLaVA reads all patches"
SQUEEZED = "the base squeezes an image into a square; PLLaVA crops the square in its centre"
BILINEAR = (
    "the base pools a video's frames by bilinear interpolation, and ends it with its image newline; PLLaVA takes the "
    "mean, which is the same for an even number of rows"
)
POOLED_BEFORE = "the base pools a video's frames before its projector, PLLaVA after it"
ANY_RESOLUTION = (Difference(TILES), Difference(SQUEEZED, {"do_center_crop": "True"}))
OF_ORIGINAL_CODE = (
    Difference(PADDING, {"image_aspect_ratio": "pad"}),
    Difference(TILES, {"image_aspect_ratio": "anyres.*"}),
    Difference(SQUEEZED, {"image_aspect_ratio": "anyres.*", "do_center_crop": "True"}),
    Difference(BILINEAR, {"mm_spatial_pool_mode": "bilinear"}),
)

# --- families --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """
    A family of image models.

    Args:
        name: For messages.
        text_models: By the `model_type` of its config, the type of its text model where the config does not say it.
        architectures: By the class of the model, the type of its text model, which the `model_type` may not tell.
        defaults: Values of PLLaVA's config that its config may leave out.
        prompts: The first one that fits is the chat template.
        base_of_original: Whether the original PLLaVA was trained on it, and writes its LoRA in this format.
        is_pllava: Whether it needs no conversion, only an adapter to merge.
    """

    name: str
    text_models: Mapping[str, str]
    layout: Layout = TRANSFORMERS
    architectures: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[Prompt, ...] = (QWEN, YI, LLAMA_3, MISTRAL, VICUNA)
    differences: tuple[Difference, ...] = ()
    base_of_original: bool = False
    is_pllava: bool = False

    def text_model(self, config: Mapping[str, Any]) -> str:
        """The type of the text model of a model with this config."""
        classes = config.get("architectures") or [None]
        return self.architectures.get(classes[0]) or self.text_models[config["model_type"]]


FAMILIES = (
    Family(
        "original LLaVA",
        {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
        | dict.fromkeys(("llava_qwen", "llava_qwen2", "llava-qwen2"), "qwen2")
        | {"llava_qwen3": "qwen3"}
        | {text_model: text_model for text_model in ("llama", "mistral", "qwen2", "qwen3")},
        ORIGINAL,
        {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral", "LlavaQwen3ForCausalLM": "qwen3"}
        | dict.fromkeys(("LlavaQwenForCausalLM", "LlavaQwen2ForCausalLM"), "qwen2"),
        {"vision_feature_select_strategy": "default"},
        differences=OF_ORIGINAL_CODE,
    ),
    Family(
        "LLaVA-1.5",
        {"llava": "llama"},
        prompts=(QWEN, YI, LLAMA_3, VICUNA),  # BakLLaVA has Mistral, and Vicuna's prompts
        differences=(Difference(PADDING, {"do_pad": "True"}),),
        base_of_original=True,
    ),
    Family("LLaVA-NeXT", {"llava_next": "llama"}, differences=ANY_RESOLUTION, base_of_original=True),
    Family(
        "LLaVA-NeXT-Video", {"llava_next_video": "llama"}, differences=(*ANY_RESOLUTION, Difference(POOLED_BEFORE))
    ),
    Family(
        "LLaVA-OneVision",
        {"llava_onevision": "qwen2"},
        defaults={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        differences=(*ANY_RESOLUTION, Difference(BILINEAR)),
    ),
    Family(
        "ViP-LLaVA",
        {"vipllava": "llama"},
        defaults={"vision_feature_layer": [-2, -5, -8, -11, 6], "projector_layernorm_eps": 1e-5},
    ),
    Family("TinyLLaVA", {"tinyllava": "llama"}, FACTORY, prompts=(VICUNA,), differences=OF_ORIGINAL_CODE),
    Family("PLLaVA", {"pllava": "llama"}, is_pllava=True),
)


def find_family(name: str, config: Mapping[str, Any]) -> Family:
    """
    Return the family of a checkpoint.

    Args:
        name: The checkpoint's, for the error.
        config: Its config.json.

    Raises:
        ValueError: if it is of none, or has parts that PLLaVA does not have; with the nearest that works.
    """
    model_type = config.get("model_type")
    family = next((each for each in FAMILIES if _fits(each, config)), None)
    if family is None:
        if refusal := REFUSED.get(model_type):
            raise ValueError(f"{name}: {model_type} cannot become a PLLaVA: {refusal}")
        names = ", ".join(each.name for each in FAMILIES if not each.is_pllava)
        raise ValueError(
            f"{name}: neither PLLaVA nor LLaVA, but {model_type!r} (config.json); the families are {names}"
        )
    for key, allowed in family.layout.required.items():
        value = config.get(key)
        if value not in allowed:
            raise ValueError(
                f"{name}: a model whose `{key}` is {value!r} (config.json) cannot become a PLLaVA: "
                f"{REFUSED_VALUES[key]}"
            )
    return family


def _fits(family: Family, config: Mapping[str, Any]) -> bool:
    marker = family.layout.marker
    return config.get("model_type") in family.text_models and (marker is None or marker in config)
