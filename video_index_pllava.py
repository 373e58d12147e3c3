"""The index of a video: what its packets tell before anything is decoded.

Which frames there are, when each is shown, and from which keyframe it has to be decoded.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import av
from av.video.stream import VideoStream

# Codecs of which each packet is one frame, save for what `_shows_frame` finds.
INDEXED_CODECS = {"av1", "h264", "hevc", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"}

Group = tuple[int, set[int]]  # number of the keyframe to decode from, the pts of the frames wanted


@dataclass
class PacketIndex:
    """The packets of a video stream in decoding order, read without decoding. Times are in the stream's time base."""

    pts: list[int | None] = field(default_factory=list)
    keyframes: list[int | None] = field(default_factory=list)  # pts
    seek_times: list[int | None] = field(default_factory=list)  # of the keyframes
    seconds: float = 0.0  # from the first frame's start to the last one's end
    trusted: bool = True  # each packet is one shown frame with a time of its own
    damaged: bool = False  # packets are broken or missing
    promised: int = 0  # frames, by the headers of a file that ends early

    def finish(self) -> None:
        """Derive the order of showing; trust it only if it is one."""
        self.trusted &= not self.damaged and None not in self.pts and len(set(self.pts)) == len(self.pts) > 0
        if self.trusted:
            self.shown = sorted(self.pts)
            self.rank = {pts: rank for rank, pts in enumerate(self.shown)}
            self.place = {pts: place for place, pts in enumerate(self.pts)}
            # Frames shown before the first keyframe refer to others that were cut away: decoders drop some of them.
            self.trusted = self.keyframes[:1] == self.pts[:1] == self.shown[:1]
            self.trusted &= self.keyframes == sorted(self.keyframes)

    def groups(self, ranks: Iterable[int]) -> list[Group]:
        """The groups to decode for the frames of these ranks (see `rank`): one for each keyframe that is needed."""
        groups: dict[int, set[int]] = {}
        for pts in (self.shown[rank] for rank in ranks):
            # By time of showing: what follows a keyframe in the file but is shown before it needs the one before.
            groups.setdefault(bisect_right(self.keyframes, pts) - 1, set()).add(pts)
        return list(groups.items())

    def places(self, group: Group) -> range:
        """The places, in decoding order, of the packets to decode for `group`."""
        keyframe, wanted = group
        return range(self.place[self.keyframes[keyframe]], 1 + max(self.place[pts] for pts in wanted))


def read_index(stream: VideoStream) -> PacketIndex:
    """Read all packets and decode none. A file that breaks off raises nothing: the index tells."""
    container, codec = stream.container, stream.codec_context.name
    # AVI stores no times of showing; where frames are reordered, those that ffmpeg makes up are wrong.
    reordered_avi = container.format.name == "avi" and stream.codec_context.has_b_frames
    index = PacketIndex(trusted=codec in INDEXED_CODECS and not reordered_avi)
    end, others_end = 0, 0.0
    try:
        # A track that states no length is held against the container's, which is its longest track's: read them all.
        for packet in container.demux([stream] if stream.duration else list(container.streams)):
            pts = packet.pts
            if packet.stream is not stream:
                others_end = max(others_end, float((pts or 0) * packet.time_base))
            elif packet.is_discard:
                index.trusted = False  # decoded but not shown: it lies before an edit list's cut
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
        index.damaged = True  # a transport stream states no length, but it is made of whole packets
    start = min((pts for pts in index.pts if pts is not None), default=end)
    start, end = float(start * stream.time_base), float(end * stream.time_base)
    index.seconds = end - start
    index.promised = _promised_frames(stream, index, start, max(end, others_end))
    index.finish()
    return index


def _shows_frame(codec: str, packet: av.Packet) -> bool:
    """Whether a packet gives a frame. VP8 and VP9 have hidden ones; in MPEG-4 a tiny one says "as before"."""
    data = memoryview(packet)
    if codec == "vp8":
        return bool(data[0] & 0x10)
    if codec == "vp9":  # shown itself, or showing an earlier one, or several in one packet of which the last is shown
        return bool(data[0] & 0x0A) or data[-1] & 0xE0 == 0xC0
    return codec != "mpeg4" or len(data) >= 20


