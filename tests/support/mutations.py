"""Ways to damage a file. Each takes its content, a source of random numbers, and the content of another file."""

import random
from collections.abc import Callable


def flip_bits(content: bytearray, rng: random.Random, other: bytes) -> bytes:
    for _ in range(rng.choice((1, 3, 10, 100))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def flip_header(content: bytearray, rng: random.Random, other: bytes) -> bytes:
    for _ in range(rng.choice((1, 2, 4))):
        content[rng.randrange(min(len(content), 64))] ^= 1 << rng.randrange(8)
    return content


def write_number(content: bytearray, rng: random.Random, other: bytes) -> bytes:
    """Overwrite four bytes, which may be a size, a count or a time."""
    number = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x1FFFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    start = rng.randrange(max(1, len(content) - 4))
    content[start : start + 4] = number.to_bytes(4, rng.choice(("big", "little")))
    return content


def cut(content: bytearray, rng: random.Random, other: bytes) -> bytes:
    return content[: rng.randrange(1, len(content))]


def cut_out(content: bytearray, rng: random.Random, other: bytes) -> bytes:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice((1, 4, 100, 1000))]
    return content or b"\0"


def blank(content: bytearray, rng: random.Random, other: bytes) -> bytes:
    start = rng.randrange(len(content))
    length = min(rng.choice((4, 100, 2000)), len(content) - start)
    content[start : start + length] = bytes(length)
    return content


def splice(content: bytearray, rng: random.Random, other: bytes) -> bytes:
    """Join the beginning of one file and the end of another."""
    return content[: rng.randrange(1, min(len(content), 2000))] + other[rng.randrange(len(other)) :]


MUTATIONS: list[Callable[[bytearray, random.Random, bytes], bytes]] = [
    flip_bits, flip_header, write_number, write_number, cut, cut_out, blank, splice,
]  # fmt: skip
