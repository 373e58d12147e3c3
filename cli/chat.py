"""`pllava chat`: one question about a video, or a conversation about it."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from .options import AS_SAMPLED, MaxNewTokens, NumFrames, load_pipeline, sampled_frames, takes_model


@takes_model(load_pipeline)
def chat(
    load: Callable[[], Any],
    video: Annotated[str, typer.Argument(help="Path or URL of a video, a GIF, or a folder of frames.")],
    question: Annotated[str | None, typer.Argument(help="Asked once; without it a conversation begins.")] = None,
    num_frames: NumFrames = None,
    max_new_tokens: MaxNewTokens = 256,
) -> None:
    """Ask about a video; the answer is written as it is generated."""
    from transformers import TextStreamer

    from pllava.video_source_pllava import VideoDecodeError

    pipe = load()
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
            processor_kwargs=AS_SAMPLED,
        )
        if question is not None:
            return
        messages, content = answer[0]["generated_text"], []


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
