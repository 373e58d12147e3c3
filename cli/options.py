"""The options that commands share: which model is loaded and how, and which frames of a clip it sees."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .program import UsageError

if TYPE_CHECKING:
    import numpy as np
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from pllava import PllavaProcessor
    from pllava.eval import ChatServer
    from pllava.loading import Checkpoint

PANEL = "Model"  # the heading of these options in the help
option = partial(typer.Option, rich_help_panel=PANEL)

Model = Annotated[
    str | None,
    option(
        help="Directory or Hub id of a PLLaVA; nano is the small one in the package.",
        metavar="NAME",
        show_default="nano, or the base of --adapter",
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        help="Directory or Hub id of a PLLaVA; nano is the small one in the package.",
        metavar="MODEL",
        show_default="nano, or the base of --adapter",
    ),
]
Revision = Annotated[
    str | None,
    option(
        help="Branch, tag or commit of the model on the Hub.",
        metavar="NAME",
        show_default="main, or the one that --adapter was trained on",
    ),
]
Adapter = Annotated[
    str | None,
    option(help="Directory or Hub id of a PEFT adapter; on the Hub also ORG/NAME@REVISION/FOLDER.", metavar="NAME"),
]
Alpha = Annotated[
    float | None,
    option(help="Strength of the adapter: W = W0 + alpha / r * B A.", metavar="NUMBER", show_default="its own"),
]
Dtype = Annotated[
    str,
    option(
        help="float32, bfloat16, float16, or auto: as the checkpoint was saved; without a GPU bfloat16 for float16.",
        metavar="NAME",
    ),
]
Device = Annotated[
    str | None, option(help="cpu, cuda, cuda:1, mps.", metavar="NAME", show_default="a GPU if there is one")
]
DeviceMap = Annotated[
    str | None,
    option(help="auto: spread a large model over all GPUs, the CPU's memory and the disk.", metavar="NAME"),
]
LoadIn4Bit = Annotated[bool, option("--load-in-4bit", help="Quantise with bitsandbytes to NF4.")]
LoadIn8Bit = Annotated[bool, option("--load-in-8bit", help="Quantise with bitsandbytes to 8 bits.")]
Pooling = Annotated[
    str | None,
    option(
        help="How a clip becomes fewer tokens: average, slowfast or merge; with a shape as in average-16x12x12 or "
        "slowfast-4x12x24+16x4x4.",
        metavar="NAME[-SHAPE]",
        show_default="as in training",
    ),
]
Check = Annotated[bool, option(help="Check that the answers depend on the video, and on the adapter.")]


@dataclass(frozen=True)
class ModelOptions:
    """The options that name a model and say how to load it. A [`ModelCommand`] has them."""

    model: Model = None
    revision: Revision = None
    adapter: Adapter = None
    alpha: Alpha = None
    dtype: Dtype = "auto"
    device: Device = None
    device_map: DeviceMap = None
    load_in_4bit: LoadIn4Bit = False
    load_in_8bit: LoadIn8Bit = False
    pooling: Pooling = None
    check: Check = True

    def validate(self) -> None:
        """
        Raises:
            UsageError: if the options contradict each other, or `dtype` is not one of torch.
        """
        import torch

        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise UsageError(f"--dtype {self.dtype} is not a dtype of torch; try float32, bfloat16 or float16")
        if self.alpha is not None and not self.adapter:
            raise UsageError("--alpha is the strength of an adapter: name one with --adapter, or convert with --alpha")
        if self.device and self.device_map:
            raise UsageError("Choose one of --device and --device-map")
        if self.load_in_4bit and self.load_in_8bit:
            raise UsageError("Choose one of --load-in-4bit and --load-in-8bit")

    @property
    def path(self) -> str | None:
        """The directory or Hub id of the model; None for the base of the adapter."""
        import pllava

        return None if self.model is None and self.adapter else pllava.model_path(self.model or "nano")

    @property
    def quantization(self) -> "BitsAndBytesConfig | None":
        import pllava

        if self.load_in_4bit or self.load_in_8bit:
            return pllava.quantization_config(4 if self.load_in_4bit else 8)
        return None

    def read(self, num_frames: int | None = None) -> "tuple[Checkpoint, PllavaProcessor]":
        """
        Read which model it is, and its processor, without loading weights.

        Args:
            num_frames: Frames of a clip, for the preset shape of `pooling` and for the limits of a shape.

        Raises:
            UsageError: as [`validate`].
            OSError, ValueError: as [`Checkpoint.read`].
        """
        self.validate()
        from transformers import AutoProcessor

        from pllava.loading import Checkpoint
        from pllava.pooling_pllava import parse_pooling

        checkpoint = Checkpoint.read(
            self.path, self.adapter, self.alpha, self.dtype, self.quantization, self.revision, self.pooling, num_frames
        )
        commit = None if os.path.isdir(checkpoint.model) else checkpoint.revision
        processor = AutoProcessor.from_pretrained(checkpoint.model, revision=commit)
        if self.pooling is not None:
            processor.video_pooling = parse_pooling(checkpoint.pooling)
            processor.video_processor.num_frames = num_frames or processor.num_frames
        return checkpoint, processor

    def load(self, processor: "PllavaProcessor") -> "PreTrainedModel":
        """Load the model to the device where it runs, with the pooling that `processor`, from [`read`], has."""
        from accelerate import PartialState

        import pllava
        from pllava.model_pooling import set_pooling

        device_map = self.device_map or (self.device if self.quantization else None)  # quantised models do not move
        with _bars_of_slow_loads():
            model = pllava.load_model(
                self.path,
                self.adapter,
                self.alpha,
                self.check,
                dtype=self.dtype,
                device_map=device_map,
                quantization_config=self.quantization,
                revision=self.revision,
            )
        if device_map is None and not self.quantization:
            model.to(self.device or PartialState().device)  # the device of this process, if there are several
        if self.pooling is not None:
            set_pooling(model, processor, processor.video_pooling)
        return model


@contextmanager
def _bars_of_slow_loads() -> Iterator[None]:
    """Delay transformers' progress bars, so that only those of large models appear."""
    from transformers.utils import logging

    from pllava.checkpoint_files import BAR_DELAY

    previous = logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{"delay": BAR_DELAY, **kwargs}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


