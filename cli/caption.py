"""`pllava caption`: captions for many videos, batch by batch, into a JSON Lines file that a later run goes on with."""

import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    AS_SAMPLED,
    MaxNewTokens,
    NumFrames,
    describe_checkpoint,
    load_pipeline,
    said_without_traceback,
    sampled_frames,
    takes_model,
)

NAMES = {"model", "adapter"}  # of a request: their revisions tell whether another name is another model


@takes_model(load_pipeline)
def caption(
    load: Callable[[], Any],
    paths: Annotated[
        list[str],
        typer.Argument(help="Videos, folders of frames, and folders that are searched for both."),
    ],
    out: Annotated[Path, typer.Option(help="Written as it goes; videos that it has a caption for are skipped.")],
    prompt: Annotated[str, typer.Option(help="What the model is asked about each video.")] = "Describe the video.",
    batch_size: Annotated[int, typer.Option(min=1, help="Videos captioned together.")] = 8,
    num_frames: NumFrames = None,
    max_new_tokens: MaxNewTokens = 256,
) -> None:
    """
    Caption videos: a line for each, with "video", its absolute "path", "caption", and what it was made with (prompt,
    model, frames), or with the "error" if it cannot be read. A file takes captions made in one way: asked for another
    prompt, model or choice of frames, the command refuses.
    """
    with said_without_traceback():
        from pllava.files import locked, read_lines

        videos = {_place(_named(video)): video for video in chain.from_iterable(map(_find_videos, paths))}
        model, processor = describe_checkpoint(**load.keywords)
        request = {
            "prompt": prompt,
            **model,
            "num_frames": num_frames or processor.num_frames,
            "sampling": processor.video_processor.sampling,
            "pooling_shape": processor.pooling_shape,
            "max_new_tokens": max_new_tokens,
        }
        with locked(out):
            known = _index(read_lines(out), request, out)
            todo = [video for place, video in videos.items() if "caption" not in known.get(place, {})]
            failed = _caption_videos(load(), todo, known, request, out, batch_size) if todo else 0
    typer.echo(
        f"{len(todo) - failed} captioned, {len(videos) - len(todo)} done before, {failed} failed"
        + (f' (see the lines with "error" in {out})' if failed else "")
    )
    if failed:
        raise typer.Exit(1)


# --- what is asked for, and what of it is there ----------------------------------------------------------------------


def _find_videos(path: str) -> list[str]:
    """
    The videos at `path`: itself if it is no folder.

    Raises:
        ValueError: if it is a folder without any.
    """
    found = _search(Path(path)) if os.path.isdir(path) else [path]
    if not found:
        raise ValueError(f"no videos in {path}")
    return found


def _search(folder: Path) -> list[str]:
    """The video files in a folder and in those inside; a folder of images is one video if none is below it."""
    from pllava.files import VIDEO_SUFFIXES
    from pllava.video_decoding_pllava import IMAGE_SUFFIXES

    found, holds_images = [], False
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found += [] if path.is_symlink() else _search(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            found.append(str(path))
        holds_images |= path.suffix.lower() in IMAGE_SUFFIXES
    return found or ([str(folder)] if holds_images else [])


def _index(rows: list[dict[str, Any]], request: dict[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    """
    The newest row of each video, by its place.

    Raises:
        ValueError: if a caption was made with something else than is requested, or a row is none of this command's.
    """
    for row in rows:
        if not isinstance(row.get("video"), str):
            raise ValueError(f'{out} holds a line without a "video", so no captions: name another --out')
        other = [name for name in request.keys() - NAMES if row.get(name) != request[name]] if "caption" in row else []
        if other:
            was, now = ({name: values.get(name) for name in sorted(other)} for values in (row, request))
            raise ValueError(f"{out} has captions made with {was}, and not with {now}: name another --out")
    return {_place(row): row for row in rows}


def _place(row: dict[str, str]) -> str:
    """What is the same however a video was named: where its file is, or its address."""
    return row.get("path", row["video"])


# --- captioning ------------------------------------------------------------------------------------------------------


def _caption_videos(
    pipe: Any, videos: list[str], known: dict[str, dict[str, Any]], request: dict[str, Any], out: Path, batch_size: int
) -> int:
    """Appends rows, batch by batch, but for those that are known; returns how many videos could not be read."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from pllava.files import open_to_append, to_lines
    from pllava.workers import end_with_parent

    decoded = DataLoader(
        _DecodedVideos(videos, pipe.processor, request["num_frames"]),
        batch_size=batch_size,
        num_workers=1,
        collate_fn=list,
        worker_init_fn=end_with_parent,
    )
    failed = 0
    with open_to_append(out) as lines, tqdm(total=len(videos), desc="Captioning", unit="video") as bar:
        for batch in decoded:
            rows = _caption_batch(pipe, batch, request)
            lines.write(to_lines(row for row in rows if known.get(_place(row)) != row))
            lines.flush()
            failed += sum("error" in row for row in rows)
            bar.update(len(batch))
            bar.set_postfix(failed=failed)
    return failed


class _DecodedVideos:
    """Decodes in the loader's worker, while the model captions the batch before; an error comes as its text."""

    def __init__(self, videos: list[str], processor: Any, num_frames: int):
        self.videos, self.processor, self.num_frames = videos, processor, num_frames

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[str, Any]:
        from pllava.video_decoding_pllava import VideoDecodeError

        video = self.videos[index]
        try:
            return video, sampled_frames(self.processor, video, self.num_frames)
        except VideoDecodeError as error:
            return video, str(error)


def _caption_batch(pipe: Any, batch: list[tuple[str, Any]], request: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows for a batch of videos with their frames, or with what is wrong with them."""
    rows = [{**_named(video), "error": error} for video, error in batch if isinstance(error, str)]
    readable = [(video, frames) for video, frames in batch if not isinstance(frames, str)]
    if not readable:
        return rows
    answers = pipe(
        [frames for _, frames in readable],
        text=request["prompt"],
        batch_size=len(readable),
        max_new_tokens=request["max_new_tokens"],
        generate_kwargs={"do_sample": False},
        processor_kwargs=AS_SAMPLED,
    )
    for (video, _), answer in zip(readable, answers, strict=True):
        rows.append({**_named(video), "caption": answer[0]["generated_text"].strip(), **request})
    return rows


def _named(video: str) -> dict[str, str]:
    """A video as it was given, and where a file is found from any folder."""
    from pllava.video_source_pllava import is_address

    return {"video": video} if is_address(video) else {"video": video, "path": os.path.abspath(video)}
