"""Frame-exact video decoding with PyAV that decodes little where only a few frames are wanted.

`load_frames` returns the frames that decoding everything and indexing would return, bit for bit:

1. A pass over the packets, without decoding, finds the number of frames, their PTS and the keyframes
   (`video_index_pllava.py`).
2. The frames that the sampler asks for are decoded by group of pictures (GOP), each from its keyframe to its last
   wanted frame. Threads share the GOPs, or the frames of a long one. GOPs without a wanted frame are skipped.
3. Within a GOP, unwanted non-reference frames are skipped.

Where the packets are not a reliable index (no PTS, hidden frames, damage), or the decoder contradicts it, everything
is decoded and the wanted frames are kept: slower, with the same result.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, takewhile

import av
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from transformers.video_utils import VideoMetadata

from .video_frames_pllava import CollectorFactory, FrameCollector, Frames, Prepare, Sampler
from .video_images_pllava import load_image_file, load_image_folder
from .video_index_pllava import Gop, VideoIndex, check_claimed_samples, is_whole_gif, read_index
from .video_source_pllava import MAX_PIXELS, Source, VideoSource, resolve

# Without playlists and manifests (HLS, DASH, concat, SDP...), which make ffmpeg open other files and URLs.
FORMATS = "asf,av1,avi,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,nut,obu,ogg,vc1,vvc"
# Codecs that mark non-reference frames. HEVC does, too, under a condition: see `_can_skip`.
SKIPPING_CODECS = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
MAX_THREADS = 4
MAX_PIXELS_AT_ONCE = MAX_THREADS * 3840 * 2160  # in the frames that all threads decode; a decoder holds several frames
MAX_UNCONVERTED = 2  # decoded frames that wait for their conversion to RGB
FRAME_THREADS_COST = 1.5  # time with frame threads / time if they worked without waiting for each other
PACKETS_PER_THREAD = 50  # opening the file once more for a thread takes about as long as decoding ten frames


class VideoTruncatedWarning(UserWarning):
    """The video is damaged or ends early: not all of its frames can be read."""


def load_frames(
    video: VideoSource, sample_indices_fn: Sampler | None = None, prepare: Prepare | None = None
) -> Frames:
    """Decode the frames of `video` that `sample_indices_fn` asks for.

    Args:
        video: A path (also `file://`), an http(s) or data URL, the bytes of a file, a binary file object (read from
            its beginning; left open, its position unchanged), or a folder of images in natural order, at 3 per second.
        sample_indices_fn: Called as `sample_indices_fn(metadata=metadata)`; returns frame indices in any order, with
            repeats. `None` takes all frames. It gets the size before rotation, and is called again in the rare case
            that decoding yields another number of frames than the packets.
        prepare: Called with each frame as it is decoded, (height, width, 3) uint8 RGB, from several threads. The
            arrays that it returns, all of one shape and dtype, replace the frames. Resizing here keeps large frames
            from being in memory all at once.

    Returns:
        The frames, (indices, height, width, 3) uint8 RGB, rotated as the video is meant to be shown, or the arrays of
        `prepare`; and a `VideoMetadata`, in which `frames_indices` are the indices taken, `duration` is in seconds,
        `fps` is the average rate (`None` if the video has none), and `height` and `width` are those of the frames.

    Raises:
        VideoDecodeError: if the file does not exist, cannot be downloaded, is not a video, has no frames, or exceeds a
            limit of `video_source_pllava.py`.
        ValueError: if the sampler asks for a frame that does not exist.
    """
    source = resolve(video)
    sampler = sample_indices_fn or (lambda metadata: range(metadata.total_num_frames))
    new_collector = partial(FrameCollector, source, sampler, prepare or (lambda frame: frame))
    with source.reading():
        if source.is_folder:
            return load_image_folder(source, new_collector)
        try:
            result, index = _load_video(source, new_collector)
        except av.FFmpegError as error:
            if (result := load_image_file(source, new_collector)) is None:
                raise source.error(f"ffmpeg finds no video in it ({error.strerror})") from error
            return result
    readable = result[1].total_num_frames
    if index.damaged or index.expected_frames > readable:
        expected = max(index.expected_frames, len(index.pts))
        total = expected if expected > readable else "an unknown number of"
        problem = f"is damaged or ends early: {readable} of {total} frames can be read, and only they are used."
        warnings.warn(f"{source.name} {problem}", VideoTruncatedWarning, stacklevel=2)
    return result


class _IndexMismatch(Exception):
    """The index is not trusted, or the decoder does not yield the frames that it lists."""


def _load_video(source: Source, new_collector: CollectorFactory) -> tuple[Frames, VideoIndex]:
    check_claimed_samples(source)
    with open_stream(source) as stream:
        index = read_index(stream)
        if stream.container.format.name == "gif":
            with source.open() as file:
                index.damaged |= not is_whole_gif(file)
        try:
            return _decode_by_index(source, new_collector, stream, index), index
        except (_IndexMismatch, av.FFmpegError):
            return _decode_everything(source, new_collector, index), index


@contextmanager
def open_stream(source: Source) -> Iterator[VideoStream]:
    """Open the file's first video stream, of a container that opens no other file."""
    # "file:" keeps ffmpeg from interpreting a path such as "concat:a|b".
    file = f"file:{source.content}" if isinstance(source.content, str) else source.open()
    # `options` would be passed to the streams, too, which crashes PyAV 14 where they are found late (flv, ts).
    with av.open(file, container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"}) as container:
        if not container.streams.video:
            raise source.error("it has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise source.error("ffmpeg has no decoder for its video stream")
        source.check_size(stream.width, stream.height)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # for frames of another size
        yield stream


def _metadata(stream: VideoStream, index: VideoIndex, count: int) -> VideoMetadata:
    declared = float(stream.average_rate or stream.guessed_rate or 0)
    seconds = index.seconds
    if declared and not (seconds and count == len(index.pts)):
        seconds = count / declared
    # The header's rate is exact even if the PTS are rounded, but some headers describe only the first seconds.
    fps = declared if not seconds or abs(declared * seconds - count) <= 1 else count / seconds
    return VideoMetadata(count, fps or None, stream.width, stream.height, seconds, video_backend="pyav")


# --- decoding everything ---------------------------------------------------------------------------------------------


def _decode_everything(source: Source, new_collector: CollectorFactory, index: VideoIndex) -> Frames:
    """Decode every frame and keep the wanted ones. Starts again if the number of frames differs from the packets'."""
    count = len(index.pts)
    for _ in range(3):
        with open_stream(source) as stream:
            frames = _all_frames(stream, index)
            first = next(frames, None)
            if first is None:
                raise source.error("not one frame of its video stream can be decoded")
            source.check_work(count, stream.width, stream.height)
            collector, reformatter = new_collector(_metadata(stream, index, count)), VideoReformatter()
            decoded = 0
            for decoded, frame in enumerate(chain([first], frames), start=1):
                if decoded - 1 in collector.rows:
                    collector.add_decoded(decoded - 1, frame, reformatter)
        if decoded == count:
            return collector.result()
        count = decoded
    raise source.error("each decoding gives another number of frames")


def _all_frames(stream: VideoStream, index: VideoIndex) -> Iterator[VideoFrame]:
    """Yield the decoder's frames. Packets that cannot be decoded are left out, and `index` is marked as damaged."""
    packets = stream.container.demux(stream)
    while True:
        try:
            if (packet := next(packets, None)) is None:  # the end, or a demuxer that stopped at an error
                return
            frames = packet.decode()
        except av.FFmpegError:
            index.damaged = True
        else:
            yield from frames


# --- decoding by index -----------------------------------------------------------------------------------------------


def _decode_by_index(
    source: Source, new_collector: CollectorFactory, stream: VideoStream, index: VideoIndex
) -> Frames:
    """Decode only what the wanted frames need. Raises `_IndexMismatch` as soon as the index proves wrong."""
    if not index.trusted:
        raise _IndexMismatch
    collector = new_collector(_metadata(stream, index, len(index.pts)))
    gops = list(index.gops(sorted(collector.rows)))
    source.check_work(sum(len(gop.packets) for gop in gops), stream.width, stream.height)
    by_frames = _is_for_frame_threads(stream, index, gops)
    if by_frames or len(gops) == 1:
        stream.codec_context.thread_count = MAX_THREADS
        stream.codec_context.thread_type = "AUTO" if by_frames else "SLICE"  # free where a frame is a single slice
        _decode_in_order(stream, index, gops, collector)
    else:
        _decode_gops_in_threads(source, stream, index, gops, collector)
    if len(collector.collected) != len(collector.rows):
        raise _IndexMismatch
    return collector.result()


def _is_for_frame_threads(stream: VideoStream, index: VideoIndex, gops: list[Gop]) -> bool:
    """Return whether threads that share a GOP's frames are faster than threads that share the GOPs."""
    # Skipping saves more, and leaves frames that wait for each other. Streams in display order have no B-frames, and
    # hardly any other frames can be skipped.
    skips = _can_skip(stream) and index.pts != index.display_order
    is_large = MAX_THREADS * stream.width * stream.height > MAX_PIXELS_AT_ONCE  # each thread holds frames of its own
    packets, threads = [len(gop.packets) for gop in gops], min(MAX_THREADS, os.cpu_count() or 1)
    return not skips and not is_large and max(packets, default=0) > FRAME_THREADS_COST * sum(packets) / threads


def _decode_in_order(stream: VideoStream, index: VideoIndex, gops: list[Gop], collector: FrameCollector) -> None:
    """Decode one GOP after the other, and convert to RGB in a second thread."""
    convert = partial(collector.add_decoded, reformatter=VideoReformatter())
    with ThreadPoolExecutor(1) as pool:
        jobs: list[Future] = []

        def add(display_index: int, frame: VideoFrame) -> None:
            if len(jobs) >= MAX_UNCONVERTED:
                jobs[-MAX_UNCONVERTED].result()
            jobs.append(pool.submit(convert, display_index, frame))

        for gop in gops:
            _decode_gop(stream, index, gop, collector, add)
    for job in jobs:
        job.result()


def _decode_gops_in_threads(
    source: Source, stream: VideoStream, index: VideoIndex, gops: list[Gop], collector: FrameCollector
) -> None:
    """Let each thread decode and convert one GOP after the other."""
    gops.sort(key=lambda gop: len(gop.packets), reverse=True)  # so that all threads finish at about the same time
    packets = sum(len(gop.packets) for gop in gops)
    threads = min(MAX_THREADS, os.cpu_count() or 1, len(gops), 1 + packets // PACKETS_PER_THREAD)
    threads = max(1, min(threads, MAX_PIXELS_AT_ONCE // max(1, stream.width * stream.height)))
    remaining = iter(gops)  # threads can share a list's iterator: advancing it is atomic

    def work(stream: VideoStream) -> None:
        stream.codec_context.thread_type = "NONE"  # whole GOPs parallelise better than frames or slices
        add = partial(collector.add_decoded, reformatter=VideoReformatter())
        for gop in remaining:
            _decode_gop(stream, index, gop, collector, add)

    def open_and_work() -> None:
        with open_stream(source) as stream:
            work(stream)

    with ThreadPoolExecutor(MAX_THREADS) as pool:  # starts a thread only when it gets work
        helpers = [pool.submit(open_and_work) for _ in range(threads - 1)]
        work(stream)
    for helper in helpers:
        helper.result()


def _can_skip(stream: VideoStream) -> bool:
    """Return whether the decoder knows for certain which frames are non-reference frames."""
    context = stream.codec_context
    if context.name == "hevc":
        # HEVC marks them per temporal layer. In mp4 and mkv, the "hvcC" header holds the number of layers.
        header = context.extradata or b""
        return len(header) > 21 and header[0] == 1 and header[21] >> 3 & 7 == 1
    return context.name in SKIPPING_CODECS


def _decode_gop(
    stream: VideoStream, index: VideoIndex, gop: Gop, collector: FrameCollector, add: Callable[[int, VideoFrame], None]
) -> None:
    """Call `add` with the display index and the decoded frame of each wanted frame of a GOP."""
    skipping = _can_skip(stream)
    first = index.display_index[gop.keyframe]
    expected = iter(sorted(index.display_index[index.pts[number]] for number in gop.packets))
    for frame in _frames_of_gop(stream, index, gop, skipping):
        current = index.display_index.get(frame.pts)
        if current is None or frame.is_corrupt or frame.interlaced_frame:  # interlaced: a packet may be half a frame
            raise _IndexMismatch
        for missing in takewhile(lambda other, current=current: other != current, expected):
            skipped = skipping and missing not in collector.rows
            if missing == first or missing > first and not skipped:
                raise _IndexMismatch
        if current >= first and current in collector.rows:  # earlier ones may lack reference frames of the last GOP
            add(current, frame)


def _frames_of_gop(stream: VideoStream, index: VideoIndex, gop: Gop, skipping: bool) -> Iterator[VideoFrame]:
    first, last = gop.packets[0], gop.packets[-1]
    stream.container.seek(gop.seek_time, stream=stream)
    for packet in stream.container.demux(stream):
        number = index.packet_index.get(packet.pts)
        if number is None or number > last:
            raise _IndexMismatch
        if number < first:
            continue  # some containers seek to an earlier packet
        if skipping:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in gop.wanted else "NONREF"
        yield from packet.decode()
        if number == last:
            yield from stream.decode(None)
            return