class ModelCommand(TyperCommand):
    """
    A command that also has the options of [`ModelOptions`]. Its function finds them in `context.obj`. A function with
    the parameter `model`, a [`ModelArgument`], takes the model as an argument instead of an option.
    """

    def __init__(self, *args: Any, params: list[Any], **kwargs: Any):
        only_model = typer.Typer(add_completion=False)
        only_model.command()(ModelOptions)
        own = {param.name for param in params}
        shared = [param for param in typer.main.get_command(only_model).params if param.name not in own]
        super().__init__(*args, params=[*shared, *params], **kwargs)

    def invoke(self, ctx: typer.Context) -> Any:
        ctx.obj = ModelOptions(**{field.name: ctx.params.pop(field.name) for field in fields(ModelOptions)})
        return super().invoke(ctx)


# --- a model behind a server ---

Endpoint = Annotated[
    str | None,
    option(
        help="An OpenAI-compatible server that runs --model, such as http://localhost:8000/v1; several are separated "
        "by commas.",
        metavar="URL",
    ),
]
Concurrency = Annotated[int, option(min=1, help="Simultaneous requests to each server.", metavar="N")]

OF_LOCAL_MODELS = {field.name for field in fields(ModelOptions)} - {"model"}
NO_EFFECT_ON_ENDPOINT = "Options for a local model have no effect on an --endpoint"


def chat_server(model: str | None, url: str, concurrency: int) -> "ChatServer":
    """
    Return the client of an --endpoint.

    Raises:
        UsageError: if the model has no name.
    """
    from pllava.eval import ChatServer

    if model is None:
        raise UsageError(f"Name the model of {url}: --model")
    return ChatServer(model, url, concurrency)


# --- clips ---

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

MEDIA_PANEL = "Media"
AllowedMediaDomains = Annotated[
    list[str],
    typer.Option(
        help="A host from which media at http(s) addresses are fetched; HOST:PORT may be a private one, * is any "
        "public one. Repeat the option for several.",
        metavar="HOST",
        rich_help_panel=MEDIA_PANEL,
    ),
]
AllowedLocalMediaPath = Annotated[
    list[Path],
    typer.Option(
        help="A folder of this machine whose files others may name. Repeat the option for several.",
        metavar="DIR",
        show_default="none",
        rich_help_panel=MEDIA_PANEL,
    ),
]


def sample_frames(
    processor: "PllavaProcessor", video: str, num_frames: int | None, start: float | None, end: float | None
) -> "np.ndarray":
    """Return the frames that the model sees, resized, `(frames, height, width, 3)` uint8."""
    from pllava.media import decoding

    return decoding.sample_frames(processor.video_processor, video, num_frames, start, end)[0]
