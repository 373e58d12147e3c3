"""`pllava chat`: one question about a video, or a conversation about it."""

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
    from transformers import TextStreamer

    from pllava.media import AS_SAMPLED

    model: options.ModelOptions = context.obj
    _, processor = model.read(num_frames)
    frames = sample_frames(processor, video, num_frames, start, end)
    pipe = model.load_pipeline(processor)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    if question is None:
        typer.echo(f"Ask about {video}; an empty line ends the conversation.")
    messages, media = [], [{"type": "video", "video": frames}]
    while text := question or _read_line():
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": text}]})
        answer = pipe(
            messages,
            max_new_tokens=max_new_tokens,
            generate_kwargs={"do_sample": False, "streamer": streamer},
            processor_kwargs=AS_SAMPLED,
        )
        if question is not None:
            return
        messages, media = answer[0]["generated_text"], []


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
