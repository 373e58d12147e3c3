"""The options that say which frames of a clip a model sees, and the frames."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

    from pllava import PllavaProcessor

NumFrames = Annotated[
    int | None,
    typer.Option(min=1, help="Frames that are sampled.", metavar="N", show_default="as many as in training"),
]
Start = Annotated[
    float | None, typer.Option(min=0, help="Where the clip starts in the video.", metavar="SECONDS", show_default="0")
]
End = Annotated[
    float | None,
    typer.Option(min=0, help="Where the clip ends.", metavar="SECONDS", show_default="the end of the video"),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Length limit of an answer, in tokens.", metavar="N")]

AS_SAMPLED = {"do_sample_frames": False, "do_resize": False}  # `processor_kwargs` for the frames of `sample_frames`


def sample_frames(
    processor: "PllavaProcessor", video: str, num_frames: int | None, start: float | None, end: float | None
) -> "np.ndarray":
    """Return the frames that the model sees, resized, `(frames, height, width, 3)` uint8."""
    frames = processor.video_processor(
        {"video": video, "start": start, "end": end},
        num_frames=num_frames,
        return_tensors="pt",
        do_center_crop=False,
        do_rescale=False,
        do_normalize=False,
    )
    return frames["pixel_values_videos"][0].permute(0, 2, 3, 1).numpy()
