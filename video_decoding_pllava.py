"""Frame-exact video decoding with PyAV, quick where only a few frames are wanted.

`load_frames` gives the frames that decoding everything and indexing would give, bit for bit, and decodes far less:

1. A pass over the packets, which decodes nothing, tells how many frames there are, when each is shown and which are
   keyframes (`video_index_pllava.py`).
2. The frames that the sampler asks for fall into groups, one for each keyframe that has to be decoded from. What lies
   between a group's last wanted frame and the next group's keyframe is never decoded. Threads share the groups.
3. Inside a group, pictures that nobody wants and no other picture refers to are skipped.

Where packets are no safe index (no timestamps, packets that show nothing, damage), or the decoder contradicts them,
everything is decoded and the wanted frames are kept: slower, never different.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, takewhile

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, UnidentifiedImageError
from transformers.video_utils import VideoMetadata

from .video_index_pllava import Group, PacketIndex, claimed_samples, is_whole_gif, read_index
from .video_source_pllava import (
    MAX_PIXELS,
    CallerError,
    Source,
    VideoDecodeError,
    VideoSource,
    as_rgb,
    open_image,
    read_image,
    resolve,
)

Sampler = Callable[..., Sequence[int]]
Result = tuple[np.ndarray, VideoMetadata]

# Playlists and manifests (HLS, DASH, concat, SDP...) make ffmpeg open other files and addresses. None of them is here.
FORMATS = "asf,av1,avi,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,nut,obu,ogg,vc1,vvc"
# Codecs that mark the pictures which no other one refers to. HEVC does as well, with one condition: see `_can_skip`.
SKIPPING_CODECS = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
MAX_THREADS = 4
MAX_PIXELS_AT_ONCE = MAX_THREADS * 3840 * 2160  # that the threads decode: a decoder holds several pictures
MAX_WAITING = 2  # pictures that are decoded and not converted yet
PACKETS_PER_THREAD = 100  # a thread opens the file anew, which takes about as long as decoding ten frames
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
IMAGES_FPS = 3.0  # images state no rate; the frame folders of MVBench hold three a second


@dataclass
class ImagesMetadata(VideoMetadata):
    """Of images: 1 where their names count from 1, since a sub-clip's seconds then count from the number before."""

    counted_from: int = 0


class VideoTruncatedWarning(UserWarning):
    """The video is damaged or ends early: not all of its frames can be read."""


@dataclass(frozen=True)
class _Request:
    """What to read, which of its frames, and what to make of each."""

    source: Source
    sampler: Sampler
    prepare: Callable[[np.ndarray], np.ndarray]

    def ask(self, metadata: VideoMetadata) -> list[int]:
        """The sampler's indices, also noted in `metadata`."""
        try:
            metadata.frames_indices = [int(index) for index in self.sampler(metadata=metadata)]
            for index in metadata.frames_indices:
                if not 0 <= index < metadata.total_num_frames:
                    raise ValueError(
                        f"Frame {index} of {self.source.name} was asked for; it has {metadata.total_num_frames}."
                    )
        except VideoDecodeError as error:  # the sampler does not know the name
            raise VideoDecodeError(f"Cannot take frames of {self.source.name}: {error}") from error
        except Exception as error:
            raise CallerError from error
        return metadata.frames_indices


