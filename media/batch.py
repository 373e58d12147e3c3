"""
What batch jobs fetch: captioning and evaluation.

The files, folders and `data:` URIs that the user's own command and data name are read as the library reads them, in
the job's own processes: they are the user's, and decoding them costs what it always did. An http(s) address leads to
what others may change at any time, and may itself stand in data that others wrote. So it goes through the gate, with
the limits for whole films below. Hosts are "*", any public one, unless the user lists others.
"""

import os
from collections.abc import Iterable
from typing import Any

from ..video_source_pllava import MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_SECONDS
from ..workers import DECODE_TIMEOUT
from .gate import MediaGate
from .hosts import ANY_HOST, AllowedHosts
from .limits import MediaLimits
from .places import scheme_of

PUBLIC_HOSTS = (ANY_HOST,)
FILM_LIMITS = MediaLimits(
    max_bytes=MAX_DOWNLOAD_BYTES,
    max_seconds=4 * 3600,
    max_frames=900_000,  # four hours at 60 frames a second
    fetch_seconds=MAX_DOWNLOAD_SECONDS,
    decode_seconds=DECODE_TIMEOUT,
)


def is_remote(video: Any) -> bool:
    """Return whether a video is an http(s) address."""
    return isinstance(video, str | os.PathLike) and scheme_of(os.fsdecode(video)) in ("http", "https")


def gate_for(
    videos: Iterable[Any], allowed_media_domains: Iterable[str] = PUBLIC_HOSTS, others: bool = False
) -> MediaGate | None:
    """
    Return the gate through which a job fetches what is remote of its videos, or None if nothing is.

    Args:
        others: Whether there may be other videos, such as those in lists that are read later.

    Raises:
        ValueError: if an entry of `allowed_media_domains` is not a host.
    """
    AllowedHosts(allowed_media_domains)  # an option is honoured or refused, even if it has no effect this time
    return MediaGate(allowed_media_domains, (), FILM_LIMITS) if others or any(map(is_remote, videos)) else None
