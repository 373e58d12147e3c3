"""
Poolings: ways from the visual tokens of a clip's frames to fewer tokens of the clip. They have no parameters, so an
unchanged checkpoint can take any of them, and the number of tokens is known before a video is read.

    average   PLLaVA (arXiv 2404.16994): means over blocks of frames, rows and columns
    slowfast  SlowFast-LLaVA (arXiv 2407.15841): few frames in detail, then all frames coarsely
    merge     MA-LMM (arXiv 2404.05726): alike neighbours in time become one token, up to a fixed number
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

POOLING_KEYS = ("pooling", "pooling_shape", "image_pooling_shape")  # of a config and of a processor
Shape = Sequence[int]  # frames, rows, columns


def average(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """
    Adaptive average pooling of the first axes to `shape`: `(..., D)` -> `(*shape, D)`. It equals torch's
    `adaptive_avg_pool3d`, whose backward pass is not deterministic on a GPU; this one is.
    """
    for axis, (size, pooled) in enumerate(zip(tokens.shape, shape, strict=False)):
        if size % pooled == 0:
            tokens = tokens.unflatten(axis, (pooled, size // pooled)).mean(axis + 1) if size > pooled else tokens
            continue
        output, position = (torch.arange(count, device=tokens.device) for count in (pooled, size))
        starts, ends = output * size // pooled, -(-(output + 1) * size // pooled)
        windows = (starts[:, None] <= position) & (position < ends[:, None])
        windows = windows.to(tokens)  # of 0 and 1, which are exact in each dtype
        sums = torch.tensordot(windows, tokens, dims=([1], [axis])).movedim(0, axis)
        tokens = sums / windows.sum(1).view(-1, *[1] * (tokens.ndim - 1 - axis))
    return tokens


class Pooling(ABC):
    """
    Args:
        shapes: Frames, rows and columns of the tokens of each path; a pooling with one path takes its shape alone.
        num_frames: The frames of a shorter clip are repeated up to this number.

    Raises:
        ValueError: if the shapes are not as many triples of positive integers as the pooling has paths.
    """

    name: str
    num_paths = 1

    def __init__(self, shapes: Shape | Sequence[Shape], num_frames: int = 1):
        self.shapes = [tuple(shapes)] if self.num_paths == 1 else [tuple(shape) for shape in shapes]
        self.num_frames = num_frames
        sizes = [size for shape in self.shapes for size in shape]
        if len(sizes) != 3 * self.num_paths or not all(isinstance(size, int) and size > 0 for size in sizes):
            paths = "" if self.num_paths == 1 else f" for each of {self.num_paths} paths"
            raise ValueError(
                f"The shape of the pooling {self.name!r} is (frames, rows, columns), three positive integers{paths}; "
                f"got {shapes}"
            )

    @staticmethod
    @abstractmethod
    def preset(num_frames: int, grid: int) -> Shape | list[Shape]:
        """The shapes for clips of `num_frames` frames with `grid` rows and columns of patches."""

    @property
    def shape(self) -> list[int] | list[list[int]]:
        """The `pooling_shape` of a config."""
        return list(self.shapes[0]) if self.num_paths == 1 else [list(shape) for shape in self.shapes]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of each clip."""
        return sum(map(math.prod, self.shapes))

    def __call__(self, chunks: Iterable[Tensor]) -> Tensor:
        """
        Pool a clip.

        Args:
            chunks: The tokens of successive frames, each `(frames, rows, columns, D)`. Each chunk is pooled in space
                before the next one is taken, so that a generator saves memory.

        Returns:
            `(num_tokens, D)`, path by path, in the order of time, rows and columns.
        """
        pooled = ([average(chunk, (len(chunk), *shape[1:])) for shape in self.shapes] for chunk in chunks)
        grids = [repeat_frames(torch.cat(parts), self.num_frames) for parts in zip(*pooled, strict=True)]
        return torch.cat([path.flatten(0, 2) for path in self.pool_time(*grids)])

    @abstractmethod
    def pool_time(self, *grids: Tensor) -> list[Tensor]:
        """Pool over time: of each path `(frames, rows, columns, D)` -> its tokens in `shapes`."""

    def __str__(self) -> str:
        """The notation that `parse_pooling` reads: "slowfast-4x12x24+16x4x4"."""
        return f"{self.name}-{'+'.join('x'.join(map(str, shape)) for shape in self.shapes)}"


