"""The contents of all files, each stored once under its sha256, and uploads that come in parts."""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.utils import sha

from .replies import HubError

LARGE = 10_000_000  # bytes from which a file is always a large one
LARGE_SUFFIXES = (
    ".safetensors",
    ".parquet",
    ".arrow",
    ".png",
    ".jpg",
    ".gif",
    ".mp4",
    ".webm",
    ".zip",
    ".bin",
    ".npz",
)
File = dict  # sha256, size (in bytes), oid (git's identity of it, the pointer's of a large file), lfs (is it large?)


class Blobs:
    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def size(self, sha256: str) -> int:
        return self.path(sha256).stat().st_size

    def store(self, name: str, source: Path) -> File:
        """Store a copy of a file that lies in a repository as `name`."""
        with source.open("rb") as file:
            sample = file.read(512)
            file.seek(0)
            digest = self.receive(iter(lambda: file.read(1 << 20), b""))
        return self.describe(digest, is_large(name, source.stat().st_size, sample))

    def describe(self, sha256: str, large: bool) -> File:
        size = self.size(sha256)
        content = pointer(sha256, size) if large else self.path(sha256).read_bytes()
        return {"sha256": sha256, "size": size, "oid": sha.git_hash(content), "lfs": large}

    def receive(self, chunks: Iterable[bytes], expected: str | None = None) -> str:
        """Store what comes in, unless it is cut or not what was announced; return its sha256."""
        descriptor, partial = tempfile.mkstemp(dir=self.folder, prefix=".")
        try:
            digest = hashlib.sha256()
            with os.fdopen(descriptor, "wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if expected not in (None, digest.hexdigest()):
                raise HubError(400, f"The content's sha256 is {digest.hexdigest()}, and not {expected}")
            os.replace(partial, self.path(digest.hexdigest()))
        finally:
            Path(partial).unlink(missing_ok=True)
        return digest.hexdigest()

    # --- uploads in parts ---

    def start_parts(self) -> str:
        upload = f".parts-{uuid.uuid4().hex}"
        (self.folder / upload).mkdir()
        return upload

    def receive_part(self, upload: str, number: int, chunks: Iterable[bytes]) -> str:
        """Store a part; return its ETag, which the client sends back to show that it was received."""
        digest = hashlib.md5()
        partial = self.folder / upload / f"{number}.{uuid.uuid4().hex}"
        with partial.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
        os.replace(partial, self.folder / upload / f"{number}-{digest.hexdigest()}")
        return digest.hexdigest()

    def join_parts(self, upload: str, parts: list[tuple[int, str]], sha256: str) -> None:
        paths = [self.folder / upload / f"{number}-{etag}" for number, etag in sorted(parts)]
        absent = [path.name for path in paths if not path.is_file()]
        if absent:
            raise HubError(400, f"These parts were not received: {', '.join(absent)}")
        self.receive((chunk for path in paths for chunk in read_chunks(path)), expected=sha256)
        shutil.rmtree(self.folder / upload)


def read_chunks(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(1 << 20), b"")


def is_large(name: str, size: int, sample: bytes) -> bool:
    """Return whether a file is stored with Git LFS: media and weights, all that is binary, and all that is long."""
    if size > LARGE or name.lower().endswith(LARGE_SUFFIXES):
        return size > 0
    return b"\0" in sample


def pointer(sha256: str, size: int) -> bytes:
    """Return what git stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
