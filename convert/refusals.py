"""Image models that cannot become a PLLaVA: why, and which one to take instead."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Why a model cannot become a PLLaVA, and which one to take instead."""

    reason: str
    instead: str

    def __str__(self) -> str:
        return f"{self.reason}; take {self.instead} instead"


Q_FORMER = Refusal(
    "its Q-Former turns an image into a fixed number of tokens, without rows and columns to pool",
    "LLaVA-1.5 (llava-hf/llava-1.5-7b-hf)",
)
RESAMPLER = Refusal(
    "its resampler turns an image into a fixed number of tokens, without rows and columns to pool",
    "LLaVA-NeXT (llava-hf/llava-v1.6-mistral-7b-hf)",
)
PIXEL_SHUFFLE = Refusal(
    "its projector joins neighbouring patches by pixel shuffle; PLLaVA's projects each patch",
    "LLaVA-OneVision (llava-hf/llava-onevision-qwen2-0.5b-ov-hf)",
)
PATCH_MERGER = Refusal(
    "its projector merges neighbouring patches; PLLaVA's projects each patch",
    "LLaVA-OneVision (llava-hf/llava-onevision-qwen2-7b-ov-hf)",
)
OTHER_TOWERS = Refusal(
    "it has separate towers for images and videos; PLLaVA reads both with one",
    "LLaVA-NeXT-Video (llava-hf/LLaVA-NeXT-Video-7B-hf)",
)
OTHER_PROJECTOR = Refusal(
    "its projector has one linear layer; PLLaVA's has two, with an activation between them",
    "LLaVA-Interleave (llava-hf/llava-interleave-qwen-0.5b-hf)",
)
CROSS_ATTENTION = Refusal(
    "its text model reads images by cross-attention; PLLaVA's reads them as tokens",
    "LLaVA-NeXT with Llama 3 (llava-hf/llama3-llava-next-8b-hf)",
)
OTHER_TEXT_MODEL = Refusal(
    "its text model is not of a type that the conversion knows",
    "LLaVA-NeXT (llava-hf/llava-v1.6-mistral-7b-hf)",
)
NO_MLP = Refusal(
    "PLLaVA's projector has two layers, with GELU between them", "a model with the projector mlp2x_gelu, as LLaVA-1.5"
)

REFUSED = {
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), Q_FORMER),
    **dict.fromkeys(("idefics", "idefics2", "minicpmv", "qwen", "aria"), RESAMPLER),
    **dict.fromkeys(("internvl", "internvl_chat", "idefics3", "smolvlm", "aya_vision", "llama4"), PIXEL_SHUFFLE),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llavaonevision1_5", "glm4v", "mistral3"), PATCH_MERGER),
    "video_llava": OTHER_TOWERS,
    **dict.fromkeys(("paligemma", "gemma3"), OTHER_PROJECTOR),
    "mllama": CROSS_ATTENTION,
    **dict.fromkeys(("llava_mpt", "llava_mixtral", "llava_gemma", "llava_qwen_moe"), OTHER_TEXT_MODEL),
}
# Values of the config that `Layout.required` does not allow
REFUSED_VALUES = {
    "mm_projector_type": NO_MLP,
    "connector_type": NO_MLP,
    "mm_resampler_type": RESAMPLER,
    "mm_use_im_start_end": Refusal(
        "it was trained with a token before and one after each image, which PLLaVA's prompts do not have",
        "LLaVA-1.5 (llava-hf/llava-1.5-7b-hf)",
    ),
}
