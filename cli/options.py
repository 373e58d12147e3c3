"""The options that commands share, and the model that they name."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

    from pllava import PllavaProcessor, VideoTextToTextPipeline

Model = Annotated[
    str, typer.Option(help="Directory or Hub id of a PLLaVA; 'nano' is the small one that ships with the package.")
]
NumFrames = Annotated[
    int | None, typer.Option(min=1, help="Frames to sample from the video; the model's own number by default.")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as the checkpoint was saved.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default a GPU if there is one.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Length limit of an answer, in tokens.")]


def load_pipeline(model: str, dtype: str, device: str | None) -> "VideoTextToTextPipeline":
    """The model in its pipeline; what is wrong with the options is said without a traceback."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
    from transformers.utils import logging

    import pllava

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        message = f"{dtype!r} is not a dtype of torch; try float32, bfloat16 or float16"
        raise typer.BadParameter(message, param_hint="--dtype")
    logging.disable_progress_bar()
    try:
        path = pllava.model_path(model)
        processor = AutoProcessor.from_pretrained(path)
        loaded = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error
    return pipeline("video-text-to-text", loaded, processor=processor, device=device)


def sampled_frames(processor: "PllavaProcessor", video: str, num_frames: int | None) -> "np.ndarray":
    """The frames of `video` that the model will see, `(frames, height, width, 3)` uint8."""
    from functools import partial

    from pllava.video_decoding_pllava import load_frames

    return load_frames(video, partial(processor.video_processor.sample_frames, num_frames=num_frames))[0]
