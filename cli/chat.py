"""`pllava chat`: one question about a video, or a conversation about it."""

from typing import Annotated

import typer

from .options import Device, Dtype, MaxNewTokens, Model, NumFrames, load_model, sampled_frames


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

    loaded, processor = load_model(model, dtype, device)
    try:
        frames = sampled_frames(processor, video, num_frames)
    except VideoDecodeError as error:
        raise typer.BadParameter(str(error), param_hint="VIDEO") from error
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    messages = []

    def ask(text: str) -> None:
        media = [] if messages else [{"type": "video", "video": frames}]
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": text}]})
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"do_sample_frames": False},
        ).to(loaded.device, loaded.dtype)
        output = loaded.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]})

    if question is not None:
        ask(question)
        return
    typer.echo(f"Ask about {video}; an empty line ends the conversation.")
    while text := _read_line():
        ask(text)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
