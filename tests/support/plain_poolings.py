"""The poolings, written from the papers: one frame, place or token at a time. Slow, and without any trick."""

import math

import torch
from torch import Tensor


def block(index: int, count: int, size: int) -> range:
    """The positions that are averaged to the one at `index` of `count`."""
    return range(index * size // count, math.ceil((index + 1) * size / count))


def mean(tokens: list[Tensor]) -> Tensor:
    return torch.stack(tokens).mean(0)


def average_frame(frame: Tensor, rows: int, columns: int) -> Tensor:
    """`(H, W, D)` -> `(rows, columns, D)`."""
    height, width, _ = frame.shape
    pooled = []
    for row in range(rows):
        for column in range(columns):
            places = [(y, x) for y in block(row, rows, height) for x in block(column, columns, width)]
            pooled.append(mean([frame[place] for place in places]))
    return torch.stack(pooled).unflatten(0, (rows, columns))


def average(frames: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """PLLaVA (arXiv 2404.16994, section 3.2)."""
    count, rows, columns = shape
    pooled = [average_frame(frame, rows, columns) for frame in frames]
    blocks = [mean([pooled[index] for index in block(number, count, len(frames))]) for number in range(count)]
    return torch.cat([frame.flatten(0, 1) for frame in blocks])


def slowfast(frames: Tensor, slow: tuple[int, int, int], fast: tuple[int, int, int]) -> Tensor:
    """SlowFast-LLaVA (arXiv 2407.15841, section 3.2): frames at equal steps in detail, then all frames coarsely."""
    tokens = []
    for number in range(slow[0]):
        frame = frames[math.floor(number * len(frames) / slow[0])]
        tokens.append(average_frame(frame, *slow[1:]).flatten(0, 1))
    return torch.cat([*tokens, average(frames, fast)])


def merge(frames: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """
    MA-LMM (arXiv 2404.05726, section 3.2): at each place, the two most alike tokens that follow each other become
    one, weighted by the frames that they stand for, until `shape[0]` are left.
    """
    count, rows, columns = shape
    pooled = [average_frame(frame, rows, columns) for frame in frames]
    grid = [[None] * (rows * columns) for _ in range(count)]
    for place in range(rows * columns):
        bank = [(frame[place // columns, place % columns], 1) for frame in pooled]
        while len(bank) > count:
            cosines = [cosine(bank[i][0], bank[i + 1][0]) for i in range(len(bank) - 1)]
            best = cosines.index(max(cosines))
            (first, covered), (second, added) = bank[best : best + 2]
            token = (first * covered + second * added) / (covered + added)
            bank[best : best + 2] = [(token, covered + added)]
        for number, (token, _) in enumerate(bank):
            grid[number][place] = token
    return torch.stack([token for frame in grid for token in frame])


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def pool(frames: Tensor, name: str, shapes: list[tuple[int, int, int]]) -> Tensor:
    """`(frames, rows, columns, D)` -> `(tokens, D)`."""
    return {"average": average, "slowfast": slowfast, "merge": merge}[name](frames, *shapes)
