"""Answers to the questions of a conversation, as they are generated, with what the model saw and how fast it was."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedModel, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from ..adapters import input_device, plain_model, set_alpha
from ..conversation_cache import ConversationCache
from ..media import AS_SAMPLED, MediaGate, MediaRefused
from ..model_pooling import choose_pooling, context_length, pooled
from ..pooling_pllava import Pooling
from ..processing_pllava import PllavaProcessor
from .conversation import Answer, Medium, Settings, Turn, media_of, to_messages

if TYPE_CHECKING:
    from peft import PeftModel

CACHED_MEDIA = 8  # decoded videos and images that are kept, for the next question about them
UPDATE_SECONDS = 0.05  # between two versions of an answer


@dataclass(frozen=True)
class Seen:
    """What the model saw of a medium: `(frames, height, width, 3)` uint8, and each frame's time in seconds, if any."""

    label: str
    frames: np.ndarray
    times: tuple[float, ...] | None


@dataclass(frozen=True)
class Prepared:
    """A question as the model gets it: its inputs, what it sees, and its prompt for people."""

    inputs: BatchFeature
    settings: Settings
    seen: list[Seen]
    prompt: str


class Engine:
    """
    Answers questions with one model, one at a time.

    Args:
        model: From [`load_model`].
        processor: Its processor.
        gate: Reads the media.
        on_gpu: Wraps the generator function that uses the model, such as `spaces.GPU`. It then may run in another
            process, to which its arguments are sent.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        processor: PllavaProcessor,
        gate: MediaGate,
        on_gpu: Callable[[Callable], Callable] = lambda function: function,
    ):
        self.model, self.processor = model, processor
        self.config = copy.deepcopy(model.config)  # the model's own has the pooling of the question that is answered
        self.answer = on_gpu(self._answer)
        self._lock = Lock()
        self._conversations = ConversationCache(plain_model(model))
        adapters = getattr(model, "peft_config", {})
        # The strength of the adapter as it was loaded; None without one
        self.alpha = next((float(config.lora_alpha) for config in adapters.values()), None)
        self._load_video = lru_cache(CACHED_MEDIA)(
            lambda path, *options: gate.load_video(path, processor.video_processor, *options)
        )
        self._load_image = lru_cache(CACHED_MEDIA)(gate.load_image)

    def check(self, settings: Settings, alpha: float | None = None) -> None:
        """
        Raises:
            ValueError: if the model cannot do what the settings ask.
        """
        if alpha is not None and self.alpha is None:
            raise ValueError("Alpha is the strength of an adapter, and this model has none.")
        self.chosen_pooling(settings)

    def chosen_pooling(self, settings: Settings) -> Pooling | None:
        """
        Return the pooling that the settings ask for, or None for the model's own, which takes any number of frames.

        Raises:
            ValueError: if there is no such pooling, or its shape is too large for the model.
        """
        if settings.pooling in (None, str(self.config.video_pooling)):
            return None
        return choose_pooling(self.config, settings.pooling, settings.num_frames)

    def prepare(self, turns: list[Turn], settings: Settings, column: int = 0) -> Prepared:
        """
        Read the media of a conversation, and make the inputs for its last question.

        Raises:
            ValueError: if a medium is refused or broken, a setting does not fit, or the conversation is too long.
        """
        processor, pooling = copy.copy(self.processor), self.chosen_pooling(settings)
        if pooling is not None:  # the copy shares all else
            processor.video_pooling = pooling
        media = media_of(turns)
        loaded = [self._load(medium, settings.num_frames) for medium in media]
        messages = to_messages(turns, settings.system, column, [pixels for pixels, _ in loaded])
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=AS_SAMPLED,
        )
        tokens, limit = inputs["input_ids"].shape[1], context_length(self.config, pooling)
        if tokens + settings.max_new_tokens > limit:
            raise ValueError(
                f"The conversation has {tokens:,} tokens, and the answer may have {settings.max_new_tokens:,} more, "
                f"but the model takes {limit:,} in all: clear the conversation, lower the length limit, or pool to "
                "fewer tokens."
            )
        seen = self._seen(media, [times for _, times in loaded], inputs)
        return Prepared(inputs, settings, seen, self.describe_prompt(inputs["input_ids"][0].tolist()))

    def _load(self, medium: Medium, num_frames: int | None) -> tuple[Any, tuple[float, ...] | None]:
        """Return the pixels of a medium, as the processor takes them, and the times of a video's frames."""
        with named(medium.path, medium.name):
            if medium.kind == "image":
                return self._load_image(medium.path), None
            frames, metadata = self._load_video(medium.path, num_frames, medium.start, medium.end)
        indices = np.asarray(metadata.frames_indices, dtype=float)
        return frames, tuple((indices / metadata.fps).tolist()) if metadata.fps else None

    def _seen(self, media: list[Medium], times: list, inputs: BatchFeature) -> list[Seen]:
        """Undo the normalisation of the model's own inputs: these, and no others, are what it sees."""
        videos, images = iter(inputs.get("pixel_values_videos", ())), iter(inputs.get("pixel_values", ()))
        seen = []
        for medium, moments in zip(media, times, strict=True):
            is_video = medium.kind == "video"
            used = self.processor.video_processor if is_video else self.processor.image_processor
            pixels = next(videos) if is_video else next(images)[None]
            mean, std = (torch.tensor(value)[:, None, None] for value in (used.image_mean, used.image_std))
            frames = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
            seen.append(Seen(medium.label, frames.permute(0, 2, 3, 1).numpy(), moments))
        return seen

    def describe_prompt(self, ids: list[int]) -> str:
        """Return the prompt as text. Each row of placeholders is one word, such as `<video> x 144`."""
        placeholders = (self.processor.video_token_id, self.processor.image_token_id)
        parts = []
        for token, group in groupby(ids, key=lambda number: number if number in placeholders else None):
            run = list(group)
            text = self.processor.tokenizer.decode(run if token is None else run[:1])
            parts.append(text if token is None else f"{text} x {len(run)}")
        return "".join(parts)

    def _answer(self, prepared: Prepared, alpha: float | None = None, stop: Path | None = None) -> Iterator[Answer]:
        """
        Generate an answer, and yield it whenever it has grown.

        Args:
            alpha: The strength of the adapter, for this answer; by default the one that it was loaded with.
            stop: As soon as this file exists, generation stops. (A file, since `on_gpu` may run this in a process of
                its own.)

        Raises:
            ValueError: if `alpha` is given, and the model has no adapter.
            RuntimeError: as the model does, such as without enough memory.
        """
        self.check(prepared.settings, alpha)
        ids = prepared.inputs["input_ids"]
        watch = _Watch(ids.shape[1], stop)
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer = Answer(alpha=self.alpha if alpha is None else alpha, tokens_in=ids.shape[1])
        errors: list[Exception] = []

        def work() -> None:
            try:
                self._generate(prepared, answer.alpha, watch, streamer)
            except Exception as error:  # raised again by the generator, in the thread that asked
                errors.append(error)
            finally:
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            text, shown = "", 0.0
            for piece in streamer:
                text += piece
                if text.strip() and time.monotonic() - shown > UPDATE_SECONDS:
                    shown = time.monotonic()
                    yield replace(answer, text=text.strip(), **watch.facts())
        except GeneratorExit:  # nobody waits for the rest
            watch.stopped = True
            raise
        thread.join()
        if errors:
            raise errors[0]
        ended = "stopped" if watch.stopped else "end" if watch.last_token in self._ends() else "length"
        yield replace(answer, text=text.strip(), ended=ended, **watch.facts())

    def _ends(self) -> list[int]:
        end = self.model.generation_config.eos_token_id
        return end if isinstance(end, list) else [end]

    @torch.no_grad()
    def _generate(self, prepared: Prepared, alpha: float | None, watch: "_Watch", streamer: Any) -> None:
        settings = prepared.settings
        with self._lock:
            watch.begin()
            if alpha is not None:
                set_alpha(self.model, alpha)
            model = plain_model(self.model)
            inputs = BatchFeature(dict(prepared.inputs)).to(input_device(model))
            sampling = {"do_sample": False}
            if settings.temperature > 0:
                sampling = {"do_sample": True, "temperature": settings.temperature}
            pooling = self.chosen_pooling(settings)
            with nullcontext() if pooling is None else pooled(model, pooling):
                self._conversations.resume(inputs).generate(
                    **sampling,
                    num_beams=1,
                    max_new_tokens=settings.max_new_tokens,
                    stopping_criteria=StoppingCriteriaList([watch]),
                    streamer=streamer,
                )


@contextmanager
def named(path: str, name: str) -> Iterator[None]:
    """Call a file by its name, not by its path on this machine, in what the gate says of it."""
    try:
        yield
    except MediaRefused as error:
        raise MediaRefused(str(error).replace(path, name)) from error


class _Watch(StoppingCriteria):
    """Counts the tokens of an answer and their times, and stops it when it is told to, or a file `stop` exists."""

    def __init__(self, prompt_tokens: int, stop: Path | None):
        self.prompt_tokens, self.file = prompt_tokens, stop
        self.stopped, self.last_token = False, None
        self.begin()

    def begin(self) -> None:
        self.started, self.first, self.last, self.tokens = time.monotonic(), None, None, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs) -> torch.Tensor:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.tokens, self.last_token = input_ids.shape[1] - self.prompt_tokens, int(input_ids[0, -1])
        self.stopped = self.stopped or (self.file is not None and self.file.exists())
        return torch.full((len(input_ids),), self.stopped, dtype=torch.bool, device=input_ids.device)

    def facts(self) -> dict[str, Any]:
        first = None if self.first is None else self.first - self.started
        last = 0.0 if self.last is None else self.last - self.started
        return {"tokens_out": self.tokens, "first_token_seconds": first, "seconds": last}