def _promised_frames(stream: VideoStream, index: PacketIndex, start: float, end: float) -> int:
    """How many frames the headers promise, if clearly more than `index` has, else 0. `start` and `end` in seconds."""
    promised_end = end
    if stream.duration:
        promised_end = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    elif stream.container.duration:
        promised_end = stream.container.duration / av.time_base  # counts from zero, where packets need not start
    count, rate = len(index.pts), float(stream.average_rate or 0)
    # Headers round, and the length of the last frame often is a guess.
    if (promised_end - end) * rate < 2 + 0.02 * count and not index.damaged:
        return 0
    return max(stream.frames, round((promised_end - start) * rate))


# --- what a file says of itself --------------------------------------------------------------------------------------

# Those in which ffmpeg looks for further boxes; that of a moov passes as "free" or "hoov", too.
MP4_CONTAINERS = set(
    b"moov trak mdia minf stbl moof traf mvex edts dinf udta tref ilst wave sinf schi iprp ipco free hoov".split()
)


def claimed_samples(file: BinaryIO, end: int) -> Iterator[int]:
    """
    How many samples each track and fragment of an mp4 claims to have, in the bytes from where `file` is to `end`.
    ffmpeg makes an entry in memory for each on opening, whether there is data for it or not, and wherever in its
    headers the table stands.
    """
    while len(header := file.read(8)) == 8 and (start := file.tell() - 8) < end:
        size, kind = struct.unpack(">I4s", header)
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
            size = 0 if size == 8 else size  # as ffmpeg takes it
        if size == 0:
            size = end - start
        if size < 8:
            return
        yield from _claimed_in_box(kind, file, min(start + size, end))
        file.seek(min(start + size, end))


def _claimed_in_box(kind: bytes, file: BinaryIO, end: int) -> Iterator[int]:
    """As [`claimed_samples`], of a box whose content begins where `file` is."""
    if kind in MP4_CONTAINERS:
        yield from claimed_samples(file, end)
    elif kind in (b"stsz", b"stz2", b"trun"):
        fields = file.read(12)
        yield int.from_bytes(fields[4:8] if kind == b"trun" else fields[8:12], "big")
    elif kind == b"meta":  # has its boxes from the first "hdlr" on
        while file.tell() < end and (word := file.read(4)) and word != b"hdlr":
            pass
        file.seek(-8, 1)
        yield from claimed_samples(file, end)
    elif kind in (b"stsd", b"iref"):  # their entries have boxes behind fields, which are of each codec's own
        start = file.tell()
        for found in re.finditer(b"(?=(stsz|stz2|trun|cmov))", file.read(end - start)):
            file.seek(start + found.start() + 4)
            yield from _claimed_in_box(found[1], file, end)
    elif kind == b"cmov":  # a compressed moov, for which ffmpeg takes the memory that it says
        length = int.from_bytes(file.read(24)[20:], "big")
        yield length // 8  # an entry has more bytes
        moov = zlib.decompressobj().decompress(file.read(end - file.tell()), length or 1)
        yield from claimed_samples(io.BytesIO(moov), len(moov))


def is_whole_gif(file: BinaryIO) -> bool:
    """Whether a GIF's blocks go on to its trailer. ffmpeg says nothing where they break off."""

    def skip_palette(flags: int) -> None:
        file.seek(3 << (flags & 7) + 1 if flags & 0x80 else 0, 1)

    def skip_data() -> None:
        while (length := file.read(1)) > b"\0":
            file.seek(length[0], 1)

    skip_palette((file.read(13) + bytes(13))[10])
    while (kind := file.read(1)) in (b"\x21", b"\x2c"):  # an extension, an image
        if kind == b"\x2c":
            skip_palette((file.read(9) + bytes(9))[8])
        file.seek(1, 1)  # what the extension is, or the size of the image's codes
        skip_data()
    return kind == b"\x3b"
