"""Where media may come from: data URIs and files below allowed folders."""

import base64
import binascii
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from .limits import MediaLimits, MediaRefused


def check_bytes(name: str, size: int, limits: MediaLimits) -> None:
    """
    Raises:
        MediaRefused: if a file has no bytes or too many.
    """
    if size > limits.max_bytes:
        raise MediaRefused(f"Cannot read {name}: it has more than {limits.max_bytes:,} bytes. Give a smaller file.")
    if not size:
        raise MediaRefused(f"Cannot read {name}: it is empty. Give a whole file.")


def temporary_file(content: bytes) -> BinaryIO:
    """Return an open file without a name."""
    file = tempfile.TemporaryFile()
    file.write(content)
    file.flush()
    return file


def open_data_uri(uri: str, name: str, limits: MediaLimits) -> BinaryIO:
    """Decode a `data:` URI, after a look at its length."""
    header, comma, data = uri.partition(",")
    if not comma:
        raise MediaRefused(f"Cannot read {name}: it has no comma. Give data:video/mp4;base64,...")
    is_base64 = header.lower().endswith(";base64")
    # Of four characters three bytes; a percent-encoded byte takes three characters
    check_bytes(name, len(data) * 3 // 4 if is_base64 else len(data) // 3 + 1, limits)
    content = unquote_to_bytes(data) if "%" in data or not is_base64 else data.encode("ascii", "replace")
    if is_base64:
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise MediaRefused(f"Cannot read {name}: its base64 is broken ({error}). Encode it again.") from error
    check_bytes(name, len(content), limits)
    return temporary_file(content)


def path_of_url(url: str) -> Path:
    """
    Return the path of a `file:` URL.

    Raises:
        MediaRefused: if it names another machine.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise MediaRefused("Cannot read a file: URL that is malformed. Give file:///folder/clip.mp4.") from None
    if parts.netloc.lower() not in ("", "localhost"):
        raise MediaRefused("Cannot read a file: URL of another machine. Give file:///folder/clip.mp4.")
    return Path(url2pathname(parts.path))


def open_local_file(path: Path, name: str, folders: Iterable[Path], limits: MediaLimits) -> BinaryIO:
    """
    Open a regular file that lies below one of the folders, with all links resolved.

    The file is opened once. What is checked is the open file: its kind, its size, and on Linux the path that the
    kernel knows of it, so that a link that is changed between the check and the opening leads nowhere. Elsewhere only
    the last part of the path cannot become a link. A hard link cannot be told from the file itself.
    """
    refused = MediaRefused(f"Cannot read {name}: it is not a file in a folder that may be read. Upload it instead.")
    folders = [os.path.realpath(folder) for folder in folders]
    try:
        resolved = os.path.realpath(path, strict=True)
        if not _lies_below(resolved, folders) or not stat.S_ISREG(os.stat(resolved).st_mode):
            raise refused
        # Not blocking: it may have become a pipe, whose opening would wait for a writer
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):  # ValueError: a path with a null byte. The same words: whether it exists is not said
        raise refused from None
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    opened = os.readlink(f"/proc/self/fd/{descriptor}") if sys.platform == "linux" else resolved
    if not stat.S_ISREG(status.st_mode) or not _lies_below(opened, folders):
        file.close()
        raise refused
    try:
        check_bytes(name, status.st_size, limits)
    except MediaRefused:
        file.close()
        raise
    return file


def _lies_below(path: str, folders: list[str]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


def scheme_of(reference: str) -> str | None:
    """Return the scheme of a URL, in lower case, or None for a path."""
    match = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*):", reference)
    return match[1].lower() if match else None
