"""Chat completions: from a request to the model's inputs, through the gate, and from its tokens to the reply."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import aclosing
from contextvars import copy_context
from typing import Any

from openai.types.completion_usage import CompletionUsage, PromptTokensDetails
from starlette.responses import JSONResponse, StreamingResponse
from transformers import BatchFeature, GenerationConfig, PreTrainedModel
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import GenerationState

from ..adapters import input_device
from ..conversation_cache import ConversationCache
from ..media import AS_SAMPLED, MediaGate, MediaRefused
from ..model_pooling import context_length
from ..processing_pllava import PllavaProcessor
from ..video_sampling_pllava import MAX_FRAMES
from .errors import ApiError
from .generation import Generation
from .logs import Call, current_call
from .metrics import Metrics
from .requests import ChatRequest, ImagePart, TextPart, VideoPart

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024  # of an answer, if the request does not say, as in `transformers serve`


class ChatHandler(ChatCompletionHandler):
    """
    transformers' handler for one model, which is loaded already. Media are read by the gate, and by nothing else, in
    the threads of `decoders`.

    Args:
        name: The model's name in requests and replies.
        gate: Reads the media.
        decoders: Where media are read and prepared, so that the event loop is not blocked.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        processor: PllavaProcessor,
        gate: MediaGate,
        decoders: Executor,
        metrics: Metrics,
    ):
        super().__init__(model_manager=None, generation_state=GenerationState())
        self.name, self.model, self.processor = name, model, processor
        self._gate, self._decoders, self._metrics = gate, decoders, metrics
        self._conversations = ConversationCache(model)
        self.context = context_length(model.config)
        self._longest_token = max(map(len, processor.tokenizer.get_vocab()))

    async def handle_request(self, request: ChatRequest, call: Call) -> StreamingResponse | JSONResponse:
        """
        Answer a request. This replaces transformers' way from the body to the model, which fetches media itself.

        Raises:
            ApiError: if the request names another model, its prompt is too long, or a medium is refused.
        """
        self._check(request)
        loop = asyncio.get_running_loop()
        inputs = await loop.run_in_executor(self._decoders, copy_context().run, self._prepare, request)
        request.messages.clear()  # they may hold large videos, which are not needed any more
        call.prompt_tokens = inputs["input_ids"].shape[-1]
        config = self._generation_config(request, call.prompt_tokens)
        self._metrics.prompt_tokens.inc(call.prompt_tokens)
        manager = self.generation_state.get_manager(self.name)
        generation = Generation(manager, self._conversations, request.stop, request.seed, call, self._metrics)
        arguments = (call.id, self.model, self.processor, self.name, inputs, config)
        if not request.stream:
            return await self._non_streaming(*arguments, gen_manager=generation)
        response = self._streaming(*arguments, gen_manager=generation)
        response.body_iterator = _with_end(response.body_iterator)
        return response

    def _check(self, request: ChatRequest) -> None:
        """Refuse what can be refused before media are read."""
        if request.model != self.name:
            message = f"This server has the model {self.name}, and no other: send that as `model`."
            raise ApiError(404, message, "model_not_found", "model")
        num_frames, videos = request.media_io_kwargs.video.num_frames or self.processor.num_frames, request.num_videos
        if num_frames * videos > MAX_FRAMES:  # of all videos together
            place = "media_io_kwargs.video.num_frames"
            message = f"`{place}`: {videos} videos of {num_frames} frames are more than {MAX_FRAMES} frames."
            raise ApiError(400, message, "invalid_request", place)
        parts = [part for message in request.messages for part in message.content]
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        tokens = sum(map(len, texts)) // self._longest_token
        tokens += request.num_videos * self.processor.num_video_tokens
        tokens += (len(parts) - len(texts) - request.num_videos) * self.processor.num_image_tokens
        if tokens >= self.context:
            raise _too_long(f"more than {tokens} tokens", self.context)

    def _prepare(self, request: ChatRequest) -> BatchFeature:
        """Read the media, and return the model's inputs, on its device."""
        began = time.perf_counter()
        chat = [
            {
                "role": message.role,
                "content": [
                    self._read(part, request, f"messages[{row}].content[{column}]")
                    for column, part in enumerate(message.content)
                ],
            }
            for row, message in enumerate(request.messages)
        ]
        if any(part["type"] != "text" for message in chat for part in message["content"]):
            self._metrics.media_seconds.observe(time.perf_counter() - began)
        inputs = self.processor.apply_chat_template(
            chat,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=AS_SAMPLED,
        )
        return inputs.to(input_device(self.model))

    def _read(self, part: TextPart | ImagePart | VideoPart, request: ChatRequest, place: str) -> dict[str, Any]:
        """Return a part of a message as the processor takes it: text, decoded frames or a decoded image."""
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        try:
            if isinstance(part, ImagePart):
                place = f"{place}.image_url.url"
                return {"type": "image", "image": self._gate.load_image(part.image_url.url)}
            place, options = f"{place}.video_url.url", request.media_io_kwargs.video
            bounds = part.video_url if part.video_url.are_given else options
            frames, _ = self._gate.load_video(
                part.video_url.url, self.processor.video_processor, options.num_frames, bounds.start, bounds.end
            )
            return {"type": "video", "video": frames}
        except MediaRefused as error:
            raise ApiError(400, f"{place}: {error}", "invalid_media", place) from error

    def _generation_config(self, request: ChatRequest, prompt_tokens: int) -> GenerationConfig:
        """Return the settings of an answer. Without `temperature` and `top_p`, the model's own ones hold."""
        room = self.context - prompt_tokens
        wanted = request.max_completion_tokens or request.max_tokens
        if room < (wanted or 1):
            asked = f"{prompt_tokens} tokens" + (f" and an answer of {wanted}" if wanted else "")
            raise _too_long(asked, self.context)
        settings = {"max_tokens": wanted or min(MAX_NEW_TOKENS, room), "top_p": request.top_p}
        config = self._build_generation_config(
            {**settings, "temperature": request.temperature or None}, self.model.generation_config
        )
        if request.temperature is not None:
            config.do_sample = request.temperature > 0
        elif request.top_p is not None:
            config.do_sample = True
        return config

    def _build_completion(self, *args: Any, usage: CompletionUsage | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._build_completion(*args, usage=_with_cached_tokens(usage), **kwargs)

    def _build_chunk_sse(self, *args: Any, usage: CompletionUsage | None = None, **kwargs: Any) -> str:
        return super()._build_chunk_sse(*args, usage=_with_cached_tokens(usage), **kwargs)


def _with_cached_tokens(usage: CompletionUsage | None) -> CompletionUsage | None:
    """Add what the prompt of the current request shares with earlier ones, as OpenAI's API has it."""
    if usage is not None:
        usage.prompt_tokens_details = PromptTokensDetails(cached_tokens=current_call.get().cached_tokens)
    return usage


def _too_long(asked: str, context: int) -> ApiError:
    message = f"The request has {asked}, but the model's context has {context} tokens: shorten it."
    return ApiError(400, message, "context_length_exceeded", "messages")


async def _with_end(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """Add the line with which OpenAI's streams end, and close `chunks` as soon as the client has left."""
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
    yield "data: [DONE]\n\n"
