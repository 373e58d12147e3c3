"""PLLaVA: an image LLaVA reads a video by average-pooling the visual tokens of its frames (arXiv 2404.16994)."""

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

FIXED = ("vision_feature_layer", "vision_feature_select_strategy")  # options of LLaVA's that the tower is built for


@dataclass
class PllavaModelOutputWithPast(BaseModelOutputWithPast):
    """With the pooled tokens of the images and of the videos, `(media, T' * h' * w', D)`, in the order of the text."""

    image_hidden_states: Tensor | None = None
    video_hidden_states: Tensor | None = None


@dataclass
class PllavaCausalLMOutputWithPast(CausalLMOutputWithPast):
    """With the pooled tokens of the images and of the videos, `(media, T' * h' * w', D)`, in the order of the text."""

    image_hidden_states: Tensor | None = None
    video_hidden_states: Tensor | None = None


class PllavaPreTrainedModel(LlavaPreTrainedModel):
    config: PllavaConfig
    input_modalities = ("image", "video", "text")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As any model's, but weights missing, left over or of a wrong shape raise a ValueError that names them."""
        options = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        problems = {**info, "unexpected_keys": set(info["unexpected_keys"]) - {"lm_head.weight"}}  # of a PllavaModel
        if kwargs.get("ignore_mismatched_sizes"):
            del problems["mismatched_keys"]
        listed = [f"{kind.replace('_', ' ')}: {sorted(map(str, what))}" for kind, what in problems.items() if what]
        if listed:
            source = str(pretrained_model_name_or_path)
            raise ValueError(f"The weights in {source!r} do not fit {cls.__name__}; {'; '.join(listed)}")
        return (model, info) if kwargs.get("output_loading_info") else model


