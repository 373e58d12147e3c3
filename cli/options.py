"""The options that commands share, and the model that they name."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from pllava import PllavaProcessor, VideoTextToTextPipeline

NumFrames = Annotated[
    int | None, typer.Option(min=1, help="Frames to sample from the video; the model's own number by default.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Length limit of an answer, in tokens.")]


AS_SAMPLED = {"do_sample_frames": False, "do_resize": False}  # how a processor is to take `sampled_frames`


def load_checkpoint(
    model: Annotated[
        str | None,
        typer.Option(
            help="Directory or Hub id of a PLLaVA; 'nano' is the small one that ships with the package.",
            show_default="nano, or the base of --adapter",
        ),
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Directory or Hub id of a PEFT adapter.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Strength of the adapter: W = W0 + alpha / r * B A; its own by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as the checkpoint was saved.")] = (
        "auto"
    ),
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default a GPU if there is one.")
    ] = None,
    device_map: Annotated[
        str | None, typer.Option(help="auto: spread a large model over all GPUs, the memory and the disk.")
    ] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Quantise with bitsandbytes.")] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Quantise with bitsandbytes.")] = False,
    check: Annotated[
        bool, typer.Option(help="Assert that the model sees its video, and that the adapter has an effect.")
    ] = True,
) -> "tuple[PreTrainedModel, PllavaProcessor]":
    """The model where it is to run, and its processor; what is wrong with the options is said without a traceback."""
    import torch
    from accelerate import PartialState
    from transformers import AutoProcessor
    from transformers.utils import logging

    import pllava

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        message = f"{dtype!r} is not a dtype of torch; try float32, bfloat16 or float16"
        raise typer.BadParameter(message, param_hint="--dtype")
    quantization = asked_quantization(load_in_4bit, load_in_8bit)
    if device and device_map:
        raise typer.BadParameter("Choose one of --device and --device-map")
    if device_map is None and device is not None and quantization:
        device, device_map = None, device  # what is quantised is loaded where it will be, and cannot be moved
    logging.disable_progress_bar()
    with _blamed_on_options(adapter):
        loaded = pllava.load_model(
            named_model(model, adapter),
            adapter,
            alpha,
            check,
            dtype=dtype,
            device_map=device_map,
            quantization_config=quantization,
        )
        processor = AutoProcessor.from_pretrained(loaded.name_or_path)
    if device_map is None and not quantization:
        loaded.to(device or PartialState().device)  # of this process, where several run
    return loaded, processor


def asked_quantization(load_in_4bit: bool, load_in_8bit: bool) -> "BitsAndBytesConfig | None":
    """What these options of `load_checkpoint` make of the model."""
    import pllava

    if load_in_4bit and load_in_8bit:
        raise typer.BadParameter("Choose one of --load-in-4bit and --load-in-8bit")
    return pllava.quantization_config(4 if load_in_4bit else 8) if load_in_4bit or load_in_8bit else None


def describe_checkpoint(
    model: str | None,
    adapter: str | None,
    alpha: float | None,
    dtype: str,
    load_in_4bit: bool,
    load_in_8bit: bool,
    **options: Any,
) -> "tuple[dict[str, Any], PllavaProcessor]":
    """What `load_checkpoint` gives for the same options: which model (see `Checkpoint`), and its processor."""
    from dataclasses import asdict

    from transformers import AutoProcessor

    from pllava.loading import Checkpoint

    quantization = asked_quantization(load_in_4bit, load_in_8bit)
    with _blamed_on_options(adapter):
        described = asdict(Checkpoint.read(named_model(model, adapter), adapter, alpha, dtype, quantization))
        return described, AutoProcessor.from_pretrained(described["model"])


def named_model(model: str | None, adapter: str | None) -> str | None:
    """The directory or Hub id of the model that these options name; None for the base of the adapter."""
    import pllava

    return None if model is None and adapter else pllava.model_path(model or "nano")


@contextmanager
def _blamed_on_options(adapter: str | None) -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--adapter" if adapter else "--model") from error


def load_pipeline(**options: Any) -> "VideoTextToTextPipeline":
    """The model of these options in its pipeline."""
    from transformers import pipeline

    model, processor = load_checkpoint(**options)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # pipelines know no PEFT class
    device = {} if getattr(plain, "hf_device_map", None) else {"device": plain.device}
    return pipeline("video-text-to-text", plain, processor=processor, **device)


def takes_model(load: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Gives a command the options of `load_checkpoint`; its first argument is `load`, to be called with any of them that
    it wants to change. A command that names one of the options itself gets its value as well.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(command).parameters.values()
        names = {parameter.name for parameter in own}
        shared = inspect.signature(load_checkpoint).parameters

        @functools.wraps(command)
        def run(**values: Any) -> None:
            options = {name: values[name] for name in shared}
            return command(
                functools.partial(load, **options),
                **{name: value for name, value in values.items() if name in names},
            )

        added = [parameter for name, parameter in shared.items() if name not in names]
        run.__signature__ = inspect.Signature([*own, *added])
        run.__annotations__ = {each.name: each.annotation for each in run.__signature__.parameters.values()}
        return run

    return decorate


def sampled_frames(processor: "PllavaProcessor", video: str, num_frames: int | None) -> "np.ndarray":
    """The frames of `video` that the model will see, resized, `(frames, height, width, 3)` uint8: see `AS_SAMPLED`."""
    plain = {"do_center_crop": False, "do_rescale": False, "do_normalize": False}
    frames = processor.video_processor(video, num_frames=num_frames, return_tensors="pt", **plain)
    return frames["pixel_values_videos"][0].permute(0, 2, 3, 1).numpy()


@contextmanager
def said_without_traceback(extra: str | None = None) -> Iterator[None]:
    """What is wrong with data, model or Hub is said in a line. `extra` has what the command needs to be installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        from pllava.extras import name_extra

        message = name_extra(error, extra)
    except (OSError, RuntimeError, ValueError) as error:
        message = str(error)
    else:
        return
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)
