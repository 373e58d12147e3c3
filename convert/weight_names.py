"""Weight names: every layout of PLLaVA and LLaVA checkpoints -> PLLaVA's state dict -> a PEFT adapter's file."""

import re

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
# Tensors of LLaVA that PLLaVA does not use; the vision layers above the one that is read are found by their numbers
UNUSED = re.compile(r"(^|\.)(image_newline|rotary_emb\.inv_freq|position_ids)$")
ADAPTER_PREFIX = "base_model.model."
VOCABULARY = ("model.language_model.embed_tokens.weight", "lm_head.weight")  # one row per token
UNREAD_VISION_PARTS = tuple(f"model.vision_tower.{part}." for part in UNREAD_PARTS)
VISION_LAYERS = "model.vision_tower.encoder.layers."


def pllava_name(name: str) -> str:
    """Return the name in PLLaVA's state dict of a weight that is called `name` in any layout."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name if name.startswith("lm_head.") else f"model.{name}"


def lora_names(name: str) -> tuple[str, str]:
    """Return the names in a PEFT adapter of the matrices A and B for the weight `name` of PLLaVA's state dict."""
    module = f"{ADAPTER_PREFIX}{name.removesuffix('.weight')}"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"
