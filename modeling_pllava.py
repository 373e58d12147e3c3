"""PLLaVA: an image LLaVA reads a video by average-pooling the visual tokens of its frames (arXiv 2404.16994)."""

import copy
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    LlavaMultiModalProjector,
    LlavaPreTrainedModel,
)
from transformers.utils import can_return_tuple

from .configuration_pllava import PllavaConfig

if TYPE_CHECKING:
    # Not needed here. transformers saves with a model the files that its code imports, and this one must travel, too.
    from .pipeline_pllava import VideoTextToTextPipeline  # noqa: F401


@dataclass
class PllavaModelOutputWithPast(LlavaModelOutputWithPast):
    """
    LLaVA's output, with the tokens of the videos.

    Args:
        video_hidden_states (`torch.FloatTensor` of shape `(num_videos, num_visual_tokens, hidden_size)`, *optional*):
            Pooled and projected tokens of the videos, in the order of their placeholders.
    """

    video_hidden_states: torch.FloatTensor | None = None


class PllavaMultiModalProjector(LlavaMultiModalProjector):
    """
    LLaVA's projector, with the paper's adaptive average pooling over time, rows and columns inside it.

    The paper pools behind the projector. Averaging commutes with the second linear layer, so it can run before it: the
    same result up to rounding, and at (16, 12, 12) a quarter of that layer's work.
    """

    def __init__(self, config: PllavaConfig):
        super().__init__(config)
        self.pooling_shape = tuple(config.pooling_shape)

    def forward(self, frame_features: torch.Tensor) -> torch.Tensor:
        """(videos, frames, rows, columns, C) -> (videos, T' * h' * w', D), the tokens in (time, row, column) order."""
        grid = frame_features.shape[1:4]
        # Three axes, as everywhere in transformers: quantised linear layers may take no more
        hidden_states = self.act(self.linear_1(frame_features.flatten(1, 3))).unflatten(1, grid)
        hidden_states = nn.functional.adaptive_avg_pool3d(hidden_states.permute(0, 4, 1, 2, 3), self.pooling_shape)
        return self.linear_2(hidden_states.flatten(2).transpose(1, 2))


class PllavaPreTrainedModel(LlavaPreTrainedModel):
    config: PllavaConfig
    input_modalities = ("image", "video", "text")
    # A checkpoint may hold the vision layers above the one that is read; they are left out (see PllavaModel.__init__).
    _keys_to_ignore_on_load_unexpected = [r"vision_tower\.(vision_model\.)?encoder\.layers\.\d+\."]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """
        As any transformers model's, but strict: a checkpoint that does not fill the model is an error, not a warning.

        Raises:
            ValueError: if a weight is missing, left over or of the wrong shape; the message lists them.
        """
        # transformers' own error about a wrong shape does not name the weight: it is raised here, like the others
        options = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        checked = ["missing_keys", "unexpected_keys", "error_msgs"]
        if not kwargs.get("ignore_mismatched_sizes"):
            checked.append("mismatched_keys")
        problems = [f"{name.replace('_', ' ')}: {sorted(map(str, info[name]))}" for name in checked if info.get(name)]
        if problems:
            raise ValueError(
                f"The weights in {str(pretrained_model_name_or_path)!r} do not fit {cls.__name__}; "
                + "; ".join(problems)
            )
        return (model, info) if output_loading_info else model


CPU_PATCHES = 1152  # that a CPU's vision tower reads together: what a layer makes of them stays in the caches


class OneDnnLinear(TorchFunctionMode):
    """
    Within it, linear layers in float32 run on oneDNN, without gradients.

    PyTorch gives a CPU's to MKL, which leaves half of an AMD core's vector unit unused (`benchmarks/vision_tower.py`);
    those in bfloat16 run on oneDNN anyway.
    """

    def __torch_function__(self, func: Callable, types: tuple[type, ...], args=(), kwargs=None) -> torch.Tensor:
        plain = not types and not torch.is_autocast_enabled("cpu")  # `types` are those of quantised weights
        if func is nn.functional.linear and plain and all(tensor.dtype == torch.float32 for tensor in args[:2]):
            return func(args[0].to_mkldnn(), *args[1:], **(kwargs or {})).to_dense()
        return func(*args, **(kwargs or {}))


def _concatenate(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)  # which would copy


