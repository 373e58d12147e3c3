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

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from typing import BinaryIO
from urllib.parse import unquote, urlparse
from urllib.request import urlopen

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from huggingface_hub.utils import httpx
from PIL import Image
from transformers.video_utils import VideoMetadata

from .video_index_pllava import Group, PacketIndex, read_index

VideoSource = str | os.PathLike | bytes | BinaryIO
Sampler = Callable[..., Sequence[int]]
Result = tuple[np.ndarray, VideoMetadata]

# Playlists and manifests (HLS, DASH, concat, SDP...) make ffmpeg open other files and addresses. None of them is here.
FORMATS = "asf,av1,avi,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,nut,obu,ogg,vc1,vvc"
# Codecs that mark the pictures which no other one refers to. HEVC does as well, with one condition: see `_can_skip`.
SKIPPING_CODECS = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
MAX_THREADS = 4
PACKETS_PER_THREAD = 100  # a thread opens the file anew, which takes about as long as decoding ten frames
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
IMAGES_FPS = 3.0  # images state no rate; the frame folders of MVBench hold three a second


@dataclass
class ImagesMetadata(VideoMetadata):
    """Of images: 1 where their names count from 1, since a sub-clip's seconds then count from the number before."""

    counted_from: int = 0


class VideoDecodeError(ValueError):
    """The input is no video that can be decoded. The message names the input, the reason and what to do."""


class VideoTruncatedWarning(UserWarning):
    """The video is damaged or ends early: not all of its frames can be read."""


def load_frames(video: VideoSource, sample_indices_fn: Sampler | None = None) -> Result:
    """Decode the frames of `video` that `sample_indices_fn` asks for.

    Args:
        video: a path (`file://` too), an http(s) or data URL, the bytes of a file, a binary file object (read from its
            beginning, left open and at its position), or a folder of images in natural order, taken as 3 a second.
        sample_indices_fn: called as `sample_indices_fn(metadata=metadata)`, returns frame indices in any order,
            repeats allowed; `None` takes all frames. It sees the size before turning, and is called again in the rare
            case that decoding gives another number of frames than the packets promised.

    Returns:
        The frames, (indices, height, width, 3) uint8 RGB, turned as the video is meant to be shown, and a
        `VideoMetadata`: `frames_indices` are the indices taken, `duration` is in seconds, `fps` is the average rate,
        `height` and `width` are those of the frames.

    Raises:
        VideoDecodeError: nothing can be decoded: no such file, no video, no frames, no connection.
        ValueError: the sampler asks for a frame that does not exist.
    """
    sampler = sample_indices_fn or (lambda metadata: range(metadata.total_num_frames))
    source = _resolve(video)
    if isinstance(source.content, str) and os.path.isdir(source.content):
        return _load_folder(source, sampler)
    try:
        return _load_video(source, sampler)
    except av.FFmpegError as error:
        if (result := _load_image(source, sampler)) is not None:
            return result
        raise source.error(f"ffmpeg finds no video in it ({error.strerror})") from error


# --- sources ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A video to open as often as needed: a path or the bytes of a file, and its name for messages."""

    name: str
    content: str | bytes

    def open(self) -> InputContainer:
        # "file:" makes a path such as "concat:a|b" the name of a file, whatever else ffmpeg would take it for.
        file = f"file:{self.content}" if isinstance(self.content, str) else io.BytesIO(self.content)
        # `options` would reach the streams, too, which crashes PyAV 14 where they are found late (flv, ts).
        return av.open(file, container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})

    def error(self, reason: str) -> VideoDecodeError:
        advice = "Give a whole video file (mp4, webm, mkv, avi, mov, ts, gif...) or a folder of images."
        return VideoDecodeError(f"Cannot decode {self.name}: {reason}. {advice}")


def _resolve(video: VideoSource) -> _Source:
    if isinstance(video, (bytes, bytearray, memoryview)):
        name, content = f"<bytes, {len(video)} bytes>", bytes(video)
    elif hasattr(video, "read"):
        name, content = f"<file {getattr(video, 'name', type(video).__name__)}>", _read_all(video)
    else:
        name = content = os.fsdecode(video)
        url = urlparse(name)
        if url.scheme in ("http", "https"):
            content = _download(name)
        elif url.scheme == "data":  # as OpenAI-compatible servers get their videos
            content, name = _read_data_url(name), f"{name[:40]}..."
        elif url.scheme == "file":
            content = unquote(url.path)
        elif "://" in name:
            raise _Source(name, content).error(f"{url.scheme}:// is not a kind of address that is read")
    source = _Source(name, content)
    if isinstance(content, str) and not os.path.exists(content):
        raise source.error("there is no such file")
    if not (os.path.getsize(content) if isinstance(content, str) else content):
        raise source.error("it is empty")
    return source


