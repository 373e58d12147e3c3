"""`pllava caption`: captions for many videos, batch by batch, in a JSON Lines file that a later run continues."""

import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .options import AS_SAMPLED, sample_frames
from .program import UsageError

if TYPE_CHECKING:
    import numpy as np

    from pllava import PllavaProcessor, VideoTextToTextPipeline
    from pllava.data.publishing.captions import CaptionPush
    from pllava.media import MediaGate

Row = dict[str, Any]  # a line of the output file

NAMES = {"model", "adapter"}  # in a request: two names are the same model if their revisions are equal
BOUNDS = {"start", "end"}  # in a request only if they are given
hub_option = partial(typer.Option, rich_help_panel="Hub")


def caption(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(help="Videos, folders of frames, and folders that are searched for both.", metavar="PATHS"),
    ],
    out: Annotated[
        Path,
        typer.Option(help="The JSON Lines file; videos that have a caption there are skipped.", metavar="FILE.jsonl"),
    ],
    prompt: Annotated[
        str, typer.Option(help="The question about each video.", metavar="TEXT")
    ] = "Describe the video.",
    start: options.Start = None,
    end: options.End = None,
    num_frames: options.NumFrames = None,
    allowed_media_domains: options.AllowedMediaDomains = ["*"],  # noqa: B006 (typer copies it)
    max_new_tokens: options.MaxNewTokens = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos captioned together.", metavar="N")] = 8,
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

    A line has "video", its absolute "path" and "sha256", "caption", how it was made (prompt, model, frames...) and the
    "time"; or the "error" if the video cannot be read. All captions of a file are made in the same way.
    """
    from pllava.files import locked, read_lines
    from pllava.media.batch import gate_for

    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out}: captions are written as JSON Lines; name a file that ends in .jsonl")
    if not push and (push_clips or private or license):
        raise UsageError("--push-clips, --private and --license are about a dataset on the Hub: name it with --push")
    publish_captions = _find_publisher(push) if push else None
    model: options.ModelOptions = context.obj
    videos = {_identity(_name(video)): video for video in chain.from_iterable(map(_find_videos, paths))}
    gate = gate_for(videos.values(), allowed_media_domains)
    checkpoint, processor = model.read()
    request = {
        "prompt": prompt,
        **asdict(checkpoint),
        "num_frames": num_frames or processor.num_frames,
        "sampling": processor.video_processor.sampling,
        "pooling_shape": processor.pooling_shape,
        "max_new_tokens": max_new_tokens,
        **{name: value for name, value in {"start": start, "end": end}.items() if value is not None},
    }
    with locked(out):
        known = _known_rows(read_lines(out), request, out)
        todo = [video for identity, video in videos.items() if "caption" not in known.get(identity, {})]
        failed = 0
        if todo:
            pipe = model.load_pipeline(processor)
            failed = _caption_videos(pipe, todo, known, request, gate, out, batch_size)
        rows = list(_known_rows(read_lines(out), request, out).values()) if push else []
    typer.echo(
        f"{len(todo) - failed} captioned, {len(videos) - len(todo)} done before, {failed} failed"
        + (f' (see the lines with "error" in {out})' if failed else "")
    )
    if push:
        _report_push(publish_captions(rows, push, push_clips, private, license))
    if failed:
        raise typer.Exit(1)


# --- the videos, and which of them have a caption --------------------------------------------------------------------


def _find_videos(path: str) -> list[str]:
    """
    Return the videos in a folder, or the path itself if it is not a folder.

    Raises:
        ValueError: if there are none.
    """
    videos = _search(Path(path)) if os.path.isdir(path) else [path]
    if not videos:
        raise ValueError(f"no videos in {path}")
    return videos


def _search(folder: Path) -> list[str]:
    """Search a folder recursively; a folder of images is a video if there are no videos below it."""
    from pllava.files import VIDEO_SUFFIXES
    from pllava.video_images_pllava import IMAGE_SUFFIXES

    videos, has_images = [], False
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            videos += [] if path.is_symlink() else _search(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            videos.append(str(path))
        has_images |= path.suffix.lower() in IMAGE_SUFFIXES
    return videos or ([str(folder)] if has_images else [])


def _name(video: str) -> Row:
    """Return the beginning of a video's row: its name as it was passed, and a file's absolute path."""
    from pllava.video_source_pllava import is_address

    return {"video": video} if is_address(video) else {"video": video, "path": os.path.abspath(video)}


def _identity(row: Row) -> str:
    """Return what is the same for all names of a video: its absolute path, or its URL."""
    return row.get("path", row["video"])


def _known_rows(rows: list[Row], request: Row, out: Path) -> dict[str, Row]:
    """
    Return the last row of each video by its identity.

    Raises:
        ValueError: if a caption was made in another way than is requested, or a row has no video.
    """
    for row in rows:
        if not isinstance(row.get("video"), str):
            raise ValueError(f'{out} has a line without a "video", so it is not of this command: name another --out')
        if "caption" in row:
            compared = (request.keys() | BOUNDS) - NAMES
            different = sorted(name for name in compared if row.get(name) != request.get(name))
            if different:
                old, new = ({name: values.get(name) for name in different} for values in (row, request))
                raise ValueError(f"{out} has captions made with {old}, not with {new}: name another --out")
    return {_identity(row): row for row in rows}


# --- captioning ------------------------------------------------------------------------------------------------------


def _caption_videos(
    pipe: "VideoTextToTextPipeline",
    videos: list[str],
    known: dict[str, Row],
    request: Row,
    gate: "MediaGate | None",
    out: Path,
    batch_size: int,
) -> int:
    """Append the rows that are not known, batch by batch; return how many videos could not be read."""
    from tqdm import tqdm

    from pllava.files import open_to_append, to_lines
    from pllava.workers import DECODE_TIMEOUT, ordered_map

    decode = partial(_decode, pipe.processor, request, gate)
    decoded = ordered_map(decode, videos, 1, 2 * batch_size, DECODE_TIMEOUT, _lost)
    failed = 0
    with open_to_append(out) as lines, tqdm(total=len(videos), desc="Captioning", unit="video") as bar:
        while batch := list(islice(decoded, batch_size)):
            rows = _caption_batch(pipe, batch, request)
            lines.write(to_lines(row for row in rows if known.get(_identity(row)) != row))
            lines.flush()
            failed += sum("error" in row for row in rows)
            bar.update(len(batch))
            bar.set_postfix(failed=failed)
    return failed


def _decode(
    processor: "PllavaProcessor", request: Row, gate: "MediaGate | None", video: str
) -> "tuple[Row, np.ndarray | str]":
    """Return the beginning of a video's row with its hash, and its frames, or the error if it cannot be read."""
    from pllava.data.media import content_hash, find_medium
    from pllava.media import MediaRefused
    from pllava.media.batch import is_remote
    from pllava.video_source_pllava import VideoDecodeError

    clip = request["num_frames"], request.get("start"), request.get("end")
    try:
        if is_remote(video):
            frames, _ = gate.load_video(video, processor.video_processor, *clip)
        else:
            frames = sample_frames(processor, video, *clip)
        return {**_name(video), "sha256": content_hash(find_medium(video))}, frames
    except (OSError, MediaRefused, VideoDecodeError) as error:
        return _name(video), str(error)


def _lost(video: str, reason: str) -> tuple[Row, str]:
    return _name(video), f"Cannot decode {video}: {reason}"


def _caption_batch(
    pipe: "VideoTextToTextPipeline", batch: "list[tuple[Row, np.ndarray | str]]", request: Row
) -> list[Row]:
    captions = iter(_generate(pipe, [decoded for _, decoded in batch if not isinstance(decoded, str)], request))
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        {**row, "error": decoded}
        if isinstance(decoded, str)
        else {**row, "caption": next(captions), **request, "time": time}
        for row, decoded in batch
    ]


def _generate(pipe: "VideoTextToTextPipeline", videos: "list[np.ndarray]", request: Row) -> list[str]:
    if not videos:
        return []
    answers = pipe(
        videos,
        text=request["prompt"],
        batch_size=len(videos),
        max_new_tokens=request["max_new_tokens"],
        generate_kwargs={"do_sample": False},
        processor_kwargs=AS_SAMPLED,
    )
    return [answer[0]["generated_text"].strip() for answer in answers]


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