def adaptive_average_pool(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The paper's pooling over time, rows and columns: `(T, rows, columns, D)` -> `(T', h', w', D)`."""
    sizes = list(zip(tokens.shape[:3], shape, strict=True))
    if all(size % pooled == 0 for size, pooled in sizes):  # means of blocks: deterministic on a GPU, backward too
        blocks = [part for size, pooled in sizes for part in (pooled, size // pooled)]
        return tokens.reshape(*blocks, -1).mean((1, 3, 5))
    return nn.functional.adaptive_avg_pool3d(tokens.permute(3, 0, 1, 2), tuple(shape)).permute(1, 2, 3, 0)


class PllavaModel(PllavaPreTrainedModel, LlavaModel):
    """A vision tower up to the layer that is read, LLaVA's projector, the pooling, and a language model."""

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
        The tokens that stand for each video in the text.

        Args:
            pixel_values_videos: Normalised frames, `(videos, frames, 3, height, width)`; a list of `(frames, 3,
                height, width)` where the videos differ in length.

        Returns:
            The vision tower's output for all frames; its `pooler_output` are the tokens, `(videos, T' * h' * w', D)`.
        """
        shapes = [tuple(video.shape) for video in pixel_values_videos]
        if any(len(shape) != 4 for shape in shapes):
            raise ValueError(f"Each video must be (frames, 3, height, width); got {len(shapes)} of {shapes[0]}")
        outputs = self.encode_frames(torch.cat(tuple(pixel_values_videos)), **kwargs)
        outputs.pooler_output = self.pool(outputs.last_hidden_state.split([shape[0] for shape in shapes]))
        return outputs

    def get_image_features(self, pixel_values: Sequence[Tensor], **kwargs) -> BaseModelOutputWithPooling:
        """`(images, 3, height, width)` -> as [`get_video_features`]: an image is a video of one frame."""
        return self.get_video_features([image[None] for image in pixel_values], **kwargs)

    def encode_frames(self, frames: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """What the vision tower gives: `last_hidden_state` is `(frames, patches, C)`, without CLS."""
        for name in FIXED:
            own, asked = getattr(self.config, name), kwargs.pop(name, None)
            if asked not in (None, own) or self.config.num_vision_layers != self.vision_tower.config.num_hidden_layers:
                raise ValueError(f"The tower was built for {name} as it was: load the model for {asked or own!r}")
        # Gradient checkpointing makes the tower's embeddings require a gradient: a frozen one would keep activations
        trained = any(tensor.requires_grad for tensor in [frames, *self.vision_tower.parameters()])
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            outputs = self.vision_tower(frames.to(self.vision_tower.dtype), return_dict=True, **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state[:, 1:].contiguous()  # vLLM's linear layers need it
        return outputs

    def pool(self, features: Sequence[Tensor]) -> Tensor:
        """Projects and pools the features of each video, `(frames, patches, C)`: `(videos, T' * h' * w', D)`."""
        weights = [*self.multi_modal_projector.parameters()][::-1]  # in PEFT's wrapper the last are those that run
        dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), None)
        features = [frames.to(dtype=dtype) for frames in features]
        projected = map(self.multi_modal_projector, features)  # one by one: together they take more memory
        if is_deepspeed_zero3_enabled():  # processes wait for each other in each call
            projected = self.multi_modal_projector(torch.cat(features)).split([len(frames) for frames in features])
        num_frames, videos = self.config.num_frames, []
        for tokens in projected:
            if len(tokens) < num_frames:  # as the original does, each frame several times in a row
                tokens = tokens.repeat_interleave(num_frames // len(tokens) + 1, dim=0)[:num_frames]
            side = round(tokens.shape[1] ** 0.5)
            videos.append(adaptive_average_pool(tokens.unflatten(1, (side, side)), self.config.pooling_shape))
        return torch.stack(videos).flatten(1, 3)

    def get_placeholder_mask(self, ids: Tensor | None, embeds: Tensor, tokens: Tensor, modality: str) -> Tensor:
        """Where the "image" or "video" tokens go, `(batch, sequence, 1)`. Raises a ValueError if they do not fit."""
        token_id = getattr(self.config, f"{modality}_token_id")
        token = torch.tensor(token_id, device=embeds.device)
        mask = (embeds == self.get_input_embeddings()(token)).all(-1) if ids is None else ids == token
        count, size = tokens.shape[:2]
        if not torch.compiler.is_compiling() and (found := int(mask.sum())) != count * size:
            raise ValueError(
                f"The text holds {found} <{modality}> placeholders (id {token_id}, from the processor), and the model "
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
        Pixels are those of the whole batch, in the order of the text. `mm_encoder_outputs` has in their place what
        `get_image_features` ("image") and `get_video_features` ("video") gave. `kwargs` go to the language model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either `input_ids` or `inputs_embeds`, and not both")
        inputs_embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        options = {name: kwargs.pop(name, None) for name in FIXED}
        images = [] if pixel_values is None else [image[None] for image in pixel_values]
        videos = [] if pixel_values_videos is None else list(pixel_values_videos)
        tokens = {name: output.pooler_output for name, output in (mm_encoder_outputs or {}).items() if output}
        if wrong := [name for name in tokens if {"image": images, "video": videos}.get(name, True)]:
            raise ValueError(f"Pass either pixels or `mm_encoder_outputs` of an image and of a video; got {wrong}")
        # Processes that work together wait for each other: the tower runs once in each, for a text with a blank image
        alone = not (images or videos or tokens) and (self.training or is_deepspeed_zero3_enabled())
        blank = [inputs_embeds.new_zeros(1, 3, *[self.config.vision_config.image_size] * 2)] * alone
        if pixels := images + videos + blank:
            made = self.get_video_features(pixels, return_dict=True, **options).pooler_output.to(inputs_embeds)
            *parts, unseen = made.split([len(images), len(videos), len(blank)])
            tokens |= {name: part for name, part in zip(("image", "video"), parts, strict=True) if len(part)}
            inputs_embeds = inputs_embeds + 0.0 * unseen.sum()
        for name, part in tokens.items():
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, part, name)
            inputs_embeds = inputs_embeds.masked_scatter(mask, part.to(inputs_embeds))
        outputs = self.language_model(inputs_embeds=inputs_embeds, return_dict=True, **kwargs)
        return PllavaModelOutputWithPast(**outputs, **{f"{name}_hidden_states": part for name, part in tokens.items()})


class PllavaForConditionalGeneration(PllavaPreTrainedModel, LlavaForConditionalGeneration):
    """PLLaVA with a language-modelling head: answers questions about videos and images (the README has examples)."""

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
        """Logits `(batch, sequence, vocab_size)`, and their loss given `labels`, -100 where nothing is learned."""
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
