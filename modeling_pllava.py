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

from .configuration_pllava import VISION_TOWERS, PllavaConfig
from .model_card_pllava import CardOnPush
from .pooling_pllava import Pooling

FRAMES_PER_CHUNK = 64  # that are encoded together
CPU_CHUNK_BYTES = 10_000_000  # of the vision tower's widest activation: a CPU's cache holds it
UNREAD_PARTS = ("post_layernorm", "head")  # of vision towers, after the last layer
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


def cut_patches(frames: Tensor, size: int) -> dict[str, Tensor]:
    """Cut `(frames, 3, height, width)` into the inputs of a tower that takes patches, `(frames, patches, values)`."""
    patches = frames.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
    shapes = torch.tensor([patches.shape[1:3]] * len(frames), device=frames.device)
    patches = patches.flatten(3).flatten(1, 2)
    mask = patches.new_ones(patches.shape[:2])
    return {"pixel_values": patches, "spatial_shapes": shapes, "pixel_attention_mask": mask}


class NormedProjector(LlavaMultiModalProjector):
    """LLaVA's projector behind a layer norm, which ViP-LLaVA has."""

    def __init__(self, config: PllavaConfig):
        super().__init__(config)
        self.projector_layernorm = nn.LayerNorm(self.linear_1.in_features, eps=config.projector_layernorm_eps)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(self.projector_layernorm(features))


