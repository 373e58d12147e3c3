"""`pllava caption`: captions for many videos, each made once, in a file that a later run continues."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .program import UsageError, refuse_passed

if TYPE_CHECKING:
    from pllava import PllavaProcessor
    from pllava.caption import CaptionStore, LocalCaptioner, Row, Split
    from pllava.data.publishing.captions import CaptionPush

# What an --endpoint decides itself, or does not tell
LOCAL = {"num_frames", "batch_size", "retry_flagged", "near_duplicates", *options.OF_LOCAL_MODELS}
OF_THIS_MACHINE = {"workers", "device", "device_map"}
SUFFIXES = (".jsonl", ".parquet", ".csv")
PROMPT = "Describe the video."

hub_option = partial(typer.Option, rich_help_panel="Hub")
part_option = partial(typer.Option, rich_help_panel="Parts of videos")
cluster_option = partial(typer.Option, rich_help_panel="Cluster")
check_option = partial(typer.Option, rich_help_panel="Quality")


def caption(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Videos, folders of frames, folders that are searched for both, lists (.jsonl, .csv, .parquet) and "
            "datasets on the Hub (hf://datasets/USER/NAME) with columns video, prompt, start, end.",
            metavar="PATHS",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The JSON Lines file; what has a caption there is skipped. A .parquet or .csv is written at the end, "
            "from the .jsonl beside it.",
            metavar="FILE",
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="The question about each video. Repeat the option for several captions of each.",
            metavar="TEXT",
            show_default=PROMPT,
        ),
    ] = None,
    start: options.Start = None,
    end: options.End = None,
    num_frames: options.NumFrames = None,
    window: Annotated[
        float | None, part_option(min=0.1, help="Caption windows of this length.", metavar="SECONDS")
    ] = None,
    stride: Annotated[
        float | None,
        part_option(min=0.1, help="From one window to the next.", metavar="SECONDS", show_default="--window"),
    ] = None,
    scenes: Annotated[bool, part_option("--scenes", help="Caption scenes, found by PySceneDetect.")] = False,
    allowed_media_domains: options.AllowedMediaDomains = ["*"],  # noqa: B006 (typer copies it)
    max_new_tokens: options.MaxNewTokens = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Captions generated together.", metavar="N")] = 8,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that decode.", metavar="N", show_default="the cores but one, at most 8"),
    ] = None,
    endpoint: options.Endpoint = None,
    concurrency: options.Concurrency = 8,
    ray: Annotated[
        str | None,
        cluster_option(
            help="Caption on a Ray cluster: auto, or its HOST:PORT, on a machine of the cluster; local starts one on "
            "this machine.",
            metavar="ADDRESS",
        ),
    ] = None,
    actors: Annotated[
        int | None,
        cluster_option(min=1, help="Models on the cluster.", metavar="N", show_default="its GPUs, or 1"),
    ] = None,
    retry_flagged: Annotated[
        bool,
        check_option(
            "--retry-flagged",
            help="Make captions that are empty, cut off or repetitive once more: with a repetition penalty, and up to "
            "twice as long.",
        ),
    ] = False,
    near_duplicates: Annotated[
        bool,
        check_option("--near-duplicates", help="Add to each caption the clip that looks most alike to the model."),
    ] = False,
    push: Annotated[
        str | None,
        hub_option(help="Add the captions of the file to this dataset on the Hub.", metavar="USER/NAME"),
    ] = None,
    push_clips: Annotated[bool, hub_option("--push-clips", help="Upload the clips in the rows.")] = False,
    private: Annotated[bool, hub_option("--private", help="Create a new dataset as a private one.")] = False,
    license: Annotated[str | None, hub_option(help="The license of the videos, for the card.", metavar="NAME")] = None,
) -> None:
    """
    Caption videos into a file that a later run continues.

    A caption is known by the content of its clip, the prompt, the model and the frames, and is made once.
    A clip that cannot be read gets a line with the "error".
    `accelerate launch -m pllava.caption` shares the work among GPUs.
    """
    from pllava.caption import (
        CaptionStore,
        ClusterModel,
        Decode,
        Job,
        LocalModel,
        ServedModel,
        caption_clips,
        default_workers,
        find_clips,
        hold,
    )
    from pllava.distributed import join_processes
    from pllava.files import replace_file
    from pllava.media.batch import gate_for

    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: captions are written to a file that ends in {', '.join(SUFFIXES)}")
    if not push and (push_clips or private or license):
        raise UsageError("--push-clips, --private and --license are about a dataset on the Hub: name it with --push")
    publish_captions = _find_publisher(push) if push else None
    model: options.ModelOptions = context.obj
    _check_cluster(context, ray, endpoint)
    split, prompts = _find_split(window, stride, scenes, out), prompt or [PROMPT]
    clips = find_clips(paths, prompts, (start, end))
    gate = gate_for(paths, allowed_media_domains, others=clips.total is None)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if endpoint:
        refuse_passed(context, LOCAL, options.NO_EFFECT_ON_ENDPOINT)
        settings |= {"model": model.model, "served": True}
        source = ServedModel(options.chat_server(model.model, endpoint, concurrency), settings, gate)
    else:
        refuse_passed(context, {"concurrency"}, "There is no --endpoint")
        checkpoint, processor = model.read(num_frames)
        num_frames = num_frames or processor.num_frames
        sampling = processor.video_processor.sampling
        settings |= {**asdict(checkpoint), "num_frames": num_frames, "sampling": sampling}
        load = partial(_load, model, processor, settings, batch_size, retry_flagged, near_duplicates)
        decode = Decode(processor, num_frames, gate)
        source = ClusterModel(load, decode, ray, actors) if ray else LocalModel(load, decode)
    lines, is_main = out.with_suffix(".jsonl"), join_processes().is_main_process
    with hold(lines):
        store = CaptionStore(lines, settings, join_processes().process_index, retry_flagged)
        report = caption_clips(Job(clips, store, clips.total, split, batch_size, workers or default_workers()), source)
        rows = _finish(store, out, near_duplicates, bool(push)) if is_main else []
    if not is_main:
        return
    replace_file(lines.with_suffix(".report.json"), json.dumps(report.to_dict(), indent=2) + "\n")
    typer.echo(report.summary() + (f' (see the lines with "error" in {lines})' if report.failed else ""))
    for line in report.lines():
        typer.echo(line)
    if push:
        _report_push(publish_captions(rows, push, push_clips, private, license))
    if report.failed and not _is_launched():
        raise typer.Exit(1)


def _find_split(window: float | None, stride: float | None, scenes: bool, out: Path) -> "Split | None":
    """Return what splits videos into parts, or None."""
    from pllava.caption import Scenes, Windows
    from pllava.distributed import join_processes

    if stride and not window:
        raise UsageError("--stride is from one window to the next: give their length with --window")
    if scenes and window:
        raise UsageError("Choose one of --scenes and --window")
    if scenes:
        return Scenes(out, join_processes().process_index)
    return Windows(window, stride or window) if window else None


def _check_cluster(context: typer.Context, ray: str | None, endpoint: str | None) -> None:
    """Refuse options that do not go with --ray, or that need it."""
    from pllava.distributed import join_processes

    if not ray:
        refuse_passed(context, {"actors"}, "There is no --ray")
        return
    if endpoint:
        raise UsageError("Choose one of --ray and --endpoint")
    refuse_passed(context, OF_THIS_MACHINE, "Ray decides how many clips are decoded at a time, and where models run")
    if join_processes().num_processes > 1:
        raise UsageError("Ray starts the processes of --ray: run the command itself, without a launcher")


def _load(
    model: options.ModelOptions,
    processor: "PllavaProcessor",
    settings: dict[str, Any],
    batch_size: int,
    retry_flagged: bool,
    near_duplicates: bool,
) -> "LocalCaptioner":
    from pllava.caption import LocalCaptioner

    return LocalCaptioner(model.load(processor), processor, settings, batch_size, retry_flagged, near_duplicates)


def _finish(store: "CaptionStore", out: Path, near_duplicates: bool, with_rows: bool) -> list["Row"]:
    """Merge the files of all processes, and write the table. Returns the rows, if they are wanted."""
    from pllava.caption import finish
    from pllava.caption.export import write_table

    if without := finish(store, near_duplicates):
        typer.echo(f"{without} clips were captioned without --near-duplicates, and are compared with no others")
    if out.suffix != ".jsonl":
        write_table(store.rows(), out)
    return list(store.rows()) if with_rows else []


def _is_launched() -> bool:
    """Whether a launcher waits for this process: it would answer an exit code with a traceback."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


# --- the dataset on the Hub ------------------------------------------------------------------------------------------


def _find_publisher(repo_id: str) -> "Callable[..., CaptionPush]":
    """Import what a push needs, and check the dataset's name: before work that takes long."""
    from huggingface_hub.utils import validate_repo_id

    from pllava.extras import needs_extra

    with needs_extra("train"):
        from pllava.data.publishing import publish_captions

    validate_repo_id(repo_id)
    return publish_captions


def _report_push(push: "CaptionPush") -> None:
    for video, reason in push.left_out.items():
        typer.echo(f"left out: {video}: {reason}")
    if push.addresses:
        typer.echo(f"{push.addresses} clips are URLs: their rows have the URL, not the clip")
    typer.echo(
        f"{push.repo_id}: {push.added} captions added, {push.present} were there before, {push.failed} without a "
        f"caption, {len(push.left_out)} left out; {push.bytes / 1e6:.2f} MB in {push.shards} shards"
    )
