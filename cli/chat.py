"""`pllava chat`: one question about a video, or a conversation about it."""

from typing import Annotated

import typer

from .options import Device, Dtype, MaxNewTokens, Model, NumFrames, load_pipeline, sampled_frames


def chat(
    video: Annotated[str, typer.Argument(help="Path or URL of a video, a GIF, or a folder of frames.")],
    question: Annotated[str | None, typer.Argument(help="Asked once; without it a conversation begins.")] = None,
    model: Model = "nano",
    num_frames: NumFrames = None,
    dtype: Dtype = "auto",
    device: Device = None,
    max_new_tokens: MaxNewTokens = 256,
) -> None:
    """Ask about a video; the answer is written as it is generated."""
    from transformers import TextStreamer

    from pllava.video_decoding_pllava import VideoDecodeError

    pipe = load_pipeline(model, dtype, device)
    try:
        frames = sampled_frames(pipe.processor, video, num_frames)
    except VideoDecodeError as error:
        raise typer.BadParameter(str(error), param_hint="VIDEO") from error
    streamer = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    content = [{"type": "video", "video": frames}]
    messages = []
    if question is None:
        typer.echo(f"Ask about {video}; an empty line ends the conversation.")
    while text := question or _read_line():
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": text}]})
        answer = pipe(
            messages,
            max_new_tokens=max_new_tokens,
            generate_kwargs={"do_sample": False, "streamer": streamer},
            processor_kwargs={"do_sample_frames": False},
        )
        if question is not None:
            return
        messages, content = answer[0]["generated_text"], []


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
