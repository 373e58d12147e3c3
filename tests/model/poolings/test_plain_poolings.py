"""Each pooling against torch's own, or against a slow one that is written from the paper."""

import numpy as np
import plain_poolings
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool3d

from pllava.pooling_pllava import POOLINGS, AveragePooling, MergePooling, Pooling, average, parse_pooling

# frames, rows, columns of the tokens, and of the pooled ones: even, odd, prime, one, and more than there are
AVERAGES = [
    ((4, 6, 6), (4, 3, 3)),
    ((16, 24, 24), (16, 12, 12)),
    ((16, 27, 27), (16, 14, 14)),
    ((7, 27, 27), (3, 13, 13)),
    ((5, 7, 7), (2, 3, 5)),
    ((4, 6, 6), (1, 1, 1)),
    ((4, 6, 6), (4, 6, 6)),
    ((4, 6, 6), (3, 4, 5)),
    ((4, 6, 6), (8, 7, 9)),
    ((1, 5, 5), (4, 3, 3)),
    ((3, 5, 5), (7, 11, 2)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "shape"), AVERAGES, ids=str)
def test_average_is_adaptive_average_pooling(size: tuple, shape: tuple, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(*size, 8, dtype=dtype, requires_grad=True)
    weights = torch.randn(*shape, 8, dtype=dtype)
    expected = adaptive_avg_pool3d(tokens.permute(3, 0, 1, 2), shape).permute(1, 2, 3, 0)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), tokens)
    pooled = average(tokens, shape)
    (gradient,) = torch.autograd.grad((pooled * weights).sum(), tokens)
    # Of the rounding of bfloat16, three axes make three, torch's pooling one
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(pooled, expected, **tolerance)
    torch.testing.assert_close(gradient, expected_gradient, **tolerance)


def random_case(name: str, seed: int) -> tuple[torch.Tensor, Pooling]:
    """Frames of a random number and size, and a pooling of them in a random shape."""
    rng = np.random.default_rng(seed)
    frames, side = int(rng.integers(1, 13)), int(rng.integers(1, 8))
    kind = POOLINGS[name]
    counts = [1 + int(rng.integers(frames)) for _ in range(kind.num_paths)]
    shapes = [(count, *(1 + rng.integers(side + 2, size=2)).tolist()) for count in counts]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(frames, side, side, 5, generator=generator, dtype=torch.float64)
    return tokens, kind(shapes[0] if kind.num_paths == 1 else shapes)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_and_their_gradients_are_those_of_the_papers(name: str, seed: int) -> None:
    tokens, pooling = random_case(name, seed)
    tokens.requires_grad_()
    expected, pooled = plain_poolings.pool(tokens, name, pooling.shapes), pooling([tokens])
    assert pooled.shape == (pooling.num_tokens, 5)
    torch.testing.assert_close(pooled, expected)
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((pooled * weights).sum(), tokens)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), tokens)
    torch.testing.assert_close(gradient, expected_gradient)


def test_merge_keeps_what_changes() -> None:
    """Of a still clip in which one frame flashes, the flash stays a token of its own."""
    still, flash = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    tokens = torch.stack([flash if frame == 9 else still for frame in range(16)]).view(16, 1, 1, 2)
    assert MergePooling((3, 1, 1))([tokens]).tolist() == [[1, 0], [0, 1], [1, 0]]
    averaged = AveragePooling((3, 1, 1))([tokens])
    assert averaged[1, 1] < 0.2


def test_merge_of_too_few_frames_repeats_them() -> None:
    tokens = torch.randn(2, 3, 3, 4)
    merged = MergePooling((5, 3, 3))([tokens]).unflatten(0, (5, 3, 3))
    torch.testing.assert_close(merged, tokens[[0, 0, 0, 1, 1]])


@pytest.mark.parametrize("name", POOLINGS)
def test_chunks_of_frames_make_no_difference(name: str) -> None:
    tokens = torch.randn(23, 5, 5, 4)
    pooling = parse_pooling(name, 23, 5)
    torch.testing.assert_close(pooling(tokens.split(7)), pooling([tokens]), rtol=0, atol=0)


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_are_deterministic(name: str) -> None:
    torch.manual_seed(0)
    tokens, pooling = torch.randn(11, 7, 7, 4, requires_grad=True), parse_pooling(name, 11, 7)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        pooled = pooling([tokens])
        return pooled, *torch.autograd.grad(pooled.square().sum(), tokens)

    torch.use_deterministic_algorithms(True)  # an operation that is not would raise an error
    try:
        first, second = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_compile_to_one_graph(name: str) -> None:
    tokens, pooling = torch.randn(6, 5, 5, 4), parse_pooling(name, 6, 5)
    compiled = torch.compile(lambda frames: pooling([frames]), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), pooling([tokens]))


@pytest.mark.parametrize("name", POOLINGS)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    torch.manual_seed(0)
    tokens, pooling = torch.randn(9, 5, 5, 32).bfloat16(), parse_pooling(name, 9, 5)
    pooled = pooling([tokens])
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), pooling([tokens.float()]), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("text", "frames", "grid", "expected"),
    [
        ("average", 16, 24, "average-16x12x12"),  # the paper's
        ("average", 16, 27, "average-16x14x14"),  # SigLIP's
        ("merge", 16, 24, "merge-8x12x12"),
        ("average-8x6x6", 16, 24, "average-8x6x6"),
        ("slowfast-4x12x24+16x4x4", 16, 24, "slowfast-4x12x24+16x4x4"),
    ],
)
def test_notation_is_read_and_written(text: str, frames: int, grid: int, expected: str) -> None:
    pooling = parse_pooling(text, frames, grid)
    assert str(pooling) == expected == str(parse_pooling(expected, frames, grid))
    assert pooling.num_frames == frames


def test_preset_of_slowfast_is_that_of_the_paper() -> None:
    """3,680 tokens of 50 frames."""
    pooling = parse_pooling("slowfast", 50, 24)
    assert pooling.num_tokens == 3680
    (slow, *slow_grid), fast = pooling.shapes
    assert slow == 10 and sorted(slow_grid) == [12, 24] and fast == (50, 4, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max", "average, slowfast, merge"),
        ("average-16", "three positive integers"),
        ("average-16x12", "three positive integers"),
        ("average-0x12x12", "three positive integers"),
        ("average-16x12x12+1x1x1", "three positive integers"),
        ("slowfast-16x12x12", "for each of 2 paths"),
        ("merge-axbxc", "frames x rows x columns"),
        ("average-", "frames x rows x columns"),
    ],
)
def test_wrong_notation_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pooling(text, 16, 24)
