"""Index a video from its packets, without decoding: its frames, their PTS, and the keyframe that each one needs."""

from __future__ import annotations

import io
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import BinaryIO, NamedTuple

import av
from av.video.stream import VideoStream

from .video_source_pllava import Source

# Codecs in which each packet holds exactly one shown frame, except for the packets that `_shows_frame` detects.
INDEXED_CODECS = {"av1", "h264", "hevc", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"}


class Gop(NamedTuple):
    """The part of a group of pictures to decode, from its keyframe to its last wanted frame in decode order."""

    keyframe: int  # PTS
    seek_time: int
    packets: range  # packet indices
    wanted: set[int]  # PTS


@dataclass
class VideoIndex:
    """
    What the packets of a video stream say about its frames. Lists are in decode order, times in the stream's time
    base. Where the index is trusted, `display_order` holds the PTS of all frames in display order, and
    `display_index` and `packet_index` map a PTS to the frame's number in display order and in decode order.
    """

    pts: list[int | None] = field(default_factory=list)
    keyframes: list[int | None] = field(default_factory=list)  # PTS
    seek_times: list[int | None] = field(default_factory=list)  # of the keyframes
    seconds: float = 0.0  # from the first frame's start to the last one's end
    trusted: bool = True  # each packet is one shown frame with a PTS of its own
    damaged: bool = False  # packets are broken or missing
    expected_frames: int = 0  # by the headers of a file that ends early; else 0

    def finish(self) -> None:
        """Derive the display order after all packets were added. Clears `trusted` if the PTS do not define one."""
        self.trusted &= not self.damaged and None not in self.pts and len(set(self.pts)) == len(self.pts) > 0
        if self.trusted:
            self.display_order = sorted(self.pts)
            self.display_index = {pts: number for number, pts in enumerate(self.display_order)}
            self.packet_index = {pts: number for number, pts in enumerate(self.pts)}
            # Frames shown before the first keyframe refer to frames that were cut away: decoders drop some of them.
            self.trusted = self.keyframes[:1] == self.pts[:1] == self.display_order[:1]
            self.trusted &= self.keyframes == sorted(self.keyframes)

    def gops(self, display_indices: Iterable[int]) -> Iterator[Gop]:
        """Yield what to decode for these frames: one GOP for each keyframe that is needed."""
        groups: dict[int, set[int]] = {}
        for pts in (self.display_order[number] for number in display_indices):
            # By PTS: a frame that follows a keyframe in the file but is shown before it needs the previous keyframe.
            groups.setdefault(bisect_right(self.keyframes, pts) - 1, set()).add(pts)
        for number, wanted in groups.items():
            keyframe, last = self.keyframes[number], max(self.packet_index[pts] for pts in wanted)
            yield Gop(keyframe, self.seek_times[number], range(self.packet_index[keyframe], last + 1), wanted)


def read_index(stream: VideoStream) -> VideoIndex:
    """Read all packets without decoding them. A file that breaks off raises no error: `damaged` is set."""
    container, codec = stream.container, stream.codec_context.name
    # AVI stores no PTS; ffmpeg makes them up, and gets them wrong where frames are reordered.
    reordered_avi = container.format.name == "avi" and stream.codec_context.has_b_frames
    index = VideoIndex(trusted=codec in INDEXED_CODECS and not reordered_avi)
    end, other_tracks_end = 0, 0.0
    try:
        # Without a duration of its own, a track is compared with the container's, which is that of the longest track.
        for packet in container.demux([stream] if stream.duration else list(container.streams)):
            pts = packet.pts
            if packet.stream is not stream:
                other_tracks_end = max(other_tracks_end, float((pts or 0) * packet.time_base))
            elif packet.is_discard:
                index.trusted = False  # cut by an edit list: decoded but not shown
            elif packet.size:
                index.pts.append(pts)
                end = end if pts is None else max(end, pts + (packet.duration or 0))
                if packet.is_keyframe:
                    index.keyframes.append(pts)
                    index.seek_times.append(pts if packet.dts is None else packet.dts)
                index.damaged |= packet.is_corrupt
                index.trusted &= _shows_frame(codec, packet)
    except av.FFmpegError:
        index.damaged = True
    if container.format.name == "mpegts" and all(container.size % size for size in (188, 192, 204)):
        index.damaged = True  # a transport stream has no duration in a header, but consists of whole packets
    start = min((pts for pts in index.pts if pts is not None), default=end)
    start, end = float(start * stream.time_base), float(end * stream.time_base)
    index.seconds = end - start
    index.expected_frames = _expected_frames(stream, index, start, max(end, other_tracks_end))
    index.finish()
    return index


def _shows_frame(codec: str, packet: av.Packet) -> bool:
    """Return whether a packet shows a frame. VP8 and VP9 have hidden frames; MPEG-4 repeats a frame by a tiny one."""
    data = memoryview(packet)
    if codec == "vp8":
        return bool(data[0] & 0x10)
    if codec == "vp9":  # a shown frame, a reference to an earlier one, or a superframe of which the last is shown
        return bool(data[0] & 0x0A) or data[-1] & 0xE0 == 0xC0
    return codec != "mpeg4" or len(data) >= 20


def _expected_frames(stream: VideoStream, index: VideoIndex, start: float, end: float) -> int:
    """Return the frame count by the headers if it clearly exceeds that of `index`, else 0. Times are in seconds."""
    expected_end = end
    if stream.duration:
        expected_end = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    elif stream.container.duration:
        expected_end = stream.container.duration / av.time_base  # counts from 0, even if the first packet is later
    count, rate = len(index.pts), float(stream.average_rate or 0)
    # Headers round, and the duration of the last frame is often a guess.
    if (expected_end - end) * rate < 2 + 0.02 * count and not index.damaged:
        return 0
    return max(stream.frames, round((expected_end - start) * rate))


# --- checks of a file's own structure --------------------------------------------------------------------------------

# Boxes in which ffmpeg looks for further boxes. It accepts "free" and "hoov" for "moov".
MP4_CONTAINERS = set(
    b"moov trak mdia minf stbl moof traf mvex edts dinf udta tref ilst wave sinf schi iprp ipco free hoov".split()
)


def check_claimed_samples(source: Source) -> None:
    """
    Raise `VideoDecodeError` if the tracks and fragments of an mp4 claim more samples than the file has bytes. ffmpeg
    allocates memory for each claimed sample when it opens the file, wherever in the headers the sample table is.
    """
    with source.open() as file:
        for claimed in accumulate(_claimed_samples(file, source.size)):
            if claimed > source.size:
                raise source.error(f"its header claims {claimed:,} samples, which is more than it has bytes")


def _claimed_samples(file: BinaryIO, end: int) -> Iterator[int]:
    """Yield the sample counts of the sample tables in the mp4 boxes between the file's position and `end`."""
    while len(header := file.read(8)) == 8 and (start := file.tell() - 8) < end:
        size, kind = struct.unpack(">I4s", header)
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
            size = 0 if size == 8 else size  # ffmpeg reads it this way
        if size == 0:
            size = end - start
        if size < 8:
            return
        yield from _claimed_in_box(kind, file, min(start + size, end))
        file.seek(min(start + size, end))


def _claimed_in_box(kind: bytes, file: BinaryIO, end: int) -> Iterator[int]:
    """Yield the sample counts in one box. The file's position is at the start of the box's content."""
    if kind in MP4_CONTAINERS:
        yield from _claimed_samples(file, end)
    elif kind in (b"stsz", b"stz2", b"trun"):
        fields = file.read(12)
        yield int.from_bytes(fields[4:8] if kind == b"trun" else fields[8:12], "big")
    elif kind == b"meta":  # its boxes begin with "hdlr"
        while file.tell() < end and (word := file.read(4)) and word != b"hdlr":
            pass
        file.seek(-8, 1)
        yield from _claimed_samples(file, end)
    elif kind in (b"stsd", b"iref"):  # each entry has boxes after fields whose length depends on the codec
        start = file.tell()
        for match in re.finditer(b"(?=(stsz|stz2|trun|cmov))", file.read(end - start)):
            file.seek(start + match.start() + 4)
            yield from _claimed_in_box(match[1], file, end)
    elif kind == b"cmov":  # a compressed moov; ffmpeg allocates the length that it claims
        length = int.from_bytes(file.read(24)[20:], "big")
        yield length // 8  # ffmpeg's entry for a sample takes more than 8 bytes
        moov = zlib.decompressobj().decompress(file.read(end - file.tell()), length or 1)
        yield from _claimed_samples(io.BytesIO(moov), len(moov))


def is_whole_gif(file: BinaryIO) -> bool:
    """Return whether the blocks of a GIF end with its trailer. ffmpeg does not report a GIF that breaks off."""

    def skip_palette(flags: int) -> None:
        file.seek(3 << (flags & 7) + 1 if flags & 0x80 else 0, 1)

    def skip_data() -> None:
        while (length := file.read(1)) > b"\0":
            file.seek(length[0], 1)

    skip_palette((file.read(13) + bytes(13))[10])
    while (kind := file.read(1)) in (b"\x21", b"\x2c"):  # an extension or an image
        if kind == b"\x2c":
            skip_palette((file.read(9) + bytes(9))[8])
        file.seek(1, 1)  # the extension's label, or the image's code size
        skip_data()
    return kind == b"\x3b"