def _read_all(file: BinaryIO) -> bytes:
    """The whole of `file`, even if it was just written and stands at its end. Its position stays as it was."""
    if not file.seekable():
        return file.read()
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content


def _read_data_url(url: str) -> bytes:
    try:
        with urlopen(url) as content:
            return content.read()
    except ValueError as error:
        raise VideoDecodeError(f"Cannot read {url[:40]}...: {error}. Give data:video/mp4;base64,...") from error


def _download(url: str) -> bytes:
    try:
        response = httpx.get(url, follow_redirects=True, timeout=60)
        response.raise_for_status()
        return response.content
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise VideoDecodeError(f"Cannot download {url}: {error}. Check the address, or give a local file.") from error


# --- decoding --------------------------------------------------------------------------------------------------------


class _IndexMismatch(Exception):
    """The index is not to be trusted, or the decoder does not give the frames that it promises."""


def _load_video(source: _Source, sampler: Sampler) -> Result:
    with source.open() as container:
        if not container.streams.video:
            raise source.error("it has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise source.error("ffmpeg has no decoder for its video stream")
        index = read_index(stream)
        try:
            result = _decode_groups(source, stream, index, sampler)
        except (_IndexMismatch, av.FFmpegError):
            result = _decode_everything(source, index, sampler)
    readable = result[1].total_num_frames
    if index.damaged or index.promised > readable:
        expected = max(index.promised, len(index.pts))
        of = f"of {expected}" if expected > readable else "of an unknown number of"
        message = (
            f"{source.name} is damaged or ends early: {readable} {of} frames can be read, and only they are used."
        )
        warnings.warn(message, VideoTruncatedWarning, stacklevel=3)
    return result


class _Wanted:
    """What the sampler wants of `count` frames, and the frames so far as RGB. Threads may share one."""

    def __init__(self, source: _Source, stream: VideoStream, index: PacketIndex, count: int, sampler: Sampler):
        declared = float(stream.average_rate or stream.guessed_rate or 0)
        seconds = index.seconds
        if declared and not (seconds and count == len(index.pts)):
            seconds = count / declared
        # The header's rate is exact where times are rounded, but some headers go by the first seconds alone.
        fps = declared if not seconds or abs(declared * seconds - count) <= 1 else count / seconds
        height, width = stream.height, stream.width
        self.metadata = VideoMetadata(count, fps, width, height, seconds, video_backend="pyav")
        self.source = source
        self.indices = _ask(source, sampler, self.metadata)
        self.frames = np.empty((len(self.indices), height, width, 3), np.uint8)
        self.rows: dict[int, list[int]] = {}
        for row, rank in enumerate(self.indices):
            self.rows.setdefault(rank, []).append(row)
        self.taken: set[int] = set()
        self.lock = threading.Lock()

    def take(self, rank: int, frame: VideoFrame, reformatter: VideoReformatter) -> None:
        """`reformatter` is the thread's own: one for all of its frames saves setting one up for each."""
        image = _as_displayed(reformatter.reformat(frame, format="rgb24").to_ndarray(), frame)
        with self.lock:
            if not self.taken and image.shape != self.frames.shape[1:]:
                self.metadata.height, self.metadata.width = image.shape[:2]
                self.frames = np.empty((len(self.indices), *image.shape), np.uint8)
            self.taken.add(rank)
        if image.shape != self.frames.shape[1:]:
            raise self.source.error(f"its frames change size, from {self.frames.shape[1:3]} to {image.shape[:2]}")
        for row in self.rows[rank]:
            self.frames[row] = image


def _ask(source: _Source, sampler: Sampler, metadata: VideoMetadata) -> list[int]:
    """The sampler's indices, also noted in `metadata`."""
    metadata.frames_indices = [int(index) for index in sampler(metadata=metadata)]
    for index in metadata.frames_indices:
        if not 0 <= index < metadata.total_num_frames:
            raise ValueError(f"Frame {index} of {source.name} was asked for; it has {metadata.total_num_frames}.")
    return metadata.frames_indices


def _as_displayed(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """`image` (H, W, 3) turned and mirrored as the frame's display matrix says; a view."""
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # (x, y) is shown at (ax + cy, bx + dy)
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _decode_groups(source: _Source, stream: VideoStream, index: PacketIndex, sampler: Sampler) -> Result:
    """Decode only what the wanted frames need. Raises `_IndexMismatch` as soon as the index proves wrong."""
    if not index.trusted:
        raise _IndexMismatch
    wanted = _Wanted(source, stream, index, len(index.pts), sampler)
    groups = index.groups(sorted(wanted.rows))
    if len(groups) == 1:
        _decode_single_group(stream, index, groups[0], wanted)
    else:
        _share_groups(source, stream, index, groups, wanted)
    if len(wanted.taken) != len(wanted.rows):
        raise _IndexMismatch
    return wanted.frames, wanted.metadata


def _decode_single_group(stream: VideoStream, index: PacketIndex, group: Group, wanted: _Wanted) -> None:
    """One group cannot be shared out, so the second thread converts the pictures that the first one decodes."""
    # Threads for slices cost nothing where a picture is one slice; threads for frames hold up each other where the
    # pictures that refer to nothing but are not wanted, which they could work on meanwhile, are skipped.
    stream.codec_context.thread_type = "SLICE" if _can_skip(stream) else "AUTO"
    convert = partial(wanted.take, reformatter=VideoReformatter())
    with ThreadPoolExecutor(1) as pool:
        jobs: list[Future] = []
        _decode_group(stream, index, group, wanted, lambda *picture: jobs.append(pool.submit(convert, *picture)))
    for job in jobs:
        job.result()


def _share_groups(
    source: _Source, stream: VideoStream, index: PacketIndex, groups: list[Group], wanted: _Wanted
) -> None:
    """Threads decode one group after the other, and convert what they decode."""
    groups.sort(key=lambda group: len(index.places(group)), reverse=True)  # so that threads end at about the same time
    packets = sum(len(index.places(group)) for group in groups)
    threads = min(MAX_THREADS, os.cpu_count() or 1, len(groups), 1 + packets // PACKETS_PER_THREAD)
    remaining = iter(groups)  # advancing a list's iterator is atomic: threads can share it

    def work(stream: VideoStream) -> None:
        stream.codec_context.thread_type = "NONE"  # groups share out better than what is within them
        take = partial(wanted.take, reformatter=VideoReformatter())
        for group in remaining:
            _decode_group(stream, index, group, wanted, take)

    def help_out() -> None:
        with source.open() as container:
            work(container.streams.video[0])

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
    stream: VideoStream, index: PacketIndex, group: Group, wanted: _Wanted, take: Callable[[int, VideoFrame], None]
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


def _decode_everything(source: _Source, index: PacketIndex, sampler: Sampler) -> Result:
    """Decode every frame and keep the wanted ones. Where there are more or fewer than packets: once more."""
    count = len(index.pts)
    for _ in range(3):
        with source.open() as container:
            stream = container.streams.video[0]
            frames = _all_frames(stream, index)
            first = next(frames, None)
            if first is None:
                raise source.error("not one frame of its video stream can be decoded")
            wanted, reformatter = _Wanted(source, stream, index, count, sampler), VideoReformatter()
            decoded = 0
            for decoded, frame in enumerate(chain([first], frames), start=1):
                if decoded - 1 in wanted.rows:
                    wanted.take(decoded - 1, frame, reformatter)
        if decoded == count:
            return wanted.frames, wanted.metadata
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


def _load_folder(source: _Source, sampler: Sampler) -> Result:
    def natural(name: str) -> list[tuple[bool, int | str]]:  # 2.jpg before 10.jpg
        return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", name)]

    def read(number: int) -> Image.Image:
        with Image.open(os.path.join(source.content, names[number])) as image:
            return image.convert("RGB")

    names = sorted((name for name in os.listdir(source.content) if name.lower().endswith(IMAGE_SUFFIXES)), key=natural)
    if not names:
        raise source.error(f"the folder holds no images ({', '.join(IMAGE_SUFFIXES)})")
    numbers = re.findall(r"\d+", names[0])
    counted_from = 1 if numbers and int(numbers[-1]) == 1 else 0
    return _read_images(source, len(names), read, sampler, counted_from)


def _load_image(source: _Source, sampler: Sampler) -> Result | None:
    """The frames of an image file, animated (webp, png) or not; `None` if it is no image."""
    try:
        image = Image.open(source.content if isinstance(source.content, str) else io.BytesIO(source.content))
    except OSError:
        return None

    def read(number: int) -> Image.Image:
        image.seek(number)
        return image.convert("RGB")

    with image:
        return _read_images(source, getattr(image, "n_frames", 1), read, sampler)


def _read_images(
    source: _Source, count: int, read: Callable[[int], Image.Image], sampler: Sampler, counted_from: int = 0
) -> Result:
    def checked(number: int) -> Image.Image:
        try:
            return read(number)
        except (OSError, SyntaxError) as error:  # PIL's for broken files
            raise source.error(f"image {number} cannot be read ({error})") from error

    width, height = checked(0).size
    metadata = ImagesMetadata(count, IMAGES_FPS, width, height, count / IMAGES_FPS, "pil", counted_from=counted_from)
    frames = np.empty((len(_ask(source, sampler, metadata)), height, width, 3), np.uint8)
    for row, number in enumerate(metadata.frames_indices):
        image = checked(number)
        if image.size != (width, height):
            raise source.error(f"image {number} is {image.size}, the first is {(width, height)}")
        frames[row] = image
    return frames, metadata
