"""Generation on transformers' inference thread, one answer after the other: text arrives in a queue as it is made."""

import asyncio
import logging
import time
from contextvars import copy_context
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.cli.serving.utils import (
    BaseGenerateManager,
    DirectStreamer,
    GenerateManager,
    _GenerationCancelled,
    _StreamError,
)

from ..conversation_cache import ConversationCache
from ..processing_pllava import PllavaProcessor
from .errors import ApiError
from .logs import Call
from .metrics import Metrics

logger = logging.getLogger(__name__)

FAILED = "The model failed on this request; the server's log says why."


class Streamer(DirectStreamer):
    """transformers' streamer, which also ends an answer before a stop text, and notes times and tokens."""

    def __init__(self, *args: Any, stop: list[str], call: Call, metrics: Metrics):
        self._stop, self._held = stop, ""
        self._call, self._metrics = call, metrics
        self.tokens: list[int] = []
        super().__init__(*args)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def put(self, value: torch.Tensor) -> None:
        is_prompt = self._first
        super().put(value)
        if is_prompt:
            return
        self.tokens += value.tolist()
        self._call.generated_tokens = self.total_tokens
        self._metrics.generation_tokens.inc(len(value))
        if self._call.first_token is None:
            self._call.first_token = self._call.seconds
            self._metrics.time_to_first_token.observe(self._call.first_token)

    def _enqueue(self, item: Any) -> None:
        if item is None:  # the end
            if self._held:
                super()._enqueue(self._held)
        elif self._stop:
            item = self._before_stop(self._held + item)
        if item != "":
            super()._enqueue(item)

    def _before_stop(self, text: str) -> str:
        """Return what can be sent of `text`; hold back an end with which a stop text may begin."""
        if self.cancelled:
            return ""
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self._held = ""
            self.cancel()
            return text[: min(found)]
        begun = [
            size
            for stop in self._stop
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ]
        kept = len(text) - max(begun, default=0)
        self._held = text[kept:]
        return text[:kept]


class Generation(BaseGenerateManager):
    """
    The generation of one answer.

    Args:
        manager: The one that all requests share: it owns the inference thread.
        conversations: Those of the model, for the inference thread.
        stop: Texts that end the answer, and are not part of it.
        seed: For sampling.
    """

    def __init__(
        self,
        manager: GenerateManager,
        conversations: ConversationCache,
        stop: list[str],
        seed: int | None,
        call: Call,
        metrics: Metrics,
    ):
        self._manager, self._conversations, self._stop, self._seed = manager, conversations, stop, seed
        self._call, self._metrics = call, metrics

    def generate_streaming(
        self,
        model: PreTrainedModel,
        processor: PllavaProcessor,
        inputs: dict[str, Any],
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, Streamer]:
        """Return the queue that gets the answer's text and then None, and the streamer, which can be cancelled."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()
        tokenizer = processor.tokenizer.backend_tokenizer
        streamer = Streamer(tokenizer, loop, queue, stop=self._stop, call=self._call, metrics=self._metrics)
        self._call.cancel = streamer.cancel

        def run() -> None:
            if not streamer.cancelled:
                try:
                    self._generate(inputs, gen_config, streamer)
                except _GenerationCancelled:
                    pass
                except Exception:
                    logger.exception("generation failed")
                    loop.call_soon_threadsafe(queue.put_nowait, _StreamError(FAILED))
            loop.call_soon_threadsafe(queue.put_nowait, None)

        self._manager.submit(copy_context().run, run)
        return queue, streamer

    def _generate(self, inputs: dict[str, Any], gen_config: GenerationConfig, streamer: Streamer) -> None:
        if gen_config.do_sample:  # no other request samples before this one has ended
            torch.seed() if self._seed is None else torch.manual_seed(self._seed)
        began = time.perf_counter()
        self._metrics.running = 1
        try:
            conversation = self._conversations.resume(inputs)
            self._call.cached_tokens = conversation.cached_tokens
            self._metrics.cached_tokens.inc(conversation.cached_tokens)
            conversation.generate(generation_config=gen_config, streamer=streamer)
        finally:
            self._metrics.running = 0
            self._metrics.generation_seconds.observe(time.perf_counter() - began)

    async def generate_non_streaming(
        self,
        model: PreTrainedModel,
        processor: PllavaProcessor,
        inputs: dict[str, Any],
        gen_config: GenerationConfig,
        request_id: str,
    ) -> tuple[str, int, list[int]]:
        """Return the text, the number of tokens of the prompt, and the generated tokens."""
        queue, streamer = self.generate_streaming(model, processor, inputs, gen_config, request_id)
        texts = []
        while (item := await queue.get()) is not None:
            if isinstance(item, _StreamError):
                raise ApiError(500, item.msg)
            texts.append(item)
        return "".join(texts), inputs["input_ids"].shape[-1], streamer.tokens

    def stop(self) -> None:
        """Nothing to stop: the inference thread is shared, and ends with the process."""
