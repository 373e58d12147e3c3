"""The values of PLLaVA's config that an image model's config stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from ..configuration_pllava import VISION_TOWERS
from .families import FIRST_PATCH, STRATEGIES, Family

STRATEGY = "vision_feature_select_strategy"
# Keys of a text model's config.json that the class of its config renames
OLD_TEXT_KEYS = {"rope_theta", "rope_scaling"}


def model_values(
    family: Family, config: Mapping[str, Any], vision_config: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """
    Translate the config of an image model.

    Args:
        vision_config: The vision tower's, where `config` does not have it.

    Returns:
        Arguments of [`PllavaConfig`], and in what the model differs from the PLLaVA that they describe.
    """
    layout = family.layout
    values = {**family.defaults, **{own: config[key] for key, own in layout.keys.items() if key in config}}
    text = _flat_text_config(family, config) if layout.flat else values.get("text_config", {})
    if isinstance(text, dict):  # a config of another type is an error of PllavaConfig
        values["text_config"] = {"model_type": family.text_model(config), **text}
    if vision_config is not None:
        values["vision_config"] = dict(vision_config)
    if STRATEGY in values:
        values[STRATEGY] = STRATEGIES.get(values[STRATEGY], values[STRATEGY])
    tower = values.get("vision_config")
    tower_type = tower.get("model_type") if isinstance(tower, dict) else None
    values |= layout.tower_values.get(tower_type, {})
    differences = []
    if tower_type in VISION_TOWERS and not VISION_TOWERS[tower_type].has_cls and values.get(STRATEGY) == "default":
        values[STRATEGY] = "full"
        differences.append(FIRST_PATCH)
    return values, differences


def _flat_text_config(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a flat config that are the text model's."""
    known = CONFIG_MAPPING[family.text_model(config)]().to_dict().keys() | OLD_TEXT_KEYS
    return {key: config[key] for key in sorted(known & config.keys() - {"model_type", "architectures"})}


def vision_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vision tower's config in that of the tower alone, of CLIP or SigLIP, or of a LLaVA."""
    if "vision_config" not in config:
        return dict(config)
    return {"model_type": f"{config.get('model_type')}_vision_model", **config["vision_config"]}
