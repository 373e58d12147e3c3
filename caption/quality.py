"""What is noticed about captions: those that repeat themselves or were cut off, and clips that look alike."""

import zlib
from array import array
from collections.abc import Iterable
from functools import cache

import torch

from .clips import Row

# Above this ratio of compression a text repeats itself (Whisper's threshold, arXiv 2212.04356, section 4.5)
MAX_COMPRESSION = 2.4
EMBEDDING_SIZE = 64
BLOCK = 4096  # clips that are compared with as many others at once
# How a caption with flags is made again: with a penalty on what was said before, and twice the length
RETRY_OPTIONS = {"repetition_penalty": 1.2}
RETRY_LENGTH = 2


def find_flags(caption: str, truncated: bool) -> list[str]:
    """Return what is wrong with a caption: "empty", "truncated" (at the length limit), "repetition"."""
    content = caption.encode()
    repeats = len(content) > MAX_COMPRESSION * len(zlib.compress(content))
    found = {"empty": not caption, "truncated": truncated, "repetition": repeats}
    return [flag for flag, is_found in found.items() if is_found]


def embed(tokens: torch.Tensor) -> list[float]:
    """
    Return the direction of a clip's mean token, `(tokens, D)`, projected to 64 numbers. A random projection keeps
    angles: a cosine of 0.95 to about 0.01 (Johnson and Lindenstrauss).
    """
    mean = tokens.float().mean(0).cpu()
    projected = torch.nn.functional.normalize(mean @ _projection(len(mean)), dim=0)
    return [round(value, 4) for value in projected.tolist()]


@cache
def _projection(size: int) -> torch.Tensor:
    return torch.randn(size, EMBEDDING_SIZE, generator=torch.Generator().manual_seed(0))


class NearestClips:
    """
    Finds for each clip the one that looks most alike, among the clips of rows that have an "embedding".

    All pairs are compared, on the accelerator if there is one: for a million clips, 1e12 cosines of 64 numbers, which
    are 1.3e14 operations. In memory are the embeddings, 256 MB for a million clips, the names, and 64 MB of cosines.

    Args:
        rows: Rows with captions. A clip may have several.
    """

    def __init__(self, rows: Iterable[Row]):
        self._numbers: dict[int, int] = {}  # of clips, by a hash of what they are
        self._names: list[str] = []
        values, without = array("f"), set()
        for row in rows:
            key = _clip_key(row)
            if "embedding" not in row:
                without.add(key)
            elif key not in self._numbers:
                self._numbers[key] = len(self._names)
                self._names.append(_clip_name(row))
                values.extend(row["embedding"])
        vectors = torch.frombuffer(values, dtype=torch.float32) if values else torch.empty(0)
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self._cosines, self._nearest = find_nearest(vectors.reshape(-1, EMBEDDING_SIZE).to(device))
        self.without_embedding = len(without - self._numbers.keys())

    def add_to(self, row: Row) -> Row:
        """Return the row with "similar_to" and "similarity", the cosine of both, at most 1."""
        number = self._numbers.get(_clip_key(row))
        if number is None or len(self._names) < 2:
            return row
        cosine = min(round(float(self._cosines[number]), 3), 1.0)
        return {**row, "similar_to": self._names[self._nearest[number]], "similarity": cosine}


def find_nearest(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return for each of these vectors of length 1, `(N, D)`, its largest cosine with another one, and the index of that.
    """
    cosines = vectors.new_full((len(vectors),), -2.0)
    nearest = torch.zeros_like(cosines, dtype=torch.long)
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, start + BLOCK)
        for other in range(0, len(vectors), BLOCK):
            block = vectors[rows] @ vectors[other : other + BLOCK].T
            if other == start:
                block.fill_diagonal_(-2.0)  # not the clip itself
            best, index = block.max(1)
            nearest[rows] = torch.where(best > cosines[rows], index + other, nearest[rows])
            cosines[rows] = torch.maximum(best, cosines[rows])
    return cosines.cpu(), nearest.cpu()


def _clip_key(row: Row) -> int:
    return hash((row["sha256"] or row["video"], row.get("start"), row.get("end")))


def _clip_name(row: Row) -> str:
    name, start, end = row.get("path", row["video"]), row.get("start"), row.get("end")
    if (start, end) == (None, None):
        return name
    return f"{name} ({start or 0:g} s to {'the end' if end is None else f'{end:g} s'})"
