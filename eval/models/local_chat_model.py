"""A chat model on this machine, used as a judge without a server."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from transformers import AutoTokenizer, Pipeline, pipeline

from .openai_client import Messages, Reply


class LocalChat:
    """
    A transformers language model that replies to chats by greedy decoding.

    Args:
        model: Directory or Hub id of a language model with a chat template.
        device: As `pipeline` takes it.
        batch_size: Chats answered together.

    Raises:
        ValueError: if the model has no chat template.
    """

    def __init__(self, model: str, device: Any = None, batch_size: int = 8):
        self.model, self.device, self.batch_size = model, device, batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{model} has no chat template: it is not a chat model, and cannot judge")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @cached_property
    def pipe(self) -> Pipeline:
        """The pipeline, loaded for the first chat: if all replies are cached, it is never needed."""
        return pipeline("text-generation", self.model, tokenizer=self.tokenizer, device=self.device)

    def replies(
        self, chats: Sequence[Messages], temperature: float = 0.0, max_tokens: int = 200, **_: Any
    ) -> Iterator[tuple[int, Reply]]:
        """
        Yield the index and the reply of each chat.

        Raises:
            ValueError: if the temperature is not 0.
        """
        if temperature:
            raise ValueError(f"{self.model} judges by greedy decoding: the temperature must be 0, not {temperature}")
        if not chats:
            return
        outputs = self.pipe(
            (chat for chat in chats),
            batch_size=self.batch_size,
            max_new_tokens=max_tokens,
            do_sample=False,
            return_full_text=False,
        )
        for index, output in enumerate(outputs):
            text = output[0]["generated_text"]
            size = len(self.tokenizer(text, add_special_tokens=False).input_ids)
            prompt = self.tokenizer.apply_chat_template(chats[index], add_generation_prompt=True, return_dict=False)
            yield index, Reply(text, is_whole=size < max_tokens, prompt_tokens=len(prompt), completion_tokens=size)
