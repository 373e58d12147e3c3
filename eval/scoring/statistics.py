"""
Confidence intervals and a paired test. Questions about one clip are not independent of each other, so both resample
whole clips ("clusters") with all their questions.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

RESAMPLES = 2000
MAX_DRAWS = 1 << 22  # random numbers in memory at a time


def confidence_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
    fractions: bool = True,
) -> tuple[float, float] | None:
    """
    Return the bootstrap percentile interval of a mean, drawing clusters with replacement. If all values are 0, or all
    are 1, every draw is the same: fractions then get the exact interval of Clopper and Pearson, with one trial per
    cluster.

    Args:
        values: One value per sample.
        clusters: What each sample belongs to, such as its clip; by default each sample is a cluster.
        groups: Groups that are averaged first, such as a judge's aspects; the mean is then the mean of their means.
        fractions: Whether the values are fractions from 0 to 1, unlike differences and grades.

    Returns:
        The ends of the interval, or None if there are fewer than two clusters.
    """
    sums, counts = _cluster_sums(values, clusters, groups)
    if len(sums) < 2:
        return None
    if fractions and (distinct := set(values)) in ({0.0}, {1.0}):
        bound = ((1 - level) / 2) ** (1 / len(sums))
        return (bound, 1.0) if distinct == {1.0} else (0.0, 1 - bound)
    rng = np.random.default_rng(seed)
    means = []
    for size in _batch_sizes(sums.size):
        drawn = rng.integers(0, len(sums), (size, len(sums)))
        with np.errstate(invalid="ignore"):  # a draw without any sample of a group leaves that group out of its mean
            group_means = sums[drawn].sum(1) / counts[drawn].sum(1)
        means.append(np.nanmean(group_means, axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(differences: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0) -> float:
    """
    Return the p value of a two-sided sign-flip test: how often chance alone makes a difference between two runs as
    large. If neither run were better, the difference of each cluster could as well have the other sign.

    Args:
        differences: Between the two runs, one per sample.
        clusters: As for [`confidence_interval`].
    """
    sums = _cluster_sums(differences, clusters)[0][:, 0]
    rng = np.random.default_rng(seed)
    observed = abs(sums.sum())
    as_large = 1  # the observed signs are one of the possible draws
    for size in _batch_sizes(len(sums)):
        signs = rng.integers(0, 2, (size, len(sums))) * 2 - 1
        as_large += int((abs((signs * sums).sum(1)) >= observed - 1e-12).sum())
    return as_large / (RESAMPLES + 1)


def _cluster_sums(
    values: Sequence[float], clusters: Sequence[Hashable] | None, groups: Sequence[Hashable] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of the values of each cluster in each group, both `(clusters, groups)`."""
    rows = _indices(range(len(values)) if clusters is None else clusters)
    columns = _indices([0] * len(values) if groups is None else groups)
    shape = (max(rows, default=-1) + 1, max(columns, default=-1) + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (rows, columns), np.asarray(values, dtype=np.float64))
    np.add.at(counts, (rows, columns), 1)
    return sums, counts


def _indices(names: Sequence[Hashable]) -> list[int]:
    """Number the names in the order in which they first occur."""
    indices: dict[Hashable, int] = {}
    return [indices.setdefault(name, len(indices)) for name in names]


def _batch_sizes(width: int) -> Iterator[int]:
    """Split the resamples, each of `width` random numbers, into batches that fit into memory."""
    size = max(1, min(RESAMPLES, MAX_DRAWS // max(width, 1)))
    for start in range(0, RESAMPLES, size):
        yield min(size, RESAMPLES - start)
