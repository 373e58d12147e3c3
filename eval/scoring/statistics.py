"""
How sure a mean is, and a difference of two. Questions about one clip are not independent of each other: what is drawn
anew are clips, with all their questions.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
BLOCK = 1 << 22  # numbers that are drawn at a time


def confidence_interval(
    values: Sequence[float],
    clusters: Sequence[object] | None = None,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    seed: int = 0,
    fractions: bool = True,
) -> tuple[float, float] | None:
    """
    A bootstrap percentile interval of the mean, drawing clusters with replacement. Of fractions that are all 0, or all
    1, no draw differs from another: then it is Clopper and Pearson's exact interval, of as many trials as clusters.

    Args:
        values: One a sample.
        clusters: What each sample belongs to, as its clip; by default each is by itself.
        groups: What is averaged by itself first, as the aspects of a judge; the mean is then one of their means.
        fractions: Whether the values lie between 0 and 1 by nature; differences and grades do not.

    Returns:
        The interval's ends, or None of fewer than two clusters, which say nothing about their spread.
    """
    sums, counts = _sums(values, clusters, groups)
    if len(sums) < 2:
        return None
    if fractions and (extreme := set(values)) in ({0.0}, {1.0}):
        possible = ((1 - level) / 2) ** (1 / len(sums))
        return (possible, 1.0) if extreme == {1.0} else (0.0, 1 - possible)
    rng = np.random.default_rng(seed)
    means = []
    for size in _portions(RESAMPLES, sums.size):
        drawn = rng.integers(0, len(sums), (size, len(sums)))
        with np.errstate(invalid="ignore"):  # a group may be absent from a draw: then it is left out of that mean
            by_group = sums[drawn].sum(1) / counts[drawn].sum(1)
        means.append(np.nanmean(by_group, axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(differences: Sequence[float], clusters: Sequence[object] | None = None, seed: int = 0) -> float:
    """
    How often chance alone makes a difference as large: a two-sided sign-flip test. If neither of two runs were the
    better one, each clip's difference could as well have the other sign.

    Args:
        differences: Between the two runs, one a sample.
        clusters: As for [`confidence_interval`].
    """
    sums = _sums(differences, clusters, None)[0][:, 0]
    rng = np.random.default_rng(seed)
    observed = abs(sums.sum())
    as_large, drawn = 1, 1  # the observed signs are one of the possible draws
    for size in _portions(RESAMPLES, len(sums)):
        signs = rng.integers(0, 2, (size, len(sums))) * 2 - 1
        as_large += int((abs((signs * sums).sum(1)) >= observed - 1e-12).sum())
        drawn += size
    return as_large / drawn


def _sums(
    values: Sequence[float], clusters: Sequence[object] | None, groups: Sequence[object] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster in each group, `(clusters, groups)`."""
    rows = _places(range(len(values)) if clusters is None else clusters)
    columns = _places([0] * len(values) if groups is None else groups)
    shape = (max(rows, default=-1) + 1, max(columns, default=-1) + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (rows, columns), np.asarray(values, dtype=np.float64))
    np.add.at(counts, (rows, columns), 1)
    return sums, counts


def _places(names: Sequence[object]) -> list[int]:
    """Names as numbers, in the order in which they first come."""
    places: dict[object, int] = {}
    return [places.setdefault(name, len(places)) for name in names]


def _portions(total: int, width: int) -> list[int]:
    """`total` draws of `width` numbers in portions that fit into memory."""
    size = max(1, min(total, BLOCK // max(width, 1)))
    return [min(size, total - start) for start in range(0, total, size)]
