"""The "video-text-to-text" pipeline: `pipe(video, text="What happens?")`."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import BatchFeature, ImageTextToTextPipeline
from transformers.utils.chat_template_utils import Chat

from .video_processing_pllava import is_list_of_frames

DEFAULT_QUESTION = "Describe the video."


class VideoTextToTextPipeline(ImageTextToTextPipeline):
    """
    Answers questions about videos, or describes them.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> pipe = pipeline("video-text-to-text", model="path/or/repo", trust_remote_code=True)
    >>> pipe("clip.mp4", text="What happens?")
    [{'generated_text': 'A red circle moves left.'}]
    >>> pipe(["a.mp4", "b.mp4"], text="What happens?", batch_size=2)
    >>> for answer in pipe(streaming_dataset, batch_size=8):  # rows {"video": ..., "text": ...}
    ...     print(answer[0]["generated_text"])
    ```

    A video is anything that the model's video processor accepts. Keyword arguments are those of
    `ImageTextToTextPipeline`, such as `max_new_tokens`, `generate_kwargs`, `batch_size` and `processor_kwargs`
    (`{"num_frames": 32}`).
    """

    def __call__(self, videos: Any = None, text: str | list | None = None, **kwargs) -> Any:
        """
        Args:
            videos: A video or a row `{"video": ..., "text": ...}`, a list of these, or a stream of these (a generator,
                a `datasets` or torch dataset); or a chat or a list of chats.
            text (`str` or `list[str]`, *optional*): The question, or a list with one question per video. A row's own
                "text" takes priority. A video without a question is described. A chat or chats can be passed here,
                too.

        Returns:
            `[{"generated_text": answer}]` for one video, a list of these for a list, and an iterator over these for a
            stream. For chats the generated text is the chat with the answer as a new message, as in
            `ImageTextToTextPipeline`.

        Raises:
            ValueError: if there is neither a video nor a chat, or the numbers of videos and texts differ.
        """
        chats = text if videos is None else videos
        if _is_chat(chats) or (isinstance(chats, (list, tuple)) and chats and all(map(_is_chat, chats))):
            return super().__call__(text=chats, **kwargs)
        if videos is None:
            raise ValueError("There is no video: pass one, as in `pipe(video, text=...)`, or a chat")
        if not kwargs.keys() & {"return_type", "return_tensors"}:
            kwargs.setdefault("return_full_text", False)
        if _is_stream(videos):
            return self._answer((_row(video, text) for video in videos), **kwargs)
        if isinstance(videos, (list, tuple)) and not is_list_of_frames(videos):
            texts = text if isinstance(text, (list, tuple)) else [text] * len(videos)
            if len(texts) != len(videos):
                raise ValueError(f"Got {len(videos)} videos, but {len(texts)} texts")
            return self._answer([_row(*pair) for pair in zip(videos, texts, strict=True)], **kwargs)
        return self._answer([_row(videos, text)], **kwargs)[0]

    def _answer(self, rows: list[Chat] | Iterator[Chat], **kwargs) -> Any:
        answers = map(_without_input, super(ImageTextToTextPipeline, self).__call__(rows, **kwargs))
        return list(answers) if isinstance(rows, list) else answers

    def preprocess(self, inputs: Chat | str, **kwargs) -> dict[str, BatchFeature]:
        # transformers batches only samples with equal keys, and keeps only the first video of each. It leaves values
        # that are not tensors in a list, so each sample is passed as one value, and `_forward` makes the batch.
        return {"sample": super().preprocess(inputs, **kwargs)}

    def _forward(self, model_inputs: dict[str, Any], **kwargs) -> dict[str, Any]:
        samples = model_inputs["sample"]
        samples = samples if isinstance(samples, list) else [samples]
        outputs = super()._forward(self._batch(samples), **kwargs)
        sequences = outputs["generated_sequence"]
        return {**outputs, "generated_sequence": sequences.reshape(len(samples), -1, sequences.shape[-1])}

    def postprocess(self, model_outputs: dict[str, Any], **kwargs) -> list[dict[str, Any]]:
        # transformers 5.19 drops all but one of several sequences per sample, unless each one has its own prompt
        sequences = model_outputs["generated_sequence"].flatten(0, 1)
        prompt = model_outputs["prompt_text"]
        prompts = (prompt if isinstance(prompt, list) else [prompt]) * len(sequences)
        input_ids = model_outputs["input_ids"].expand(len(sequences), -1)
        outputs = {"generated_sequence": sequences, "prompt_text": prompts, "input_ids": input_ids}
        return super().postprocess(outputs, **kwargs)

    def _batch(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad the texts on the left, and stack the videos; videos of different lengths stay a list."""
        batch = {"text": [sample["text"] for sample in samples]}
        for key, value in {"input_ids": self.tokenizer.pad_token_id or 0, "attention_mask": 0}.items():
            rows = [sample[key][0] for sample in samples]
            batch[key] = pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
        for key in ("pixel_values", "pixel_values_videos"):
            pixels = [video for sample in samples for video in sample.get(key, [])]
            if pixels:
                batch[key] = torch.stack(pixels) if len({video.shape for video in pixels}) == 1 else pixels
        return batch


def _without_input(answer: list[dict]) -> list[dict]:
    # "input_text" is the whole chat, with the video
    return [{key: value for key, value in record.items() if key != "input_text"} for record in answer]


def _is_chat(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], dict) and "role" in value[0]


def _is_stream(value: Any) -> bool:
    """Return whether `value` is a generator or dataset. An open file is an iterator, too, but a video."""
    is_dataset = isinstance(value, Dataset) or (isinstance(value, Iterable) and hasattr(value, "column_names"))
    return is_dataset or (isinstance(value, Iterator) and not hasattr(value, "read"))


def _row(video: Any, text: str | None) -> Chat:
    if _is_chat(video):
        return Chat(video)
    if isinstance(video, dict):
        text = video.get("text", text)
    content = [{"type": "video", "video": video}, {"type": "text", "text": text or DEFAULT_QUESTION}]
    return Chat([{"role": "user", "content": content}])


__all__ = ["VideoTextToTextPipeline"]
