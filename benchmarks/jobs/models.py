"""The models that are compared, with random weights: ours, transformers' own, and a stand-in for the original's."""

from dataclasses import dataclass

import torch
from measuring import Setting
from memory import SIZES
from torch import nn
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    PreTrainedModel,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

import pllava

FRAMES, TEXT_TOKENS = 16, 64
IMAGE, VIDEO = 32000, 32001  # the placeholders' ids
VOCABULARY = 32064
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Hidden size, layers, inner size and heads of the text model, and those of the vision tower with its picture."""

    text: tuple[int, int, int, int]
    key_value_heads: int
    tower: tuple[int, int, int, int] = (1024, 24, 4096, 16)  # CLIP-L/336
    image: int = 336

    @property
    def grid(self) -> int:
        return self.image // 14

    @property
    def pooling(self) -> tuple[int, int, int]:
        return FRAMES, self.grid // 2, self.grid // 2

    @property
    def visual_tokens(self) -> int:
        return FRAMES * (self.grid // 2) ** 2

    def text_config(self) -> LlamaConfig:
        hidden, layers, inner, heads = self.text
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner}
        heads = {"num_attention_heads": heads, "num_key_value_heads": self.key_value_heads}
        return LlamaConfig(**sizes, **heads, vocab_size=VOCABULARY, attn_implementation="sdpa")

    def vision_config(self, **options: str) -> CLIPVisionConfig:
        hidden, layers, inner, heads = self.tower
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner}
        return CLIPVisionConfig(
            **sizes, num_attention_heads=heads, image_size=self.image, patch_size=14, projection_dim=768, **options
        )


_PUBLISHED = SIZES["7b"]
SHAPES = {
    "tiny": Shape((256, 4, 688, 4), 4, tower=(128, 4, 512, 4), image=112),
    "small": Shape((1024, 8, 2816, 16), 16),
    "1b": Shape((2048, 16, 8192, 32), 8),
    "7b": Shape(
        tuple(
            _PUBLISHED[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
        ),
        _PUBLISHED["num_key_value_heads"],
    ),
}


def clip_attention(module, query, key, value, attention_mask, scaling, **_) -> tuple[torch.Tensor, None]:
    """The attention of transformers 4.37.1. Today's "eager" scales the scores instead, and keeps them longer."""
    weights = torch.matmul(query * scaling, key.transpose(2, 3)).softmax(-1)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


class StandIn(nn.Module):
    """
    The computations of the original's graph, with the tensors that it keeps meanwhile: the whole tower, pooling after
    the projector, the logits of all positions, and eager attention in the tower.

    As in the original, the frozen tower runs with gradients enabled in training; since neither weights nor pixels
    require them, autograd records nothing, and the backward pass ends at the projector.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        AttentionInterface.register("clip_4_37", clip_attention)
        self.shape = shape
        vision = shape.vision_config(attn_implementation="clip_4_37")
        self.vision_tower = CLIPVisionModel(vision).requires_grad_(False)
        size = shape.text[0]
        self.projector = nn.Sequential(nn.Linear(vision.hidden_size, size), nn.GELU(), nn.Linear(size, size))
        self.language_model = LlamaForCausalLM(shape.text_config())

    def embed(self, input_ids: torch.Tensor, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        embeddings = self.language_model.get_input_embeddings()(input_ids)
        vision = self.vision_tower(pixel_values_videos.flatten(0, 1).to(embeddings.dtype), output_hidden_states=True)
        # The original keeps all hidden states until its forward pass returns
        self.hidden_states = vision.hidden_states
        tokens = self.projector(vision.hidden_states[-2][:, 1:]).unflatten(1, (self.shape.grid, self.shape.grid))
        clips = tokens.unflatten(0, (len(input_ids), -1)).permute(0, 4, 1, 2, 3)
        tokens = nn.functional.adaptive_avg_pool3d(clips, self.shape.pooling).flatten(2).transpose(1, 2)
        return embeddings.masked_scatter((input_ids == VIDEO).unsqueeze(-1), tokens)

    def forward(
        self, input_ids, attention_mask, pixel_values_videos, labels=None, use_cache=True
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the loss, if there are labels, and the logits."""
        embeddings = self.embed(input_ids, pixel_values_videos)
        output = self.language_model(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=use_cache)
        self.hidden_states = None
        logits = output.logits.float()
        if labels is None:
            return None, logits
        attended = attention_mask[:, 1:] != 0
        return nn.functional.cross_entropy(logits[:, :-1][attended], labels[:, 1:][attended]), logits

    def generate(self, input_ids, attention_mask, pixel_values_videos, **options) -> torch.Tensor:
        embeddings = self.embed(input_ids, pixel_values_videos)
        return self.language_model.generate(inputs_embeds=embeddings, attention_mask=attention_mask, **options)


