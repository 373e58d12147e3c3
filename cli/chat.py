"""`pllava chat`: one question about a video, or a conversation about it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from . import options
from .options import sample_frames


def chat(
    context: typer.Context,
    video: Annotated[str, typer.Argument(help="Path or URL of a video, or a folder of frames.", metavar="VIDEO")],
    question: Annotated[
        str | None, typer.Argument(help="Without a question, a conversation starts.", metavar="QUESTION")
    ] = None,
    start: options.Start = None,
    end: options.End = None,
    num_frames: options.NumFrames = None,
    max_new_tokens: options.MaxNewTokens = 256,
) -> None:
    """Ask a model about a video. The answer is printed as it is generated."""
    with _no_garbage_collection():  # a tenth of the time in which libraries and model are loaded
        from transformers import TextStreamer

        from pllava.adapters import input_device, plain_model
        from pllava.conversation_cache import ConversationCache
        from pllava.media import AS_SAMPLED

        model_options: options.ModelOptions = context.obj
        _, processor = model_options.read(num_frames)
        frames = sample_frames(processor, video, num_frames, start, end)
        model = plain_model(model_options.load(processor))
    conversations = ConversationCache(model, max_conversations=1)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    if question is None:
        typer.echo(f"Ask about {video}; an empty line ends the conversation.")
    messages, media = [], [{"type": "video", "video": frames}]
    while text := question or _read_line():
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": text}]})
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=AS_SAMPLED,
        ).to(input_device(model))
        output = conversations.resume(inputs).generate(
            do_sample=False, max_new_tokens=max_new_tokens, streamer=streamer
        )
        if question is not None:
            return
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        media = []


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
