"""PLLaVA's processor: chats with videos and images -> token ids and pixels."""

import json
import math
import os
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerBase
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin
from transformers.utils import cached_file

from .chat_templates_pllava import CHAT_TEMPLATES, MARK
from .video_images_pllava import read_image
from .video_processing_pllava import PllavaVideosKwargs, flatten_videos

HUB_OPTIONS = {"cache_dir", "revision", "token", "local_files_only", "subfolder"}  # of `from_pretrained`


class PllavaProcessorKwargs(ProcessingKwargs, total=False):
    videos_kwargs: PllavaVideosKwargs
    _defaults = {}  # transformers 5.19 reads chats only where this is


class PllavaProcessor(ProcessorMixin):
    r"""
    An image processor, a video processor and a tokenizer in one. Each `<video>` and each `<image>` in the text is
    expanded to the T' * h' * w' placeholder tokens that the model fills with the pooled tokens of that video or image.

    Text in a message is text: a `</s>`, `<|im_end|>` or `<video>` that somebody writes there is encoded letter by
    letter. Our chat templates write a mark (U+FDD0) into each of them, so that the tokenizer finds no special token
    there, and the tokenizer drops the mark when it encodes the rest. That holds wherever a chat is rendered and
    encoded (where an engine renders it with the tokenizer alone, for special tokens that have a role, such as the end
    of a text, and for those like `<|im_end|>`); a template of one's own has to write the marks, too.

    Args:
        image_processor ([`CLIPImageProcessor`]): Prepares images.
        tokenizer ([`PreTrainedTokenizerFast`]): Has `<image>` and `<video>` in its vocabulary. It is changed, to
            drop the chat templates' mark.
        video_processor ([`PllavaVideoProcessor`]): Decodes, samples and prepares videos.
        pooling_shape (`list[int]`, *optional*, defaults to `[16, 12, 12]`): As in the model's config.
        image_token, video_token (`str`, *optional*): The placeholders.
        chat_template (`str`, *optional*, defaults to `"plain"`): A Jinja template, or the name of one of ours
            (`chat_templates_pllava.py`).

    Raises:
        ValueError: if a placeholder is not in the tokenizer's vocabulary, or the tokenizer cannot tell a special token
            from a text that looks like it.
    """

    valid_processor_kwargs = PllavaProcessorKwargs
    # The video processor has made tensors of these already, or left them a list since the videos differ in length.
    skip_tensor_conversion = [*ProcessorMixin.skip_tensor_conversion, "pixel_values_videos"]

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        pooling_shape: list[int] | tuple[int, ...] = (16, 12, 12),
        image_token: str = "<image>",
        video_token: str = "<video>",
        chat_template: str | None = None,
    ):
        self.pooling_shape = list(pooling_shape)
        self.image_token, self.video_token = image_token, video_token
        vocabulary = tokenizer.get_vocab()
        for token in (image_token, video_token):
            if token not in vocabulary:
                raise ValueError(
                    f"The tokenizer does not know {token!r}: `tokenizer.add_tokens([{token!r}], special_tokens=True)`"
                )
        self.image_token_id, self.video_token_id = vocabulary[image_token], vocabulary[video_token]
        _drop_mark(tokenizer)
        # The named templates stay in the code: saved with the processor, they would make its template a dict, and
        # inference engines take a string only
        chat_template = CHAT_TEMPLATES.get(chat_template or "plain", chat_template)
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template)

    @property
    def num_frames(self) -> int:
        """Frames sampled from a clip, when the caller does not say otherwise."""
        return self.video_processor.num_frames

    @property
    def num_visual_tokens(self) -> int:
        """Placeholder tokens of one video or image."""
        return math.prod(self.pooling_shape)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "PllavaProcessor":
        """
        As any processor's; checks in addition that it fits the model's config beside it.

        Raises:
            ValueError: if `num_frames` or `pooling_shape` differs from the one in config.json.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config_file = cached_file(
            pretrained_model_name_or_path,
            "config.json",
            _raise_exceptions_for_missing_entries=False,
            **{name: kwargs[name] for name in HUB_OPTIONS & kwargs.keys()},
        )
        if config_file is not None:
            processor.check_config(json.loads(Path(config_file).read_text(encoding="utf-8")), set(kwargs))
        return processor

    def check_config(self, config: dict[str, Any], overridden: set[str] = frozenset()) -> None:
        """Raises a `ValueError` if a model's `config`, as a dict, disagrees with a value that is not `overridden`."""
        for name in {"num_frames", "pooling_shape"} - overridden:
            if name in config and config[name] != getattr(self, name):
                raise ValueError(
                    f"The processor and the model disagree on `{name}`: {getattr(self, name)} in "
                    f"processor_config.json, {config[name]} in config.json. Make them equal; the model's weights were "
                    "trained with one of them."
                )

    def apply_chat_template(
        self,
        conversation: list,
        chat_template: str | None = None,
        **kwargs,
    ) -> Any:
        """
        As any processor's. `chat_template` may be the name of one of ours (`chat_templates_pllava.py`). A video part
        may have "start" and "end" (seconds) beside its source, and "bytes" as its source: `{"type": "video", "path":
        "film.mp4", "start": 61.5, "end": 70}`.
        """
        chat_template = CHAT_TEMPLATES.get(chat_template, chat_template)
        conversation = _with_sub_clips(conversation)
        kwargs.setdefault("extra_special_tokens", self._special_tokens)
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    @property
    def _special_tokens(self) -> list[str]:
        """All of the tokenizer's: a template is told those alone that have a role, such as the end of a text."""
        return [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs) -> None:
        """
        Raises:
            ValueError: if the text has not as many placeholders as there are images and videos.
        """
        # transformers 5.19 does not compare them; later versions do, but know as videos only strings and arrays
        videos = None if videos is None else ["video"] * len(flatten_videos(videos))
        counts = {
            self.image_token: 0 if images is None else len(make_flat_list_of_images(images)),
            self.video_token: len(videos or []),
        }
        for token, given in counts.items() if text is not None else ():
            found = sum(sample.count(token) for sample in text)
            if found != given:
                raise ValueError(f"The text has {found} {token} placeholders, but {given} were passed to fill them")
        super().validate_inputs(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs) -> tuple:
        """Reads images that are paths, addresses or bytes within the limits that hold for videos."""
        return super().prepare_inputs_layout(_read_images(images), text, videos, audio, **kwargs)

    def _process_videos(self, videos: Any, **kwargs) -> tuple[dict, list[str]]:
        processed = self.video_processor(videos, **kwargs)
        return processed, [self.video_token * self.num_visual_tokens] * len(processed["pixel_values_videos"])

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.num_visual_tokens

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, **kwargs) -> MultiModalData:
        """Placeholder tokens that images and videos of these sizes take (inference engines ask)."""
        counts = {}
        if image_sizes is not None:
            counts.update(
                num_image_tokens=[self.num_visual_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
            )
        if video_sizes is not None:
            counts.update(num_video_tokens=[self.num_visual_tokens] * len(video_sizes))
        return MultiModalData(**counts)


def _drop_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes the tokenizer drop our chat templates' mark, after it has looked for special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer: PLLaVA needs one, as of a tokenizer.json")
    if backend.normalizer is None or MARK in backend.normalizer.normalize_str(MARK):
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Replace(MARK, ""), *own])
    # The tokens with `normalized` are looked for when the mark has gone
    late = [token for token in tokenizer.added_tokens_decoder.values() if token.normalized]
    backend.add_tokens([AddedToken(**{**token.__getstate__(), "normalized": False}) for token in late])
    for token in set(tokenizer.all_special_tokens) - {tokenizer.unk_token}:
        ids = backend.encode(token[0] + MARK + token[1:], add_special_tokens=False).ids
        if tokenizer.convert_tokens_to_ids(token) in ids:
            raise ValueError(
                f"The tokenizer makes a special token of the text {token!r}, even where it is marked as text: a user "
                "could write it. Take it out of the vocabulary of the tokenizer's model"
            )


def _read_images(images: Any) -> Any:
    """`images`, nested in any way, of which those that are still to be read are PIL images."""
    if isinstance(images, (list, tuple)):
        return [_read_images(image) for image in images]
    return read_image(images) if isinstance(images, (str, os.PathLike, bytes)) else images


def _with_sub_clips(value: Any) -> Any:
    """A chat, or chats, in which the parts that transformers would read in part, or in another way, are ours."""
    if isinstance(value, (list, tuple)):
        return [_with_sub_clips(item) for item in value]
    if isinstance(value, dict) and "content" in value:
        return {**value, "content": _with_sub_clips(value["content"])}
    if isinstance(value, dict) and value.get("type") == "video" and value.keys() & {"start", "end", "bytes"}:
        return {"type": "video", "video": {key: part for key, part in value.items() if key != "type"}}
    if isinstance(value, dict) and value.get("type") == "image" and "base64" in value:
        return {"type": "image", "url": f"data:;base64,{value['base64']}"}
    return value


__all__ = ["PllavaProcessor"]
