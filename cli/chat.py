"""`pllava chat`: one question about a video, or a conversation about it."""

from typing import Annotated

import typer

from . import options
from .options import AS_SAMPLED, sample_frames


def chat(
    video: Annotated[str, typer.Argument(help="Path or URL of a video, or a folder of frames.", metavar="VIDEO")],
    question: Annotated[
        str | None, typer.Argument(help="Without a question, a conversation starts.", metavar="QUESTION")
    ] = None,
    start: options.Start = None,
    end: options.End = None,
    num_frames: options.NumFrames = None,
    max_new_tokens: options.MaxNewTokens = 256,
    model: options.Model = None,
    revision: options.Revision = "main",
    adapter: options.Adapter = None,
    alpha: options.Alpha = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    load_in_4bit: options.LoadIn4Bit = False,
    load_in_8bit: options.LoadIn8Bit = False,
    check: options.Check = True,
) -> None:
    """Ask a model about a video. The answer is printed as it is generated."""
    from transformers import TextStreamer

    model_options = options.ModelOptions(
        model, revision, adapter, alpha, dtype, device, device_map, load_in_4bit, load_in_8bit, check
    )
    _, processor = model_options.read()
    frames = sample_frames(processor, video, num_frames, start, end)
    pipe = model_options.load_pipeline(processor)
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