class PllavaModel(PllavaPreTrainedModel, LlavaModel):
    """A vision tower up to the layer that is read, LLaVA's projector, the pooling, and a language model."""

    def __init__(self, config: PllavaConfig):
        PllavaPreTrainedModel.__init__(self, config)
        vision_config = copy.deepcopy(config.vision_config)
        vision_config.num_hidden_layers, vision_config.vision_use_head = config.num_vision_layers, False
        self.vision_tower = AutoModel.from_config(vision_config)
        self.vision_tower.post_layernorm = nn.Identity()  # follows the last layer, which is not read
        has_norm = config.projector_layernorm_eps is not None
        self.multi_modal_projector = (NormedProjector if has_norm else LlavaMultiModalProjector)(config)
        self.language_model = AutoModel.from_config(config.text_config)
        above = "|".join(map(str, range(config.num_vision_layers, config.vision_config.num_hidden_layers)))
        unread = "|".join([*UNREAD_PARTS, rf"encoder\.layers\.({above})"])
        self._keys_to_ignore_on_load_unexpected = [rf"vision_tower\.(vision_model\.)?({unread})\."]
        self.post_init()

    @can_return_tuple
    def get_video_features(self, pixel_values_videos: Sequence[Tensor], **kwargs) -> BaseModelOutputWithPooling:
        """
        Encode, project and pool videos into the tokens that replace their placeholders in the text.

        Args:
            pixel_values_videos: Normalised frames, `(videos, frames, 3, height, width)`, or a list of `(frames, 3,
                height, width)` if the videos differ in length.

        Returns:
            The vision tower's output for all frames; its `pooler_output` has the tokens, `(videos, tokens, D)`.
        """
        poolings = [self.config.video_pooling] * len(pixel_values_videos)
        outputs = self.encode_clips(pixel_values_videos, poolings, **kwargs)
        outputs.pooler_output = torch.stack(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_image_features(self, pixel_values: Sequence[Tensor], **kwargs) -> BaseModelOutputWithPooling:
        """As [`get_video_features`], for `(images, 3, height, width)`: an image is a video of one frame."""
        clips = [image[None] for image in pixel_values]
        outputs = self.encode_clips(clips, [self.config.image_pooling] * len(clips), **kwargs)
        outputs.pooler_output = torch.stack(outputs.pooler_output)
        return outputs

    def encode_clips(self, clips: Sequence[Tensor], poolings: list[Pooling], **kwargs) -> BaseModelOutputWithPooling:
        """The tower's output for all frames of images and videos; `pooler_output` is a list of `(tokens, D)`."""
        shapes = [tuple(clip.shape) for clip in clips]
        if any(len(shape) != 4 for shape in shapes):
            raise ValueError(f"Each video must be (frames, 3, height, width); got {len(shapes)} of {shapes[0]}")
        frames = torch.cat(tuple(clips)) if len(clips) > 1 else clips[0]  # a long video is not copied
        outputs = self.encode_frames(frames, **kwargs)
        outputs.pooler_output = self.pool(outputs.last_hidden_state.split([shape[0] for shape in shapes]), poolings)
        return outputs

    def encode_frames(self, frames: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The vision tower's output for `(frames, 3, height, width)`: `(frames, patches, C)`, without CLS."""
        changed = self.config.num_vision_layers != self.vision_tower.config.num_hidden_layers
        for name in TOWER_OPTIONS:
            configured, value = getattr(self.config, name), kwargs.pop(name, None)
            if changed or value not in (None, configured):
                raise ValueError(f"The tower was built for another {name}: load the model for {value or configured!r}")
        # With gradient checkpointing the embeddings require a gradient, and a frozen tower would keep its activations
        needs_grad = any(tensor.requires_grad for tensor in [frames, *self.vision_tower.parameters()])
        # Distributed processes must call the tower equally often
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        whole = is_deepspeed_zero3_enabled() or (self.training and distributed)
        with torch.set_grad_enabled(torch.is_grad_enabled() and needs_grad):
            chunks = [self.encode_chunk(part, **kwargs) for part in ([frames] if whole else self.split_frames(frames))]
        outputs = chunks[0]
        for name, first in outputs.items() if len(chunks) > 1 else ():
            parts = [chunk[name] for chunk in chunks]
            layers = isinstance(first, tuple)  # hidden states and attentions
            outputs[name] = tuple(map(torch.cat, zip(*parts, strict=True))) if layers else torch.cat(parts)
        return outputs

    def split_frames(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Split frames into chunks. They save memory, and on a CPU time: its cache then holds the activations."""
        widest = self.config.patch_grid**2 * self.config.vision_config.intermediate_size * self.dtype.itemsize
        most = CPU_CHUNK_BYTES // widest if frames.device.type == "cpu" else FRAMES_PER_CHUNK
        return frames.split(min(FRAMES_PER_CHUNK, max(1, most)))

    def encode_chunk(self, frames: Tensor, output_hidden_states: bool = False, **kwargs) -> BaseModelOutputWithPooling:
        vision, layers = self.config.vision_config, self.config.vision_layers
        tower, pixels = VISION_TOWERS[vision.model_type], frames.to(self.vision_tower.dtype)
        inputs = cut_patches(pixels, vision.patch_size) if tower.takes_patches else {"pixel_values": pixels}
        kwargs["output_hidden_states"] = output_hidden_states or len(layers) > 1
        outputs = self.vision_tower(**inputs, return_dict=True, **kwargs)
        features = [outputs.hidden_states[layer] for layer in layers] if len(layers) > 1 else [outputs[0]]
        return BaseModelOutputWithPooling(
            last_hidden_state=torch.cat(features, dim=-1)[:, tower.has_cls :].contiguous(),  # for vLLM's linear layers
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )

    def pool(self, features: Sequence[Tensor], poolings: Sequence[Pooling] | None = None) -> list[Tensor]:
        """Project and pool each clip's features: `(frames, patches, C)` -> `(tokens, D)`, by default as a video's."""
        weights = [*self.multi_modal_projector.parameters()][::-1]  # PEFT's wrapper has the trained copy last
        dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), None)
        features, project = [frames.to(dtype=dtype) for frames in features], self.multi_modal_projector
        if is_deepspeed_zero3_enabled():  # each call gathers weights: all processes must make equally many
            lengths = [len(frames) for frames in features]
            features, project = project(torch.cat(features)).split(lengths), nn.Identity()
        pooled = []
        for frames, pooling in zip(features, poolings or [self.config.video_pooling] * len(features), strict=True):
            side = round(frames.shape[1] ** 0.5)
            chunks = (project(chunk).unflatten(1, (side, side)) for chunk in self.split_frames(frames))
            pooled.append(pooling(chunks))
        return pooled

    def get_placeholder_mask(self, ids: Tensor | None, embeds: Tensor, tokens: Tensor, modality: str) -> Tensor:
        """Mask of the "image" or "video" placeholders, `(batch, sequence, 1)`; their number is checked."""
        token = torch.tensor(getattr(self.config, f"{modality}_token_id"), device=embeds.device)
        mask = (embeds == self.get_input_embeddings()(token)).all(-1) if ids is None else ids == token
        count, size = tokens.shape[:2]
        if not torch.compiler.is_compiling() and (found := int(mask.sum())) != count * size:
            pooling = getattr(self.config, f"{modality}_pooling")
            raise ValueError(
                f"The text has {found} <{modality}> placeholders (id {token}, from the processor), but the model "
                f"made {count * size} {modality} tokens, {count} times {size}. Does the processor have the model's "
                f"`pooling_shape`, {pooling}, and the text as many {modality}s as were passed? With prompt lookup, "
                "pass the ids of both placeholders as `suppress_tokens`."
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
        blank = [inputs_embeds.new_zeros(1, 3, *[self.config.image_size] * 2)] * needs_blank
        if clips := images + videos + blank:
            poolings = [self.config.image_pooling] * len(images) + [self.config.video_pooling] * len(videos + blank)
            pooled = self.encode_clips(clips, poolings, **options).pooler_output
            pooled_images, pooled_videos = pooled[: len(images)], pooled[len(images) : len(images + videos)]
            tokens |= {"image": torch.stack(pooled_images)} if images else {}
            tokens |= {"video": torch.stack(pooled_videos)} if videos else {}
            if blank:  # so that all weights get a gradient
                inputs_embeds = inputs_embeds + 0.0 * pooled[-1].sum().to(inputs_embeds)
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
