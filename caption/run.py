"""
Caption clips, each once. A clip is

- found by `clips/finding.py`, and claimed by one process;
- identified by the hash of its content, and split into parts, in a worker (`clips/splitting.py`);
- left out if the store (`store.py`) has its captions;
- decoded in a worker and captioned by the model (`captioners/local.py`), or captioned by a server
  (`captioners/served.py`); a cluster (`cluster.py`) identifies, decodes and captions on its machines;
- appended to the store, and counted in the report (`report.py`).
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from accelerate.utils import gather_object
from tqdm import tqdm

from ..distributed import WorkClaims, cores_per_process, join_processes, sharing_work
from ..files import locked
from ..media import MediaGate
from ..workers import DECODE_TIMEOUT, ordered_map
from .captioners.decoding import Decode, Decoded
from .captioners.local import LocalCaptioner
from .captioners.served import served_rows
from .clips import Clip, Failed, Identify, Row, Scenes, Split
from .quality import NearestClips
from .report import Report
from .rows import Settings
from .store import CaptionStore

if TYPE_CHECKING:
    from ..eval import ChatServer

MAX_WORKERS = 8  # by default, of each process
SPLIT_TIMEOUT = 3600  # seconds: scenes are found by decoding a whole film
Item = TypeVar("Item")
Numbered = tuple[int, Clip | Failed]  # with the number of the piece of work that it belongs to


@dataclass(frozen=True)
class Job:
    """
    What is captioned.

    Args:
        clips: From [`find_clips`].
        store: Where the captions go.
        total: The number of videos, for the progress bar; None if it is not known.
        split: Splits videos into parts.
        piece: Videos that a process claims at a time.
        num_workers: Processes that identify and decode clips.
    """

    clips: Iterable[Clip | Failed]
    store: CaptionStore
    total: int | None = None
    split: Split | None = None
    piece: int = 8
    num_workers: int = 1

    @property
    def identify_timeout(self) -> int:
        """Seconds for identifying one video."""
        return DECODE_TIMEOUT if self.split is None else SPLIT_TIMEOUT


def default_workers() -> int:
    """Return the number of workers that leaves a core to each process's model."""
    return max(1, min(MAX_WORKERS, cores_per_process() - 1))


@contextmanager
def hold(file: Path) -> Iterator[None]:
    """
    Lock the file of captions, for all processes of this run.

    Raises:
        ValueError: if another run writes it.
    """
    with ExitStack() as locks:
        if join_processes().is_main_process:
            locks.enter_context(locked(file))
        join_processes().wait_for_everyone()
        yield


class CaptionSource(Protocol):
    """Where captions come from: a [`LocalModel`], a [`ServedModel`], or a [`ClusterModel`]."""

    def identify(self, clips: Iterator[Clip | Failed], job: Job) -> Iterator[list[Clip] | Failed]:
        """Yield the parts of each clip with its hash, or why it cannot be read, in the order of the clips."""
        identify, ahead = Identify(job.split), 2 * job.piece * job.num_workers
        return ordered_map(identify, clips, job.num_workers, ahead, job.identify_timeout, identify.lost)

    def captions(self, clips: Iterator[Numbered], job: Job, report: Report) -> Iterator[list[Row]]:
        """Yield the rows of clips as they come: for each clip its captions, or its error."""


def caption_clips(job: Job, source: CaptionSource) -> Report:
    """
    Caption the clips that the store lacks. All processes call this, inside [`hold`].

    Returns:
        The figures of all processes.

    Raises:
        OSError: if captions cannot be written.
    """
    with sharing_work(job.store.file.with_name(f"{job.store.file.stem}.claims")) as claims:
        report = Report(workers=job.num_workers)
        with _Progress(job, report) as progress:
            for rows in source.captions(_missing(job, source, claims, report), job, report):
                job.store.append(rows)
                report.add(rows)
                progress.show()
            report.stop()
            progress.show()
    return Report.total(gather_object([report]))


def finish(store: CaptionStore, near_duplicates: bool = False) -> int:
    """
    Merge the files of all processes, and look for clips that look alike. Call it in the main process.

    Returns:
        The number of clips that could not be compared, since they were captioned without `near_duplicates`.
    """
    if not near_duplicates:
        store.merge()
        return 0
    nearest = NearestClips(row for row in store.rows() if "caption" in row)
    store.merge(nearest.add_to, rewrite=True)
    return nearest.without_embedding


