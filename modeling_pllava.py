"""PLLaVA: an image LLaVA that reads a video by average-pooling the visual tokens of its frames (arXiv 2404.16994)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector, LlavaPreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_pllava import PllavaConfig
from .model_card_pllava import CardOnPush

TOWER_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")  # arguments of LLaVA; here the config's


@dataclass
class PllavaModelOutputWithPast(BaseModelOutputWithPast):
    """Adds the pooled tokens of images and videos, `(images or videos, T' * h' * w', D)`, in the order of the text."""

    image_hidden_states: Tensor | None = None
    video_hidden_states: Tensor | None = None


@dataclass
class PllavaCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Adds the pooled tokens of images and videos, `(images or videos, T' * h' * w', D)`, in the order of the text."""

    image_hidden_states: Tensor | None = None
    video_hidden_states: Tensor | None = None


class PllavaPreTrainedModel(CardOnPush, LlavaPreTrainedModel):
    config: PllavaConfig
    input_modalities = ("image", "video", "text")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, but missing, unexpected or mismatched weights are a `ValueError` that lists them."""
        options = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        problems = {**info, "unexpected_keys": set(info["unexpected_keys"]) - {"lm_head.weight"}}  # for PllavaModel
        if kwargs.get("ignore_mismatched_sizes"):
            del problems["mismatched_keys"]
        messages = [f"{kind.replace('_', ' ')}: {sorted(map(str, keys))}" for kind, keys in problems.items() if keys]
        if messages:
            raise ValueError(f"{pretrained_model_name_or_path} does not fit {cls.__name__}; {'; '.join(messages)}")
        return (model, info) if kwargs.get("output_loading_info") else model


def adaptive_average_pool(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The paper's pooling over time, rows and columns: `(T, rows, columns, D)` -> `(T', h', w', D)`."""
    sizes = list(zip(tokens.shape[:3], shape, strict=True))
    if all(size % pooled == 0 for size, pooled in sizes):  # block means: deterministic, even backward
        blocks = [part for size, pooled in sizes for part in (pooled, size // pooled)]
        return tokens.reshape(*blocks, -1).mean((1, 3, 5))
    return nn.functional.adaptive_avg_pool3d(tokens.permute(3, 0, 1, 2), tuple(shape)).permute(1, 2, 3, 0)


class PllavaModel(PllavaPreTrainedModel, LlavaModel):
    """A CLIP vision tower up to the layer that is read, LLaVA's projector, the pooling, and a language model."""

    def __init__(self, config: PllavaConfig):
        PllavaPreTrainedModel.__init__(self, config)
        vision_config = copy.deepcopy(config.vision_config)
        vision_config.num_hidden_layers = config.num_vision_layers
        self.vision_tower = AutoModel.from_config(vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        above = "|".join(map(str, range(config.num_vision_layers, config.vision_config.num_hidden_layers)))
        self._keys_to_ignore_on_load_unexpected = [rf"vision_tower\.(vision_model\.)?encoder\.layers\.({above})\."]
        self.post_init()

    @can_return_tuple
    def get_video_features(self, pixel_values_videos: Sequence[Tensor], **kwargs) -> BaseModelOutputWithPooling:
        """
        Encode, project and pool videos into the tokens that replace their placeholders in the text.

        Args:
            pixel_values_videos: Normalised frames, `(videos, frames, 3, height, width)`, or a list of `(frames, 3,
                height, width)` if the videos differ in length.

        Returns:
            The vision tower's output for all frames; its `pooler_output` has the tokens, `(videos, T' * h' * w', D)`.
        """
        shapes = [tuple(video.shape) for video in pixel_values_videos]
        if any(len(shape) != 4 for shape in shapes):
            raise ValueError(f"Each video must be (frames, 3, height, width); got {len(shapes)} of {shapes[0]}")
        outputs = self.encode_frames(torch.cat(tuple(pixel_values_videos)), **kwargs)
        outputs.pooler_output = self.pool(outputs.last_hidden_state.split([shape[0] for shape in shapes]))
        return outputs

    def get_image_features(self, pixel_values: Sequence[Tensor], **kwargs) -> BaseModelOutputWithPooling:
        """As [`get_video_features`], for `(images, 3, height, width)`: an image is a video of one frame."""
        return self.get_video_features([image[None] for image in pixel_values], **kwargs)

    def encode_frames(self, frames: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The vision tower's output for `(frames, 3, height, width)`: `(frames, patches, C)`, without CLS."""
        changed = self.config.num_vision_layers != self.vision_tower.config.num_hidden_layers
        for name in TOWER_OPTIONS:
            configured, value = getattr(self.config, name), kwargs.pop(name, None)
            if changed or value not in (None, configured):
                raise ValueError(f"The tower was built for another {name}: load the model for {value or configured!r}")
        # With gradient checkpointing the embeddings require a gradient, and a frozen tower would keep its activations
        needs_grad = any(tensor.requires_grad for tensor in [frames, *self.vision_tower.parameters()])
        with torch.set_grad_enabled(torch.is_grad_enabled() and needs_grad):
            outputs = self.vision_tower(frames.to(self.vision_tower.dtype), return_dict=True, **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state[:, 1:].contiguous()  # for vLLM's linear layers
        return outputs

    def pool(self, features: Sequence[Tensor]) -> Tensor:
        """Project and pool each video's features: list of `(frames, patches, C)` -> `(videos, T' * h' * w', D)`."""
        weights = [*self.multi_modal_projector.parameters()][::-1]  # PEFT's wrapper has the trained copy last
        dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), None)
        features = [frames.to(dtype=dtype) for frames in features]
        projected = map(self.multi_modal_projector, features)  # one by one, to save memory
        if is_deepspeed_zero3_enabled():  # each call gathers weights: all processes must make equally many
            projected = self.multi_modal_projector(torch.cat(features)).split([len(frames) for frames in features])
        num_frames, videos = self.config.num_frames, []
        for tokens in projected:
            if len(tokens) < num_frames:  # as in the original code: 0, 0, 1, 1
                tokens = tokens.repeat_interleave(num_frames // len(tokens) + 1, dim=0)[:num_frames]
            side = round(tokens.shape[1] ** 0.5)
            videos.append(adaptive_average_pool(tokens.unflatten(1, (side, side)), self.config.pooling_shape))
        return torch.stack(videos).flatten(1, 3)

    def get_placeholder_mask(self, ids: Tensor | None, embeds: Tensor, tokens: Tensor, modality: str) -> Tensor:
        """Mask of the "image" or "video" placeholders, `(batch, sequence, 1)`; their number is checked."""
        token = torch.tensor(getattr(self.config, f"{modality}_token_id"), device=embeds.device)
        mask = (embeds == self.get_input_embeddings()(token)).all(-1) if ids is None else ids == token
        count, size = tokens.shape[:2]
        if not torch.compiler.is_compiling() and (found := int(mask.sum())) != count * size:
            raise ValueError(
                f"The text has {found} <{modality}> placeholders (id {token}, from the processor), but the model "
                f"made {count * size} {modality} tokens, {count} times {size}. Does the processor have the model's "
                f"`pooling_shape` {tuple(self.config.pooling_shape)}, and the text as many {modality}s as were passed?"
            )
        return mask.unsqueeze(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Sequence[Tensor] | None = None,
        pixel_values_videos: Sequence[Tensor] | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> tuple | PllavaModelOutputWithPast:
        """
        Pixels are those of the whole batch, in the order of the text; or `mm_encoder_outputs` has the outputs of
        `get_image_features` ("image") and `get_video_features` ("video"). `kwargs` go to the language model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` or `inputs_embeds`")
        inputs_embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        options = {name: kwargs.pop(name, None) for name in TOWER_OPTIONS}
        images = [] if pixel_values is None else [image[None] for image in pixel_values]
        videos = [] if pixel_values_videos is None else list(pixel_values_videos)
        tokens = {name: output.pooler_output for name, output in (mm_encoder_outputs or {}).items() if output}
        if wrong := [name for name in tokens if {"image": images, "video": videos}.get(name, True)]:
            raise ValueError(f"Pass either pixels or `mm_encoder_outputs` of an image and of a video; got {wrong}")
        # Distributed processes wait for each other in the tower: one with a text-only batch encodes a blank image
        needs_blank = not (images or videos or tokens) and (self.training or is_deepspeed_zero3_enabled())
        blank = [inputs_embeds.new_zeros(1, 3, *[self.config.vision_config.image_size] * 2)] * needs_blank
        if pixels := images + videos + blank:
            pooled = self.get_video_features(pixels, return_dict=True, **options).pooler_output.to(inputs_embeds)
            *used, unused = pooled.split([len(images), len(videos), len(blank)])
            tokens |= {name: part for name, part in zip(("image", "video"), used, strict=True) if len(part)}
            inputs_embeds = inputs_embeds + 0.0 * unused.sum()  # so that all weights get a gradient
        for name, part in tokens.items():
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, part, name)
            inputs_embeds = inputs_embeds.masked_scatter(mask, part.to(inputs_embeds))
        outputs = self.language_model(inputs_embeds=inputs_embeds, return_dict=True, **kwargs)
        return PllavaModelOutputWithPast(**outputs, **{f"{name}_hidden_states": part for name, part in tokens.items()})


class PllavaForConditionalGeneration(PllavaPreTrainedModel, LlavaForConditionalGeneration):
    """PLLaVA with a language-modelling head, which answers questions about videos and images (examples: README)."""

    def __init__(self, config: PllavaConfig):
        PllavaPreTrainedModel.__init__(self, config)
        self.model = PllavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_video_features(self, pixel_values_videos: Sequence[Tensor], **kwargs) -> BaseModelOutputWithPooling:
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Sequence[Tensor] | None = None,
        pixel_values_videos: Sequence[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> tuple | PllavaCausalLMOutputWithPast:
        """Logits `(batch, sequence, vocab_size)`; with `labels`, -100 where there is no target, also the loss."""
        media = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos}
        text = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        options = {"position_ids": position_ids, "mm_encoder_outputs": mm_encoder_outputs, "return_dict": True}
        outputs = self.model(**media, **text, **{**kwargs, **options})
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1], **kwargs)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return PllavaCausalLMOutputWithPast(loss=loss, logits=logits, **others)


__all__ = ["PllavaForConditionalGeneration", "PllavaModel", "PllavaPreTrainedModel"]
