"""Which videos browsers play."""

from typing import BinaryIO

import av

from ..video_decoding_pllava import FORMATS

# What current versions of Chromium, Firefox and Safari all play, with 8 bits
VIDEO_CODECS = {".mp4": {"h264", "av1"}, ".webm": {"vp8", "vp9", "av1"}}
AUDIO_CODECS = {".mp4": {"aac", "mp3"}, ".webm": {"opus", "vorbis"}}
PIXEL_FORMATS = {"yuv420p", "yuvj420p"}


def played_suffix(file: BinaryIO) -> str:
    """
    Return the suffix under which browsers play a video as it is, ".mp4", ".webm" or ".gif", and "" if they do not. The
    file's position is as it was.
    """
    position = file.tell()
    file.seek(0)
    is_webm = b"webm" in file.read(64)  # ffmpeg calls Matroska and WebM the same
    file.seek(position)
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}  # it must not make ffmpeg open another file
    try:
        with av.open(file, container_options=options) as container:
            names, video, audio = container.format.name.split(","), container.streams.video, container.streams.audio
            if "gif" in names:
                return ".gif"
            suffix = ".webm" if is_webm else ".mp4" if "mp4" in names else ""
            plays = suffix and len(video) == 1 and _codec(video[0]) in VIDEO_CODECS[suffix]
            plays = plays and all(_codec(each) in AUDIO_CODECS[suffix] for each in audio)
            return suffix if plays and video[0].codec_context.pix_fmt in PIXEL_FORMATS else ""
    except av.FFmpegError:
        return ""
    finally:
        file.seek(position)


def _codec(stream: av.stream.Stream) -> str | None:
    """Return the name of a stream's codec, whichever decoder it has; None without one."""
    return stream.codec_context and stream.codec_context.codec.canonical_name