class _Progress:
    """A bar over the clips, with the captions an hour and the failures. The other processes count as equally fast."""

    def __init__(self, job: Job, report: Report):
        state = join_processes()
        self._processes, self._report = state.num_processes, report
        total = job.total if job.split is None else None
        self._bar = tqdm(total=total, desc="Captioning", unit="clip", disable=not state.is_main_process)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def show(self) -> None:
        done, total = self._report.clips * self._processes, self._bar.total
        captions = f"{self._report.captions_per_hour * self._processes:,.0f}"
        self._bar.set_postfix({"captions/h": captions, "failed": self._report.failed}, refresh=False)
        self._bar.update((done if total is None else min(done, total)) - self._bar.n)


def _missing(job: Job, source: CaptionSource, claims: WorkClaims, report: Report) -> Iterator[Numbered]:
    """Yield the clips of this process that lack captions, each with the prompts that it lacks."""
    store, identifying = job.store, deque[tuple[int, Clip | Failed]]()

    def mine() -> Iterator[Clip | Failed]:
        """Yield the videos to identify. Workers read ahead, so a piece is claimed when that begins."""
        for number, piece in enumerate(batches(job.clips, job.piece)):
            if claims.claim(number):
                for clip in map(store.recognise, piece):
                    identifying.append((number, clip))
                    yield clip

    for found in source.identify(mine(), job):
        number, video = identifying.popleft()
        if isinstance(found, Failed):
            yield number, found
            continue
        if isinstance(job.split, Scenes):
            job.split.remember(found[0].sha256, (video.start, video.end), [(part.start, part.end) for part in found])
        for clip in found:
            missing = store.claim(clip)
            if missing is not None:
                yield number, missing
            elif store.is_copy(clip):
                store.note_copy(clip)
                report.copies += 1
            else:
                report.known += 1


@dataclass(frozen=True)
class LocalModel(CaptionSource):
    """
    A model in this process.

    Args:
        load: Loads the model; called for the first clip that can be read.
        decode: Decodes clips in the workers.
    """

    load: Callable[[], LocalCaptioner]
    decode: Decode

    def captions(self, clips: Iterator[Numbered], job: Job, report: Report) -> Iterator[list[Row]]:
        pieces: deque[int] = deque()  # of the clips that are being decoded

        def tasks() -> Iterator[Clip | Failed]:
            for piece, clip in clips:
                pieces.append(piece)
                yield clip

        ahead, captioner = 2 * job.piece, None
        decoded = ordered_map(self.decode, tasks(), job.num_workers, ahead, DECODE_TIMEOUT, self.decode.lost)
        numbered = _timed(((pieces.popleft(), clip) for clip in decoded), report)
        for batch in batches_of_pieces(numbered, job.piece):
            if captioner is None and any(isinstance(clip, Decoded) for clip in batch):
                with report.loading():
                    captioner = self.load()
            yield captioner(batch) if captioner else [clip.row for clip in batch]


@dataclass(frozen=True)
class ServedModel(CaptionSource):
    """
    A model behind servers.

    Args:
        server: The client of the servers.
        settings: What each row records.
        gate: Fetches clips at addresses; None if there are none.
    """

    server: "ChatServer"
    settings: Settings
    gate: MediaGate | None

    def captions(self, clips: Iterator[Numbered], job: Job, report: Report) -> Iterator[list[Row]]:
        report.workers = 0  # the servers decode
        return served_rows(self.server, (clip for _, clip in clips), self.settings, self.gate)


def batches_of_pieces(numbered: Iterable[tuple[int, Item]], size: int) -> Iterator[list[Item]]:
    """
    Yield batches, each of one piece of work, so that they do not depend on the number of processes: in floating point
    a caption may depend on its batch.
    """
    for _, piece in groupby(numbered, key=lambda pair: pair[0]):
        yield from batches((item for _, item in piece), size)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _timed(items: Iterator, report: Report) -> Iterator:
    """Pass items on, and add the seconds spent waiting for them to the report."""
    began = time.monotonic()
    for item in items:
        report.waited += time.monotonic() - began
        yield item
        began = time.monotonic()