def load_frames(
    video: VideoSource,
    sample_indices_fn: Sampler | None = None,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Result:
    """Decode the frames of `video` that `sample_indices_fn` asks for.

    Args:
        video: a path (`file://` too), an http(s) or data URL, the bytes of a file, a binary file object (read from its
            beginning, left open and at its position), or a folder of images in natural order, taken as 3 a second.
        sample_indices_fn: called as `sample_indices_fn(metadata=metadata)`, returns frame indices in any order,
            repeats allowed; `None` takes all frames. It sees the size before turning, and is called again in the rare
            case that decoding gives another number of frames than the packets promised.
        prepare: is given each frame as it is decoded, (height, width, 3) uint8 RGB, from several threads; what it
            returns, an array of one shape and dtype for all, is kept in the frame's place. A resize here keeps large
            frames from being held all at once.

    Returns:
        The frames, (indices, height, width, 3) uint8 RGB, turned as the video is meant to be shown, or what `prepare`
        made of them, and a `VideoMetadata`: `frames_indices` are the indices taken, `duration` is in seconds, `fps` is
        the average rate (`None` if the video has none), `height` and `width` are those of the decoded frames.

    Raises:
        VideoDecodeError: nothing can be decoded: no such file, no video, no frames, no connection; or a limit of
            `video_source_pllava.py` is passed.
        ValueError: the sampler asks for a frame that does not exist.
    """
    source = resolve(video)
    every = lambda metadata: range(metadata.total_num_frames)  # noqa: E731
    request = _Request(source, sample_indices_fn or every, prepare or (lambda frame: frame))
    with source.reading():
        index = None
        if source.is_folder:
            result = _load_folder(request)
        else:
            try:
                result, index = _load_video(request)
            except av.FFmpegError as error:
                if (result := _load_image(request)) is None:
                    raise source.error(f"ffmpeg finds no video in it ({error.strerror})") from error
    if index is not None:
        _warn_if_truncated(source, index, result[1].total_num_frames)
    return result


def _warn_if_truncated(source: Source, index: PacketIndex, readable: int) -> None:
    if index.damaged or index.promised > readable:
        expected = max(index.promised, len(index.pts))
        of = f"of {expected}" if expected > readable else "of an unknown number of"
        message = (
            f"{source.name} is damaged or ends early: {readable} {of} frames can be read, and only they are used."
        )
        warnings.warn(message, VideoTruncatedWarning, stacklevel=3)


# --- decoding --------------------------------------------------------------------------------------------------------


class _IndexMismatch(Exception):
    """The index is not to be trusted, or the decoder does not give the frames that it promises."""


@contextmanager
def _open_stream(source: Source) -> Iterator[VideoStream]:
    """The file's first video stream."""
    # "file:" makes a path such as "concat:a|b" the name of a file, whatever else ffmpeg would take it for.
    file = f"file:{source.content}" if isinstance(source.content, str) else source.open()
    # `options` would reach the streams, too, which crashes PyAV 14 where they are found late (flv, ts).
    with av.open(file, container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"}) as container:
        if not container.streams.video:
            raise source.error("it has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise source.error("ffmpeg has no decoder for its video stream")
        source.check_size(stream.width, stream.height)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # for sizes that come later
        yield stream


def _load_video(request: _Request) -> tuple[Result, PacketIndex]:
    source = request.source
    with source.open() as file:
        for claimed in accumulate(claimed_samples(file, source.size)):
            if claimed > source.size:
                raise source.error(f"its header claims {claimed:,} samples, which is more than it has bytes")
    with _open_stream(source) as stream:
        index = read_index(stream)
        if stream.container.format.name == "gif":
            with source.open() as file:
                index.damaged |= not is_whole_gif(file)
        try:
            return _decode_groups(request, stream, index), index
        except (_IndexMismatch, av.FFmpegError):
            return _decode_everything(request, index), index


class _Frames:
    """The frames that were asked for, prepared, as they come. Threads may share one."""

    def __init__(self, request: _Request, metadata: VideoMetadata):
        self.request, self.metadata = request, metadata
        self.rows: dict[int, list[int]] = {}
        for row, rank in enumerate(request.ask(metadata)):
            self.rows.setdefault(rank, []).append(row)
        self.taken: set[int] = set()
        self.lock = threading.Lock()
        self._array = np.empty((0, metadata.height, metadata.width, 3), np.uint8)

    def take(self, rank: int, image: np.ndarray) -> None:
        with self.lock:
            size = self.metadata.height, self.metadata.width
            if not self.taken:
                size = self.metadata.height, self.metadata.width = image.shape[:2]
            self.taken.add(rank)
        if image.shape[:2] != size:
            raise self.request.source.error(f"its frames change size, from {size} to {image.shape[:2]}")
        prepared = self.request.prepare(image)
        with self.lock:
            if not len(self._array):
                self._array = np.empty((len(self.metadata.frames_indices), *prepared.shape), prepared.dtype)
        for row in self.rows[rank]:
            self._array[row] = prepared

    def convert(self, rank: int, frame: VideoFrame, reformatter: VideoReformatter) -> None:
        """`reformatter` is the thread's own: one for all of its frames saves setting one up for each."""
        self.request.source.check_size(frame.width, frame.height)
        self.take(rank, _as_displayed(reformatter.reformat(frame, format="rgb24").to_ndarray(), frame))

    def result(self) -> Result:
        return self._array, self.metadata


def _metadata(stream: VideoStream, index: PacketIndex, count: int) -> VideoMetadata:
    declared = float(stream.average_rate or stream.guessed_rate or 0)
    seconds = index.seconds
    if declared and not (seconds and count == len(index.pts)):
        seconds = count / declared
    # The header's rate is exact where times are rounded, but some headers go by the first seconds alone.
    fps = declared if not seconds or abs(declared * seconds - count) <= 1 else count / seconds
    return VideoMetadata(count, fps or None, stream.width, stream.height, seconds, video_backend="pyav")


def _as_displayed(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """`image` (H, W, 3) turned and mirrored as the frame's display matrix says; a view."""
    # `frame.side_data` and the frame would hold each other, and the picture, until the garbage collector comes
    matrix = SideDataContainer(frame).get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # (x, y) is shown at (ax + cy, bx + dy)
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _decode_groups(request: _Request, stream: VideoStream, index: PacketIndex) -> Result:
    """Decode only what the wanted frames need. Raises `_IndexMismatch` as soon as the index proves wrong."""
    if not index.trusted:
        raise _IndexMismatch
    wanted = _Frames(request, _metadata(stream, index, len(index.pts)))
    groups = index.groups(sorted(wanted.rows))
    request.source.check_work(sum(len(index.places(group)) for group in groups), stream.width, stream.height)
    if len(groups) == 1:
        _decode_single_group(stream, index, groups[0], wanted)
    else:
        _share_groups(request.source, stream, index, groups, wanted)
    if len(wanted.taken) != len(wanted.rows):
        raise _IndexMismatch
    return wanted.result()


def _decode_single_group(stream: VideoStream, index: PacketIndex, group: Group, wanted: _Frames) -> None:
    """One group cannot be shared out, so the second thread converts the pictures that the first one decodes."""
    # Threads for slices cost nothing where a picture is one slice; threads for frames hold up each other where the
    # pictures that refer to nothing but are not wanted, which they could work on meanwhile, are skipped. And each of
    # them holds pictures of its own.
    by_slices = _can_skip(stream) or MAX_THREADS * stream.width * stream.height > MAX_PIXELS_AT_ONCE
    stream.codec_context.thread_type = "SLICE" if by_slices else "AUTO"
    convert = partial(wanted.convert, reformatter=VideoReformatter())
    with ThreadPoolExecutor(1) as pool:
        jobs: list[Future] = []

        def take(rank: int, frame: VideoFrame) -> None:
            if len(jobs) >= MAX_WAITING:
                jobs[-MAX_WAITING].result()
            jobs.append(pool.submit(convert, rank, frame))

        _decode_group(stream, index, group, wanted, take)
    for job in jobs:
        job.result()


def _share_groups(
    source: Source, stream: VideoStream, index: PacketIndex, groups: list[Group], wanted: _Frames
) -> None:
    """Threads decode one group after the other, and convert what they decode."""
    groups.sort(key=lambda group: len(index.places(group)), reverse=True)  # so that threads end at about the same time
    packets = sum(len(index.places(group)) for group in groups)
    threads = min(MAX_THREADS, os.cpu_count() or 1, len(groups), 1 + packets // PACKETS_PER_THREAD)
    threads = max(1, min(threads, MAX_PIXELS_AT_ONCE // max(1, stream.width * stream.height)))
    remaining = iter(groups)  # advancing a list's iterator is atomic: threads can share it

    def work(stream: VideoStream) -> None:
        stream.codec_context.thread_type = "NONE"  # groups share out better than what is within them
        take = partial(wanted.convert, reformatter=VideoReformatter())
        for group in remaining:
            _decode_group(stream, index, group, wanted, take)

    def help_out() -> None:
        with _open_stream(source) as stream:
            work(stream)

    with ThreadPoolExecutor(MAX_THREADS) as pool:  # starts no thread before it is given work
        helpers = [pool.submit(help_out) for _ in range(threads - 1)]
        work(stream)
    for helper in helpers:
        helper.result()


def _can_skip(stream: VideoStream) -> bool:
    """Whether the decoder knows for certain which pictures no other one refers to."""
    context = stream.codec_context
    if context.name == "hevc":
        # Its mark holds within a temporal layer only. In mp4 and mkv a header ("hvcC") states the number of layers.
        header = context.extradata or b""
        return len(header) > 21 and header[0] == 1 and header[21] >> 3 & 7 == 1
    return context.name in SKIPPING_CODECS


def _decode_group(
    stream: VideoStream, index: PacketIndex, group: Group, wanted: _Frames, take: Callable[[int, VideoFrame], None]
) -> None:
    """Calls `take` with the rank and the picture of each frame that is wanted of a group."""
    skipping = _can_skip(stream)
    start = index.rank[index.keyframes[group[0]]]
    expected = iter(sorted(index.rank[index.pts[place]] for place in index.places(group)))
    for frame in _frames_of_group(stream, index, group, skipping):
        rank = index.rank.get(frame.pts)
        if rank is None or frame.is_corrupt or frame.interlaced_frame:  # interlaced: a packet may be half a frame
            raise _IndexMismatch
        for absent in takewhile(lambda other, rank=rank: other != rank, expected):
            skipped = skipping and absent not in wanted.rows
            if absent == start or absent > start and not skipped:
                raise _IndexMismatch
        if rank >= start and rank in wanted.rows:  # others may refer to frames before the keyframe: not decoded
            take(rank, frame)


def _frames_of_group(stream: VideoStream, index: PacketIndex, group: Group, skipping: bool) -> Iterator[VideoFrame]:
    places = index.places(group)
    stream.container.seek(index.seek_times[group[0]], stream=stream)
    for packet in stream.container.demux(stream):
        place = index.place.get(packet.pts)
        if place is None or place > places[-1]:
            raise _IndexMismatch
        if place < places[0]:
            continue  # some containers seek to a place before
        if skipping:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in group[1] else "NONREF"
        yield from packet.decode()
        if place == places[-1]:
            yield from stream.decode(None)
            return


def _decode_everything(request: _Request, index: PacketIndex) -> Result:
    """Decode every frame and keep the wanted ones. Where there are more or fewer than packets: once more."""
    count, source = len(index.pts), request.source
    for _ in range(3):
        with _open_stream(source) as stream:
            frames = _all_frames(stream, index)
            first = next(frames, None)
            if first is None:
                raise source.error("not one frame of its video stream can be decoded")
            source.check_work(count, stream.width, stream.height)
            wanted, reformatter = _Frames(request, _metadata(stream, index, count)), VideoReformatter()
            decoded = 0
            for decoded, frame in enumerate(chain([first], frames), start=1):
                if decoded - 1 in wanted.rows:
                    wanted.convert(decoded - 1, frame, reformatter)
        if decoded == count:
            return wanted.result()
        count = decoded
    raise source.error("each decoding gives another number of frames")


def _all_frames(stream: VideoStream, index: PacketIndex) -> Iterator[VideoFrame]:
    """The frames in the decoder's order. What cannot be decoded is left out and noted as damage in `index`."""
    packets = stream.container.demux(stream)
    while True:
        try:
            if (packet := next(packets, None)) is None:  # also after an error of the demuxer's, which ends it
                return
            frames = packet.decode()
        except av.FFmpegError:
            index.damaged = True
        else:
            yield from frames


# --- images ----------------------------------------------------------------------------------------------------------


def _load_folder(request: _Request) -> Result:
    def natural(name: str) -> list[tuple[bool, int | str]]:  # 2.jpg before 10.jpg
        return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", name)]

    def read(number: int) -> Image.Image:
        return read_image(os.path.join(folder, names[number]))

    folder = request.source.content
    names = sorted((name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES)), key=natural)
    if not names:
        raise request.source.error(f"the folder holds no images ({', '.join(IMAGE_SUFFIXES)})")
    numbers = re.findall(r"\d+", names[0])
    counted_from = 1 if numbers and int(numbers[-1]) == 1 else 0
    return _read_images(request, len(names), read, counted_from)


def _load_image(request: _Request) -> Result | None:
    """The frames of an image file, animated (webp, png) or not; `None` if it is no image."""
    try:
        image = open_image(request.source)
    except UnidentifiedImageError:
        return None

    def read(number: int) -> Image.Image:
        image.seek(number)
        request.source.check_size(*image.size)
        return as_rgb(image)

    with image:
        return _read_images(request, getattr(image, "n_frames", 1), read)


def _read_images(request: _Request, count: int, read: Callable[[int], Image.Image], counted_from: int = 0) -> Result:
    first = read(0)
    metadata = ImagesMetadata(
        count, IMAGES_FPS, first.width, first.height, count / IMAGES_FPS, "pil", counted_from=counted_from
    )
    wanted = _Frames(request, metadata)
    for number in sorted(wanted.rows):  # an animation is read from its beginning, if it goes back
        image = read(number) if number else first
        if image.size != first.size:
            raise request.source.error(f"image {number} is {image.size}, the first is {first.size}")
        wanted.take(number, np.array(image))
    return wanted.result()