class PllavaModel(PllavaPreTrainedModel, LlavaModel):
    """
    A CLIP vision tower, the pooling projector and a language model without its head.

    The vision tower is built only up to the layer that is read (`config.vision_feature_layer`, the last but one): the
    layers above it would cost memory and time for nothing.
    """

    _keys_to_ignore_on_load_unexpected = [*PllavaPreTrainedModel._keys_to_ignore_on_load_unexpected, r"^lm_head\."]

    def __init__(self, config: PllavaConfig):
        PllavaPreTrainedModel.__init__(self, config)
        vision_config = copy.deepcopy(config.vision_config)
        vision_config.num_hidden_layers = config.num_vision_layers
        self.vision_tower = AutoModel.from_config(vision_config)
        self.multi_modal_projector = PllavaMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_video_features(
        self, pixel_values_videos: torch.FloatTensor | list[torch.FloatTensor], **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        The tokens that stand for each video in the text.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(videos, frames, 3, height, width)`):
                Normalised frames; a list of `(frames, 3, height, width)` tensors where the videos differ in length. A
                list may also hold a video as what the vision tower made of its frames before, `(frames, patches, C)`.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` `(total_frames, patches, C)`, the features of the
            frames, and `pooler_output` `(videos, T' * h' * w', D)`.
        """
        pixels = [video for video in pixel_values_videos if video.ndim == 4]
        encoded = iter(self._encode_frames(pixels))
        features = [next(encoded) if video.ndim == 4 else video for video in pixel_values_videos]
        patches = features[0].shape[1]
        rows = pixels[0].shape[-2] // self.vision_tower.config.patch_size if pixels else math.isqrt(patches)
        pooled = [
            self.multi_modal_projector(self._fill_short_clip(video).unflatten(1, (rows, -1))[None])
            for video in features
        ]
        return BaseModelOutputWithPooling(last_hidden_state=_concatenate(features), pooler_output=_concatenate(pooled))

    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """
        The tokens that stand for each image in the text: an image is a still video, so it takes as many.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(images, 3, height, width)`): Normalised images.
        """
        return self.get_video_features(pixel_values[:, None])

    def _encode_frames(self, videos: list[torch.FloatTensor]) -> tuple[torch.FloatTensor, ...]:
        """`(frames, 3, height, width)` each -> `(frames, patches, C)` each. Keeps no gradient for a frozen tower."""
        if not videos:
            return ()
        frames = _concatenate(videos).to(self.vision_tower.dtype)
        # Else a gradient would be kept where PEFT makes embeddings require it, for the sake of checkpointing
        trained = any(tensor.requires_grad for tensor in [frames, *self.vision_tower.parameters()])
        with_gradients = torch.is_grad_enabled() and trained
        on_cpu = frames.device.type == "cpu" and not torch.compiler.is_compiling()
        patches = frames.shape[-2:].numel() // self.vision_tower.config.patch_size**2
        parts = frames.split(max(1, CPU_PATCHES // patches)) if on_cpu else [frames]
        on_onednn = on_cpu and not with_gradients and torch.backends.mkldnn.is_available()
        with torch.set_grad_enabled(with_gradients), OneDnnLinear() if on_onednn else nullcontext():
            features = [self.vision_tower(part).last_hidden_state[:, 1:] for part in parts]  # without CLS
        return _concatenate(features).split([len(video) for video in videos])

    def _fill_short_clip(self, features: torch.FloatTensor) -> torch.FloatTensor:
        """Repeats each frame in a row, as the original does, until a clip shorter than `num_frames` has that many."""
        num_frames = self.config.num_frames
        if len(features) >= num_frames:
            return features
        return features.repeat_interleave(num_frames // len(features) + 1, dim=0)[:num_frames]

    def find_placeholders(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.FloatTensor | None, modality: str
    ) -> torch.BoolTensor:
        """Where the text has placeholders of one modality ("image" or "video"): `(batch, sequence)`."""
        token_id = getattr(self.config, f"{modality}_token_id")
        if input_ids is not None and input_ids.numel() > 0:
            return input_ids == token_id
        token = torch.tensor(token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def get_placeholder_mask(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor,
        features: torch.FloatTensor,
        modality: str,
    ) -> torch.BoolTensor:
        """
        Where the tokens of one modality ("image" or "video") go: `(batch, sequence, 1)`.

        Raises:
            ValueError: if the text has not exactly as many placeholders as there are features.
        """
        mask = self.find_placeholders(input_ids, inputs_embeds, modality)
        if not torch.compiler.is_compiling() and int(mask.sum()) != features.shape[:2].numel():
            count, size = features.shape[:2]
            raise ValueError(
                f"The text holds {int(mask.sum())} <{modality}> placeholder tokens (id "
                f"{getattr(self.config, f'{modality}_token_id')}, written by the processor), but the model made "
                f"{count * size} {modality} tokens: {count} {modality}(s) of {size} by its `pooling_shape` "
                f"{tuple(self.config.pooling_shape)}. Do the processor's `pooling_shape` and the number of "
                f"{modality}s passed agree with the model and the text?"
            )
        return mask.unsqueeze(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | list[torch.FloatTensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        positions_to_keep: torch.BoolTensor | None = None,
        **kwargs,
    ) -> tuple | PllavaModelOutputWithPast:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(images, 3, height, width)`):
                All images of the batch, in the order of the text.
            pixel_values_videos (`torch.FloatTensor` of shape `(videos, frames, 3, height, width)`):
                All videos of the batch, in the order of the text; a list where they differ in length.
            mm_encoder_outputs (`dict[str, BaseModelOutputWithPooling]`):
                What `get_image_features` ("image") and `get_video_features` ("video") gave, in place of the pixels.
            positions_to_keep (`torch.BoolTensor` of shape `(batch, sequence)`):
                Whose hidden states are returned, as `(1, positions, D)`; by default all are, `(batch, sequence, D)`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either `input_ids` or `inputs_embeds`, and not both")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        visual = dict(mm_encoder_outputs or {})
        if pixel_values is not None:
            visual["image"] = self.get_image_features(pixel_values)
        if pixel_values_videos is not None:
            visual["video"] = self.get_video_features(pixel_values_videos)
        features = {}
        for modality, output in visual.items():
            tokens = output.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, tokens, modality)
            inputs_embeds = inputs_embeds.masked_scatter(mask, tokens)
            features[f"{modality}_hidden_states"] = tokens
        if self.training and not visual:
            # Where several processes train, each must have a gradient of the projector, if only 0: else they would
            # wait for the one whose batch is text only
            unused = [weight.sum() for weight in self.multi_modal_projector.parameters() if weight.requires_grad]
            inputs_embeds = inputs_embeds + 0.0 * sum(unused)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if positions_to_keep is not None:
            outputs.last_hidden_state = outputs.last_hidden_state[positions_to_keep][None]
        return PllavaModelOutputWithPast(**outputs, **features)


