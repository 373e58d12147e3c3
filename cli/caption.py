"""`pllava caption`: captions for many videos, batch by batch, into a JSON Lines file that a later run goes on with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import MaxNewTokens, NumFrames, load_pipeline, sampled_frames, takes_model

SUFFIXES = {
    ".mp4",
    ".webm",
    ".mkv",
    ".avi",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".flv",
    ".wmv",
    ".gif",
    ".3gp",
    ".ogv",
}


@takes_model(load_pipeline)
def caption(
    load: Callable[[], Any],
    paths: Annotated[list[str], typer.Argument(help="Videos, and folders that are searched for videos.")],
    out: Annotated[Path, typer.Option(help="Written as it goes; videos that it has a caption for are skipped.")],
    prompt: Annotated[str, typer.Option(help="What the model is asked about each video.")] = "Describe the video.",
    batch_size: Annotated[int, typer.Option(min=1, help="Videos captioned together.")] = 8,
    num_frames: NumFrames = None,
    max_new_tokens: MaxNewTokens = 256,
) -> None:
    """Caption videos: lines of {"video", "caption"}, or {"video", "error"} where one cannot be read."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from pllava.files import open_to_append, read_lines, to_lines

    videos = list(dict.fromkeys(_find_videos(paths)))
    known = {row["video"]: row for row in read_lines(out)}
    todo = [video for video in videos if "caption" not in known.get(video, {})]
    failed = 0
    if todo:
        pipe = load()
        decoded = DataLoader(
            _DecodedVideos(todo, pipe.processor, num_frames), batch_size=batch_size, num_workers=1, collate_fn=list
        )
        with open_to_append(out) as lines, tqdm(total=len(todo), desc="Captioning", unit="video") as bar:
            for batch in decoded:
                rows = _caption_batch(pipe, batch, prompt, max_new_tokens)
                lines.write(to_lines(row for row in rows if known.get(row["video"]) != row))  # an error is noted once
                lines.flush()
                failed += sum("error" in row for row in rows)
                bar.update(len(batch))
                bar.set_postfix(failed=failed)
    typer.echo(
        f"{len(todo) - failed} captioned, {len(videos) - len(todo)} done before, {failed} failed"
        + (f' (see the lines with "error" in {out})' if failed else "")
    )
    if failed:
        raise typer.Exit(1)


class _DecodedVideos:
    """Decodes in the loader's worker, while the model captions the batch before; an error comes as its text."""

    def __init__(self, videos: list[str], processor: Any, num_frames: int | None):
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


def _caption_batch(pipe: Any, batch: list[tuple[str, Any]], prompt: str, max_new_tokens: int) -> list[dict[str, str]]:
    """The lines for a batch of videos with their frames, or with what is wrong with them."""
    rows = [{"video": video, "error": error} for video, error in batch if isinstance(error, str)]
    readable = [(video, frames) for video, frames in batch if not isinstance(frames, str)]
    if not readable:
        return rows
    answers = pipe(
        [frames for _, frames in readable],
        text=prompt,
        batch_size=len(readable),
        max_new_tokens=max_new_tokens,
        generate_kwargs={"do_sample": False},
        processor_kwargs={"do_sample_frames": False},
    )
    for (video, _), answer in zip(readable, answers, strict=True):
        rows.append({"video": video, "caption": answer[0]["generated_text"].strip()})
    return rows


def _find_videos(paths: list[str]) -> Iterator[str]:
    for path in paths:
        if Path(path).is_dir():
            yield from sorted(str(file) for file in Path(path).rglob("*") if file.suffix.lower() in SUFFIXES)
        else:
            yield path
