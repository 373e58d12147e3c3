"""Exporting a gallery as a static site: the page, its data, the strips, and the clips if they are wanted."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..files import locked, replace_file
from ..video_source_pllava import VideoDecodeError
from ..workers import ordered_map
from .data import VARIABLE, Gallery, Played, read_results, write_script
from .frames import Strip, count_workers
from .videos import Video, write_video

SITE = Path(__file__).with_name("site")  # the built page
INDEX, DATA = "index.html", "data/gallery.js"
ENCODE_TIMEOUT = 3600  # seconds for a clip
OWN_FILES = re.compile(r"(frames|clips)/[0-9a-f]{2}/[0-9a-f]{64}\.(webp|mp4|webm)(\.\d+\.partial)?")


@dataclass(frozen=True)
class Export:
    """
    What an export wrote.

    Args:
        samples, runs, clips: Their numbers.
        files, size: The number of files, and their bytes.
        problems: What is wrong with clips, by their names.
    """

    samples: int
    runs: int
    clips: int
    files: int
    size: int
    problems: dict[str, str]


def export_gallery(
    results: Sequence[Path], folder: Path, clips: bool = False, chat: str | None = None, site: Path = SITE
) -> Export:
    """
    Write a static site that shows results. What an earlier export left in the folder is used again, and removed if the
    new one does not need it; other files are left alone.

    Args:
        results: Folders (see [`find_runs`]).
        folder: A new folder, an empty one, or one with an earlier export.
        clips: Write the clips, too, so that they can be played.
        chat: The address of a chat that the page links to.
        site: The built page.

    Raises:
        ValueError: if the folder has something else, the page is not built, there are no results, or those of a
            benchmark cannot be compared.
    """
    page = page_files(site)
    with locked(folder):
        _claim(folder)
        gallery = read_results(results, folder)
        played = _write_videos(gallery, folder) if clips else [Played()] * len(gallery.clips)
        script = gallery.describe(played, chat)
        for name, file in page.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            replace_file(folder / name, file.read_bytes())
        replace_file(folder / DATA, script)
        kept = {strip.frames["file"] for strip in gallery.strips if strip.frames}
        kept |= {each.address for each in played if each.address}
        _remove_others(folder, kept)
    written = [folder / name for name in {*page, DATA, *kept}]
    return Export(
        sum(len(each.samples) for each in gallery.shown),
        sum(len(each.runs) for each in gallery.shown),
        len({(clip.name, clip.start, clip.end) for clip in gallery.clips}),
        len(written),
        sum(file.stat().st_size for file in written),
        gallery.problems(played),
    )


def page_files(site: Path) -> dict[str, Path]:
    """
    Return the files of the built page by their names in the gallery.

    Raises:
        ValueError: if the page is not built.
    """
    if not (site / INDEX).is_file():
        raise ValueError(f"The gallery's page is not built: there is no {site / INDEX}. Run `make gallery`")
    return {file.relative_to(site).as_posix(): file for file in sorted(site.rglob("*")) if file.is_file()}


def _claim(folder: Path) -> None:
    """Make sure that a folder is a gallery's, and mark a new one as such: a killed export goes on in it."""
    data = folder / DATA
    if data.is_file():
        with data.open(encoding="utf-8", errors="replace") as content:
            if content.read(len(VARIABLE)) == VARIABLE:
                return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} has something else than a gallery in it: name a new folder, or an empty one")
    data.parent.mkdir(parents=True)
    replace_file(data, write_script("This gallery is not complete: its export was stopped.", []))


def _write_videos(gallery: Gallery, folder: Path) -> list[Played]:
    """Write the videos of all clips that can be read, in parallel."""
    videos = [
        strip.content and Video.of(clip.path, strip.content, strip.playable, clip.start, clip.end)
        for clip, strip in zip(gallery.clips, gallery.strips, strict=True)
    ]
    wanted = {video.file: video for video in videos if video}
    workers = count_workers(len(wanted))
    problems = ordered_map(
        partial(_write_video, folder), wanted.values(), workers, 2 * workers, ENCODE_TIMEOUT, lambda _, reason: reason
    )
    bar = tqdm(problems, total=len(wanted), desc="Clips", unit="clip", disable=not wanted)
    problem_of = dict(zip(wanted, bar, strict=True))

    def played(video: Video | None, strip: Strip) -> Played:
        if not video or problem_of[video.file]:
            return Played(problem=video and f"The clip cannot be shown: {problem_of[video.file]}")
        return Played(video.file, strip.start)

    return list(map(played, videos, gallery.strips))


def _write_video(folder: Path, video: Video) -> str | None:
    """Write a video; return why it cannot be written, without folders of this computer."""
    try:
        write_video(folder, video)
    except (OSError, VideoDecodeError) as error:
        return error.strerror if isinstance(error, OSError) else str(error).replace(video.source, "the clip")
    return None


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove the strips and videos of earlier exports."""
    for file in [*(folder / "frames").glob("*/*"), *(folder / "clips").glob("*/*")]:
        name = file.relative_to(folder).as_posix()
        if OWN_FILES.fullmatch(name) and name not in kept:
            file.unlink()
            if not any(file.parent.iterdir()):
                file.parent.rmdir()
