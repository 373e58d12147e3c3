"""Weight names: every layout of PLLaVA and LLaVA checkpoints -> PLLaVA's state dict -> a PEFT adapter's file."""

import re
from collections.abc import Iterable

from ..modeling_pllava import UNREAD_PARTS

# Applied in order; the result begins with `language_model`, `vision_tower`, `multi_modal_projector` or `lm_head`
RENAMES = [
    (r"^base_model\.model\.", ""),  # PEFT around the whole model
    (r"^model\.", ""),
    (r"^language_model\.base_model\.model\.", "language_model."),  # the original code: PEFT around the text model
    (r"\.base_layer\.", "."),
    (r"^language_model\.model\.", "language_model."),  # transformers before 4.52
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
]
LORA = re.compile(r"(.*)\.lora_(A|B)(?:\.default)?\.weight")
# Tensors of LLaVA that PLLaVA does not use: the newline between rows of tiles, buffers that are computed, and
# LLaVA-NeXT-Video's own pooling of videos. The vision layers above the one that is read are found by their numbers.
UNUSED = re.compile(r"(^|\.)(image_newline|rotary_emb\.inv_freq|position_ids|vision_resampler\.pool\.(weight|bias))$")
# A vision tower's tensors in a checkpoint of the tower alone, of CLIP or SigLIP with its text model, or of a LLaVA
TOWER = re.compile(
    r"^(model\.)?(vision_tower\.)?(vision_model\.)?((embeddings|pre_layrnorm|encoder|post_layernorm|head)\..*)"
)
ADAPTER_PREFIX = "base_model.model."
EMBEDDINGS, HEAD = VOCABULARY = ("model.language_model.embed_tokens.weight", "lm_head.weight")  # one row per token
VISION_TOWER = "model.vision_tower."
UNREAD_VISION_PARTS = tuple(f"{VISION_TOWER}{part}." for part in UNREAD_PARTS)
VISION_LAYERS = f"{VISION_TOWER}encoder.layers."


def pllava_name(name: str, renames: Iterable[tuple[str, str]] = ()) -> str:
    """Return the name in PLLaVA's state dict of a weight that is called `name`, after the `renames` of a layout."""
    for pattern, replacement in (*renames, *RENAMES):
        name = re.sub(pattern, replacement, name)
    return name if name.startswith("lm_head.") else f"model.{name}"


def tower_name(name: str) -> str | None:
    """Return the name in PLLaVA's state dict of a weight in a vision tower's checkpoint; None for other parts."""
    match = TOWER.fullmatch(name)
    return f"{VISION_TOWER}{match[4]}" if match else None


def lora_names(name: str) -> tuple[str, str]:
    """Return the names in a PEFT adapter of the matrices A and B for the weight `name` of PLLaVA's state dict."""
    module = f"{ADAPTER_PREFIX}{name.removesuffix('.weight')}"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"
