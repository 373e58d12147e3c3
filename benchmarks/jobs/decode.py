"""From an encoded clip to 16 frames, beside transformers' PyAV reader, torchcodec and decord."""

import hashlib
from collections.abc import Callable
from functools import partial

import av
import numpy as np
from measuring import FLOOR, OURS, Contender, Job, LeftOutError, Round, Setting, Step
from transformers.video_utils import VideoMetadata, load_video

from jobs.clips import LONG, SHORT, make_clip
from jobs.models import FRAMES
from pllava.video_decoding_pllava import load_frames

Reader = Callable[[str], np.ndarray]


def segment_midpoints(metadata: VideoMetadata, **_) -> list[int]:
    segment = (metadata.total_num_frames - 1) / FRAMES
    return [int(segment / 2 + np.round(segment * i)) for i in range(FRAMES)]


def ours() -> Reader:
    return lambda path: load_frames(path, segment_midpoints)[0]


def transformers_pyav() -> Reader:
    """Transformers' own reader, which needs a frame count in the header: webm and mkv have none."""
    return lambda path: load_video(path, sample_indices_fn=segment_midpoints, backend="pyav")[0]


def torchcodec_reader(threads: int) -> Reader:
    from torchcodec.decoders import VideoDecoder

    def read(path: str) -> np.ndarray:
        decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=threads)
        metadata = VideoMetadata(total_num_frames=len(decoder))
        return decoder.get_frames_at(indices=segment_midpoints(metadata)).data.numpy()

    return read


def decord_reader() -> Reader:
    import decord

    def read(path: str) -> np.ndarray:
        reader = decord.VideoReader(path)
        return reader.get_batch(segment_midpoints(VideoMetadata(total_num_frames=len(reader)))).asnumpy()

    return read


READERS = {
    OURS: ours,
    "transformers, PyAV": transformers_pyav,
    "torchcodec": partial(torchcodec_reader, threads=1),  # the default
    "torchcodec, all threads": partial(torchcodec_reader, threads=0),
    "decord": decord_reader,
}


def prepare(make: Callable[[], Reader], clip: str, setting: Setting) -> Step:
    av.logging.set_level(None)
    path = str(make_clip(setting.cache, clip))
    try:
        read = make()
    except (ImportError, OSError, RuntimeError) as error:  # ffmpeg's shared libraries may be missing
        raise LeftOutError(f"cannot be imported: {str(error).splitlines()[0]}") from None

    def run() -> Round:
        frames = read(path)
        if len(frames) != FRAMES:
            raise ValueError(f"gives {len(frames)} frames instead of {FRAMES}")
        return {"result": hashlib.sha256(frames.tobytes()).hexdigest()}

    return Step(run)


def prepare_floor(clip: str, setting: Setting) -> Step:
    """Decode what has to be decoded."""
    with av.open(str(make_clip(setting.cache, clip))) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        name, extradata = stream.codec_context.name, stream.codec_context.extradata
    gops, wanted = needed_packets(packets)

    def run() -> None:
        decoder = av.CodecContext.create(name, "r")
        decoder.extradata, decoder.thread_type, decoder.thread_count = extradata, "NONE", 1
        for gop in gops:
            for packet in gop:
                decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                decoder.decode(packet)
            decoder.decode(None)
            decoder.flush_buffers()

    return Step(run, shared=True)


def needed_packets(packets: list[av.Packet]) -> tuple[list[list[av.Packet]], set[int | None]]:
    """Return of each wanted GOP the packets up to its last wanted frame, and the PTS of all wanted frames."""
    shown = sorted(range(len(packets)), key=lambda index: packets[index].pts or 0)
    wanted = {shown[index] for index in segment_midpoints(VideoMetadata(total_num_frames=len(packets)))}
    starts = [index for index, packet in enumerate(packets) if packet.is_keyframe]
    gops = []
    for start, end in zip(starts, [*starts[1:], len(packets)], strict=True):
        if inside := [index for index in wanted if start <= index < end]:
            gops.append(packets[start : max(inside) + 1])
    return gops, {packets[index].pts for index in wanted}


def cases(setting: Setting) -> dict[str, dict[str, Contender]]:
    clips = SHORT if setting.size == "tiny" else LONG
    readers = {clip: {name: partial(prepare, make, clip) for name, make in READERS.items()} for clip in clips}
    return {clip: {FLOOR: partial(prepare_floor, clip), **contenders} for clip, contenders in readers.items()}


JOB = Job(
    "Decoding a clip: from the file to 16 RGB frames at the midpoints of segments. The limit (floor) decodes the "
    "packets of the wanted GOPs up to the last wanted frame, without non-reference frames that nobody wants, without "
    "reading the file and without conversion to RGB; its time is that of one thread, shared by all cores.",
    "floor",
    cases,
    {"torchcodec": "decodes with one thread, its default; a second row has all threads"},
    {
        OURS: "The frames of one GOP wait for each other, so one core decodes most of them; opening the file, its "
        "index and the conversion to RGB are not in the limit."
    },
)
