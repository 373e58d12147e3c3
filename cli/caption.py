"""`pllava caption`: captions for many videos, in a JSON Lines file that a later run continues."""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import captioning, options
from .captioning import Row, name
from .program import UsageError, refuse_passed

if TYPE_CHECKING:
    from pllava.data.publishing.captions import CaptionPush

NAMES = {"model", "adapter"}  # in a request: two names are the same model if their revisions are equal
NOT_ALWAYS = {"start", "end", "served"}  # in a request only if they are given
LOCAL = {"num_frames", "batch_size", *options.OF_LOCAL_MODELS}  # what an --endpoint decides itself
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
    endpoint: options.Endpoint = None,
    concurrency: options.Concurrency = 8,
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
    videos = {_identity(name(video)): video for video in chain.from_iterable(map(_find_videos, paths))}
    gate = gate_for(videos.values(), allowed_media_domains)
    request = {"prompt": prompt, "max_new_tokens": max_new_tokens}
    request |= {bound: value for bound, value in {"start": start, "end": end}.items() if value is not None}
    if endpoint:
        refuse_passed(context, LOCAL, options.NO_EFFECT_ON_ENDPOINT)
        server = options.chat_server(model.model, endpoint, concurrency)
        request |= {"model": model.model, "served": True}
    else:
        refuse_passed(context, {"concurrency"}, "There is no --endpoint")
        checkpoint, processor = model.read(num_frames)
        request |= {
            **asdict(checkpoint),
            "num_frames": num_frames or processor.num_frames,
            "sampling": processor.video_processor.sampling,
        }
    with locked(out):
        known = _known_rows(read_lines(out), request, out)
        todo = [video for identity, video in videos.items() if "caption" not in known.get(identity, {})]
        failed = 0
        if todo and endpoint:
            failed = _write(captioning.served_captions(server, todo, request, gate), len(todo), known, out)
        elif todo:
            pipe = model.load_pipeline(processor)
            failed = _write(captioning.local_captions(pipe, todo, request, gate, batch_size), len(todo), known, out)
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
            compared = request.keys() | NOT_ALWAYS
            compared -= set() if "served" in request else NAMES
            different = sorted(key for key in compared if row.get(key) != request.get(key))
            if different:
                old, new = ({key: values.get(key) for key in different} for values in (row, request))
                raise ValueError(f"{out} has captions made with {old}, not with {new}: name another --out")
    return {_identity(row): row for row in rows}


def _write(batches: Iterable[list[Row]], total: int, known: dict[str, Row], out: Path) -> int:
    """Append the rows that are not known, batch by batch; return how many have no caption."""
    from tqdm import tqdm

    from pllava.files import open_to_append, to_lines

    failed = 0
    with open_to_append(out) as lines, tqdm(total=total, desc="Captioning", unit="video") as bar:
        for rows in batches:
            lines.write(to_lines(row for row in rows if known.get(_identity(row)) != row))
            lines.flush()
            failed += sum("error" in row for row in rows)
            bar.set_postfix(failed=failed, refresh=False)
            bar.update(len(rows))
    return failed


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