class PllavaForConditionalGeneration(PllavaPreTrainedModel, LlavaForConditionalGeneration):
    """
    PLLaVA with a language-modelling head: answers questions about videos and images.

    Example:

    ```python
    >>> import pllava
    >>> from transformers import AutoModelForImageTextToText, AutoProcessor

    >>> model = AutoModelForImageTextToText.from_pretrained(pllava.NANO)
    >>> processor = AutoProcessor.from_pretrained(pllava.NANO)
    >>> content = [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "What happens?"}]
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": content}],
    ...     add_generation_prompt=True,
    ...     tokenize=True,
    ...     return_dict=True,
    ...     return_tensors="pt",
    ... )
    >>> output = model.generate(**inputs, max_new_tokens=40)
    >>> processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```"""

    def __init__(self, config: PllavaConfig):
        PllavaPreTrainedModel.__init__(self, config)
        self.model = PllavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_video_features(self, pixel_values_videos, **kwargs) -> BaseModelOutputWithPooling:
        """See [`PllavaModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def get_image_features(self, pixel_values, **kwargs) -> BaseModelOutputWithPooling:
        """See [`PllavaModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: torch.LongTensor | None = None, **model_kwargs
    ):
        """
        Repeats the inputs for beams and for several return sequences, the videos of a row together ([a, b, a, b]).
        Only for transformers 5.16, which repeats each pixel tensor alone ([a, a, b, b]); later versions encode the
        pixels before they come here, and repeat the tokens of a row together.
        """
        expanded = {}
        for name, modality in {"pixel_values": "image", "pixel_values_videos": "video"}.items():
            if expand_size > 1 and (pixels := model_kwargs.pop(name, None)) is not None:
                placeholders = self.model.find_placeholders(input_ids, model_kwargs.get("inputs_embeds"), modality)
                counts = (placeholders.sum(-1) // self.config.num_visual_tokens).tolist()
                order = [i for row in torch.arange(len(pixels)).split(counts) for i in row.tolist() * expand_size]
                expanded[name] = [pixels[i] for i in order] if isinstance(pixels, list) else pixels[order]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **expanded}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | list[torch.FloatTensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> tuple | LlavaCausalLMOutputWithPast:
        """
        [`PllavaModel.forward`], then logits `(batch, sequence, vocab_size)` and, given `labels` (`(batch, sequence)`,
        -100 where nothing is learned), the mean cross-entropy of the next token. In training with labels, the logits
        are only those that the loss is taken on, `(1, labelled, vocab_size)`: of a video's tokens none is.
        """
        if labels is not None and self.training:
            kwargs.update(select_labelled(labels))
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )


def select_labelled(labels: torch.LongTensor) -> dict[str, torch.Tensor]:
    """
    `labels` `(batch, sequence)` -> `positions_to_keep`, bool `(batch, sequence)`, whose next token is labelled, and
    these labels as `shift_labels` `(1, positions)`.
    """
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    positions = following != -100
    return {"positions_to_keep": positions, "shift_labels": following[positions][None]}


__all__ = ["PllavaForConditionalGeneration", "PllavaModel", "PllavaPreTrainedModel"]
