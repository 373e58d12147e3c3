"""The limits of the gate for media, and the error that it raises."""

from dataclasses import dataclass

from ..video_source_pllava import MAX_PIXELS


class MediaRefused(ValueError):
    """
    A medium is not read. The message is one sentence for the person who asked, with the remedy. It names the medium
    as that person wrote it, without a URL's secrets, and shows no other path of this machine.
    """


@dataclass(frozen=True)
class MediaLimits:
    """
    What a medium from strangers may cost. All but the last two are checked before a frame is decoded.

    Args:
        max_bytes: Size of a file. It is counted while the file arrives, whatever its sender claims.
        max_seconds: Duration of a video.
        max_frames: Frames of a video, not of those that are sampled.
        max_pixels: Pixels of a frame or an image.
        max_tracks: Tracks of a file: video, sound, subtitles.
        fetch_seconds: Time for a download with its redirects, however slowly the server sends.
        decode_seconds: Time that the decoding process may take.
        decode_memory: Memory in bytes that the decoding process may take beyond what its libraries take.
    """

    max_bytes: int = 256 << 20
    max_seconds: float = 3600
    max_frames: int = 60_000  # half an hour at 30 frames a second
    max_pixels: int = MAX_PIXELS
    max_tracks: int = 32
    fetch_seconds: float = 120
    decode_seconds: float = 60
    decode_memory: int = 2 << 30
