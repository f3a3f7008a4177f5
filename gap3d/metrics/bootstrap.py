"""Confidence intervals of means over samples, by the percentile bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gap3d.seeds import generator

DRAWN = 1 << 22  # numbers drawn at once


@dataclass(frozen=True)
class Interval:
    """A mean and where it could lie if other samples of the same kind had been drawn.

    Attributes:
        mean: of the samples.
        low: lower end; None with one sample (or group), which tells nothing of the spread.
        high: upper end; None likewise.
        samples: how many.
    """

    mean: float
    low: float | None
    high: float | None
    samples: int


def mean_interval(
    values: Sequence[float] | NDArray[np.floating],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 2000,
    groups: Sequence[int] | NDArray[np.integer] | None = None,
) -> Interval:
    """The mean of one number a sample, and its interval.

    Args:
        values: [N], finite. A recall is the mean of hits, 0 or 1.
        seed: of the resampling: the same values and seed give the same interval.
        level: share of the resampled means between the ends.
        resamples: of N samples each, drawn with replacement.
        groups: [N], which samples are drawn together because they tell of one thing, such as the captions of one
            picture: drawn one by one they would promise too narrow an interval. None draws each by itself.

    Raises:
        ValueError: no samples, numbers that are not finite, or not one group for each.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"values of shape {sample.shape} have no mean: give one number a sample")
    if not np.isfinite(sample).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(sample))} of {len(sample)} values are not finite")
    mean, sums = float(sample.mean()), sample
    sizes: NDArray[np.integer] | None = None
    if groups is not None:
        _, place = np.unique(np.asarray(groups), return_inverse=True)
        if place.shape != sample.shape:
            raise ValueError(f"{place.size} groups can't be those of {len(sample)} values")
        sums, sizes = np.bincount(place, weights=sample).astype(np.float64), np.bincount(place)
    if len(sums) == 1:
        return Interval(mean, None, None, len(sample))
    draws = generator("", seed, "bootstrap")
    at_once = max(1, DRAWN // len(sums))
    means = []
    for done in range(0, resamples, at_once):
        drawn = draws.integers(len(sums), size=(min(at_once, resamples - done), len(sums)))
        means.append(sums[drawn].sum(1) / (len(sums) if sizes is None else sizes[drawn].sum(1)))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(sample))