class AveragePooling(Pooling):
    """The mean of each block of frames, rows and columns (PLLaVA, arXiv 2404.16994, section 3.2)."""

    name = "average"

    @staticmethod
    def preset(num_frames: int, grid: int) -> Shape:
        return num_frames, -(-grid // 2), -(-grid // 2)  # the paper's 16 x 12 x 12

    def pool_time(self, frames: Tensor) -> list[Tensor]:
        return [average(frames, self.shapes[0][:1])]


class SlowFastPooling(Pooling):
    """
    Two paths, one after the other: every few frames with many tokens, then all frames with few (SlowFast-LLaVA, arXiv
    2407.15841, section 3.2). The preset has the paper's proportions: of 50 frames with 24 x 24 patches, 10 become
    12 x 24 tokens and all become 4 x 4. Its code differs from the paper: it takes the maximum of two columns.
    """

    name = "slowfast"
    num_paths = 2

    @staticmethod
    def preset(num_frames: int, grid: int) -> list[Shape]:
        return [(-(-num_frames // 5), -(-grid // 2), grid), (num_frames, -(-grid // 6), -(-grid // 6))]

    def pool_time(self, slow: Tensor, fast: Tensor) -> list[Tensor]:
        (count, _, _), (fast_count, _, _) = self.shapes
        chosen = [index * len(slow) // count for index in range(count)]
        return [slow[chosen], average(fast, [fast_count])]


class MergePooling(Pooling):
    """
    At each place of the picture, the two tokens that follow each other in time and are most alike (by their cosine)
    become one, until the wanted number is left. Each is the mean of the frames that it stands for. This is the memory
    bank compression of MA-LMM (arXiv 2404.05726, section 3.2), with all frames at hand.
    """

    name = "merge"

    @staticmethod
    def preset(num_frames: int, grid: int) -> Shape:
        return -(-num_frames // 2), -(-grid // 2), -(-grid // 2)

    def pool_time(self, frames: Tensor) -> list[Tensor]:
        count = self.shapes[0][0]
        places = repeat_frames(frames, count).flatten(1, 2).transpose(0, 1)  # (places, frames, D)
        runs = one_hot(find_runs(places, count), count).to(frames).transpose(1, 2)  # (places, count, frames)
        means = runs @ places / runs.sum(-1, keepdim=True)
        return [means.transpose(0, 1).unflatten(1, frames.shape[1:3])]


@torch.no_grad()
def find_runs(tokens: Tensor, count: int) -> Tensor:
    """Number the runs of alike tokens: `(places, frames, D)` -> `(places, frames)`, from 0 to `count` - 1."""
    places, frames, _ = tokens.shape
    place = torch.arange(places, device=tokens.device)
    sums = tokens.to(torch.float32, copy=True)  # of each run; their cosine is that of the means
    rows = torch.arange(frames, device=tokens.device).repeat(places, 1)  # of the runs in `sums`
    runs, alike = rows, cosine_similarity(sums[:, :-1], sums[:, 1:], dim=-1)
    for length in range(frames - 1, count - 1, -1):
        first = alike.argmax(1)
        sums[place, rows[place, first]] += sums[place, rows[place, first + 1]]
        index, after = torch.arange(length, device=tokens.device), first[:, None]
        runs = runs - (runs > after).long()
        rows = rows.take_along_dim(index + (index > after).long(), 1)
        alike = alike.take_along_dim((index + (index >= after).long())[:, :-1], 1)
        for pair in (first - 1, first) if length > 1 else ():  # the neighbours of the longer run
            pair = pair.clamp(0, length - 2)
            left, right = (sums[place, rows[place, run]] for run in (pair, pair + 1))
            alike[place, pair] = cosine_similarity(left, right, dim=-1)
    return runs


def repeat_frames(frames: Tensor, num_frames: int) -> Tensor:
    """Repeat each of too few frames, as the original code does: two or three become 0, 0, 1, 1 of four."""
    if len(frames) >= num_frames:
        return frames
    return frames.repeat_interleave(num_frames // len(frames) + 1, dim=0)[:num_frames]


POOLINGS: dict[str, type[Pooling]] = {each.name: each for each in (AveragePooling, SlowFastPooling, MergePooling)}


class PoolingMixin:
    """The poolings of a config or a processor: what follows from the values in its JSON file."""

    num_frames: int
    pooling: str
    pooling_shape: Shape | Sequence[Shape]
    image_pooling_shape: Shape | None

    @property
    def video_pooling(self) -> Pooling:
        return find_pooling(self.pooling)(self.pooling_shape, self.num_frames)

    @video_pooling.setter
    def video_pooling(self, pooling: Pooling) -> None:
        self.pooling, self.pooling_shape = pooling.name, pooling.shape

    @property
    def image_pooling(self) -> Pooling:
        shape = self.image_pooling_shape
        return self.video_pooling if shape is None else AveragePooling(shape)

    @property
    def num_video_tokens(self) -> int:
        """Number of tokens per video in the text."""
        return self.video_pooling.num_tokens

    @property
    def num_image_tokens(self) -> int:
        """Number of tokens per image in the text."""
        return self.image_pooling.num_tokens

    def normalize_shapes(self) -> None:
        """Check the shapes and make them lists, as in JSON: what is loaded must equal what was saved."""
        self.pooling_shape = find_pooling(self.pooling)(self.pooling_shape).shape
        self.image_pooling_shape = self.image_pooling_shape and AveragePooling(self.image_pooling_shape).shape


def find_pooling(name: str) -> type[Pooling]:
    """Return the class of the pooling `name`; a `ValueError` if there is none."""
    if name not in POOLINGS:
        raise ValueError(f"{name!r} is not a pooling; there are {', '.join(POOLINGS)}")
    return POOLINGS[name]


def parse_pooling(text: str, num_frames: int = 1, grid: int | None = None) -> Pooling:
    """
    Return the pooling "NAME" in its preset shape, or "NAME-SHAPE", such as "average-16x12x12" or
    "slowfast-4x12x24+16x4x4".

    Args:
        num_frames, grid: Frames of a clip, and rows and columns of patches of a frame, for the preset shape.

    Raises:
        ValueError: if there is no such pooling, or the shape is not as it must be.
    """
    name, dash, shapes = text.partition("-")
    kind = find_pooling(name)
    if not dash and grid is None:
        raise ValueError(f"{text!r}: here a pooling needs its shape, such as average-16x12x12")
    if not dash:
        return kind(kind.preset(num_frames, grid), num_frames)
    try:
        paths = [tuple(int(size) for size in shape.split("x")) for shape in shapes.split("+")]
    except ValueError:
        raise ValueError(f"{text!r}: a shape is frames x rows x columns, such as 16x12x12") from None
    return kind(paths[0] if len(paths) == kind.num_paths == 1 else paths, num_frames)
