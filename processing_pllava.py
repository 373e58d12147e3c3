"""PLLaVA's processor: turns chats with videos and images into token ids and pixels."""

import json
import os
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerBase
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin
from transformers.utils import cached_file

from .chat_templates_pllava import CHAT_TEMPLATES, MARK
from .model_card_pllava import CardOnPush
from .pooling_pllava import PoolingMixin
from .video_images_pllava import read_image
from .video_processing_pllava import PllavaVideosKwargs, flatten_videos

# What the processor and the model must agree on, with the values of checkpoints whose config does not mention them
SHARED = {"num_frames": 16, "pooling": "average", "pooling_shape": [16, 12, 12], "image_pooling_shape": None}
HUB_OPTIONS = {"cache_dir", "revision", "token", "local_files_only", "subfolder"}  # arguments of `from_pretrained`


class PllavaProcessorKwargs(ProcessingKwargs, total=False):
    videos_kwargs: PllavaVideosKwargs
    _defaults = {}  # transformers 5.19 requires it to process chats


class PllavaProcessor(PoolingMixin, CardOnPush, ProcessorMixin):
    r"""
    An image processor, a video processor and a tokenizer in one. Each `<video>` and each `<image>` in the text is
    expanded to the placeholder tokens that the model fills with the pooled tokens of that video or image.

    A special token in the text of a message (`</s>`, `<|im_end|>`, `<video>`) is encoded as text, by letters: the
    chat templates insert a mark (U+FDD0) into it, so that the tokenizer does not find it, and the tokenizer then drops
    the mark. This holds wherever a chat is rendered and encoded. (An engine that renders with the tokenizer alone only
    marks BOS, EOS, UNK, padding and tokens like `<|im_end|>`.) A custom chat template must insert the marks, too.

    Args:
        image_processor ([`CLIPImageProcessor`]): Preprocesses images.
        tokenizer ([`PreTrainedTokenizerFast`]): Must have `<image>` and `<video>` in its vocabulary. It is modified to
            drop the chat templates' mark.
        video_processor ([`PllavaVideoProcessor`]): Decodes, samples and preprocesses videos.
        pooling, pooling_shape, image_pooling_shape (*optional*): Those in the model's config ([`PllavaConfig`]).
        image_token, video_token (`str`, *optional*): The placeholders.
        chat_template (`str`, *optional*, defaults to `"plain"`): A Jinja template, or the name of one in
            `chat_templates_pllava.py`.

    Raises:
        ValueError: if a placeholder is not in the tokenizer's vocabulary, or the tokenizer cannot tell a special token
            from the same text.
    """

    valid_processor_kwargs = PllavaProcessorKwargs
    # The video processor returns tensors already, or a list if the videos differ in length
    skip_tensor_conversion = [*ProcessorMixin.skip_tensor_conversion, "pixel_values_videos"]

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        pooling: str = "average",
        pooling_shape: list | tuple = (16, 12, 12),
        image_pooling_shape: list | tuple | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        chat_template: str | None = None,
    ):
        self.pooling, self.pooling_shape, self.image_pooling_shape = pooling, pooling_shape, image_pooling_shape
        self.normalize_shapes()
        self.image_token, self.video_token = image_token, video_token
        vocabulary = tokenizer.get_vocab()
        for token in (image_token, video_token):
            if token not in vocabulary:
                raise ValueError(
                    f"The tokenizer does not know {token!r}; `tokenizer.add_tokens([{token!r}], special_tokens=True)`"
                )
        self.image_token_id, self.video_token_id = vocabulary[image_token], vocabulary[video_token]
        _make_tokenizer_drop_mark(tokenizer)
        # The other templates are not saved: with them `chat_template` would be a dict, which inference engines refuse
        chat_template = CHAT_TEMPLATES.get(chat_template or "plain", chat_template)
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template)

    @property
    def num_frames(self) -> int:
        """Default number of frames that are sampled from a clip."""
        return self.video_processor.num_frames

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "PllavaProcessor":
        """
        As in transformers, with a check against the model's config in the same directory.

        Raises:
            ValueError: if the number of frames or the pooling differs from the one in config.json.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config_file = cached_file(
            pretrained_model_name_or_path,
            "config.json",
            _raise_exceptions_for_missing_entries=False,
            **{name: kwargs[name] for name in HUB_OPTIONS & kwargs.keys()},
        )
        config = {} if config_file is None else json.loads(Path(config_file).read_text(encoding="utf-8"))
        for name in SHARED.keys() - kwargs.keys() if config else ():
            value, of_model = getattr(processor, name), config.get(name, SHARED[name])
            if value != of_model:
                raise ValueError(
                    f"The processor and the model disagree on `{name}`: {value} in processor_config.json, "
                    f"{of_model} in config.json. Set both to the value of the training."
                )
        return processor

    def apply_chat_template(self, conversation: list, chat_template: str | None = None, **kwargs) -> Any:
        """
        As in transformers; `chat_template` may also be a name in `chat_templates_pllava.py`. A video part may have
        "start" and "end" in seconds: `{"type": "video", "path": "film.mp4", "start": 61.5, "end": 70}`. Instead of a
        path it may have "bytes".
        """
        chat_template = CHAT_TEMPLATES.get(chat_template, chat_template)
        # By default a template gets BOS, EOS, UNK and padding only
        special_tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        kwargs.setdefault("extra_special_tokens", special_tokens)
        return super().apply_chat_template(_convert_media_parts(conversation), chat_template, **kwargs)

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs) -> None:
        """Raise a `ValueError` if the number of placeholders in the text is not that of images and videos."""
        # transformers 5.19 does not compare them; later versions do, but accept only strings and arrays as videos
        videos = None if videos is None else ["video"] * len(flatten_videos(videos))
        counts = {
            self.image_token: 0 if images is None else len(make_flat_list_of_images(images)),
            self.video_token: len(videos or []),
        }
        for token, given in counts.items() if text is not None else ():
            count = sum(sample.count(token) for sample in text)
            if count != given:
                raise ValueError(f"The text has {count} {token} placeholders, but {given} were passed to fill them")
        super().validate_inputs(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs) -> tuple:
        """As in transformers, but reads paths, addresses and bytes of images within the limits for videos."""
        return super().prepare_inputs_layout(_read_images(images), text, videos, audio, **kwargs)

    def _process_videos(self, videos: Any, **kwargs) -> tuple[dict, list[str]]:
        processed = self.video_processor(videos, **kwargs)
        count = len(processed["pixel_values_videos"])
        return processed, [self.replace_video_token(processed, index) for index in range(count)]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.num_image_tokens

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        return self.video_token * self.num_video_tokens

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, **kwargs) -> MultiModalData:
        """Return the number of placeholder tokens for images and videos of these sizes, for inference engines."""
        counts = {}
        if image_sizes is not None:
            counts["num_image_tokens"] = [self.num_image_tokens] * len(image_sizes)
            counts["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            counts["num_video_tokens"] = [self.num_video_tokens] * len(video_sizes)
        return MultiModalData(**counts)


def _make_tokenizer_drop_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the tokenizer drop the chat templates' mark after it has split the text at special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: load one from a tokenizer.json")
    if backend.normalizer is None or MARK in backend.normalizer.normalize_str(MARK):
        existing = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Replace(MARK, ""), *existing])
    # Tokens that are `normalized` would be found in the normalised text, without the mark
    normalized = [token for token in tokenizer.added_tokens_decoder.values() if token.normalized]
    backend.add_tokens([AddedToken(**{**token.__getstate__(), "normalized": False}) for token in normalized])
    for token in set(tokenizer.all_special_tokens) - {tokenizer.unk_token}:
        ids = backend.encode(token[0] + MARK + token[1:], add_special_tokens=False).ids
        if tokenizer.convert_tokens_to_ids(token) in ids:
            raise ValueError(
                f"The tokenizer makes a special token of the text {token!r} although it is marked as text, so a user "
                "could write it: remove it from the vocabulary of the tokenizer's model"
            )


def _read_images(images: Any) -> Any:
    """Read the images that are paths, addresses or bytes, in nested lists."""
    if isinstance(images, (list, tuple)):
        return [_read_images(image) for image in images]
    return read_image(images) if isinstance(images, (str, os.PathLike, bytes)) else images


def _convert_media_parts(value: Any) -> Any:
    """Wrap the media of a chat that transformers would not pass on: parts of videos, bytes, and base64 images."""
    if isinstance(value, (list, tuple)):
        return [_convert_media_parts(item) for item in value]
    if isinstance(value, dict) and "content" in value:
        return {**value, "content": _convert_media_parts(value["content"])}
    if isinstance(value, dict) and value.get("type") == "video" and value.keys() & {"start", "end", "bytes"}:
        return {"type": "video", "video": {key: part for key, part in value.items() if key != "type"}}
    if isinstance(value, dict) and value.get("type") == "image" and "base64" in value:
        return {"type": "image", "url": f"data:;base64,{value['base64']}"}
    return value


__all__ = ["PllavaProcessor"]