def build_stand_in(setting: Setting) -> StandIn:
    with torch.device(setting.device):
        return StandIn(SHAPES[setting.size]).eval()


def build_ours(setting: Setting) -> pllava.PllavaForConditionalGeneration:
    shape = SHAPES[setting.size]
    options = {"pooling_shape": shape.pooling, "num_frames": FRAMES}
    config = pllava.PllavaConfig(text_config=shape.text_config(), vision_config=shape.vision_config(), **options)
    with torch.device(setting.device):
        return pllava.PllavaForConditionalGeneration(config).eval()


def build_llava_next_video(setting: Setting) -> PreTrainedModel:
    shape = SHAPES[setting.size]
    ids = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    config = LlavaNextVideoConfig(
        text_config=shape.text_config(),
        vision_config=shape.vision_config(attn_implementation="sdpa"),
        spatial_pool_mode="average",
        **ids,
    )
    with torch.device(setting.device):
        return LlavaNextVideoForConditionalGeneration(config).eval()


def build_video_llava(setting: Setting) -> PreTrainedModel:
    shape = SHAPES[setting.size]
    vision = shape.vision_config(attn_implementation="sdpa")
    ids = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    config = VideoLlavaConfig(text_config=shape.text_config(), vision_config=vision, **ids)
    with torch.device(setting.device):
        model = VideoLlavaForConditionalGeneration(config).eval()
    del model.model.image_tower  # a video does not use it
    return model


def make_inputs(setting: Setting, batch: int = 1, frames: int = FRAMES, visual: int | None = None) -> Inputs:
    """Return random inputs: clips of `frames` frames with `visual` placeholders each, within a text."""
    shape = SHAPES[setting.size]
    visual = shape.visual_tokens if visual is None else visual
    with torch.device(setting.device):
        ids = torch.randint(3, IMAGE, (batch, TEXT_TOKENS + visual))
        ids[:, TEXT_TOKENS // 2 : -TEXT_TOKENS // 2] = VIDEO
        pixels = torch.randn(batch, frames, 3, shape.image, shape.image, dtype=torch.float32)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}


def video_llava_inputs(setting: Setting, batch: int = 1) -> Inputs:
    """Its tokens are not pooled: a quarter of the frames has about as many, with one for the whole of each frame."""
    frames, shape = FRAMES // 4, SHAPES[setting.size]
    inputs = make_inputs(setting, batch, frames, frames * (shape.grid**2 + 1))
    return inputs | {"pixel_values_videos": inputs["pixel_values_videos"].to(setting.torch_dtype)}


def llava_next_video_inputs(setting: Setting, batch: int = 1) -> Inputs:
    inputs = make_inputs(setting, batch)
    return inputs | {"pixel_values_videos": inputs["pixel_values_videos"].to(setting.torch_dtype)}


BUILDERS = {
    "ours": (build_ours, make_inputs),
    "original's graph (stand-in)": (build_stand_in, make_inputs),
    "transformers, LLaVA-NeXT-Video": (build_llava_next_video, llava_next_video_inputs),
    "transformers, Video-LLaVA": (build_video_llava, video_llava_inputs),
}
DIFFERS = {
    "original's graph (stand-in)": "runs the tower's last layer, which nobody reads, and makes the logits of all "
    "positions; a text model with today's attention",
    "transformers, LLaVA-NeXT-Video": "pools before the projector, which saves it three quarters of the work, and "
    "runs the tower's last layer, which nobody reads",
    "transformers, Video-LLaVA": "does not pool: it reads four frames instead of 16 and gets about as many tokens, so "
    "its tower has a quarter of the work",
}
# Why a row is far from the limit
SMALL = "These matrices are too small to fill the processor: calls and element-wise work take the rest."
