"""What is noticed about captions: those that repeat themselves or were cut off, and clips that look alike."""

import zlib
from collections.abc import Callable, Iterable

import torch

from .clips import Row

# Above this ratio of compression a text repeats itself (Whisper's threshold, arXiv 2212.04356, section 4.5)
MAX_COMPRESSION = 2.4
EMBEDDING_SIZE = 64
BLOCK = 256  # clips that are compared with all others at once
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
    projection = torch.randn(len(mean), EMBEDDING_SIZE, generator=torch.Generator().manual_seed(0))
    projected = torch.nn.functional.normalize(mean @ projection, dim=0)
    return [round(value, 4) for value in projected.tolist()]


def nearest_clips(rows: Iterable[Row]) -> Callable[[Row], Row]:
    """
    Return a function that adds to a row the clip that looks most alike ("similar_to") and the cosine of both
    ("similarity", at most 1), among the clips of `rows` that have an "embedding".
    """
    clips = {
        (row.get("path", row["video"]), row.get("start"), row.get("end")): row["embedding"] for row in _embedded(rows)
    }
    names, vectors = [*clips], torch.tensor([*clips.values()]).reshape(-1, EMBEDDING_SIZE)
    nearest: dict[tuple, tuple[str, float]] = {}
    for start in range(0, len(names), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -1  # not the clip itself
        for offset, (cosine, index) in enumerate(zip(*(part.tolist() for part in cosines.max(1)), strict=True)):
            nearest[names[start + offset]] = _name(names[index]), round(min(cosine, 1.0), 3)
    if len(names) < 2:
        return lambda row: row

    def add(row: Row) -> Row:
        found = nearest.get((row.get("path", row["video"]), row.get("start"), row.get("end")))
        return row if found is None else {**row, "similar_to": found[0], "similarity": found[1]}

    return add


def _embedded(rows: Iterable[Row]) -> Iterable[Row]:
    return (row for row in rows if "embedding" in row)


def _name(clip: tuple[str, float | None, float | None]) -> str:
    name, start, end = clip
    return (
        name
        if (start, end) == (None, None)
        else f"{name} ({start or 0:g} s to {'the end' if end is None else f'{end:g} s'})"
    )
