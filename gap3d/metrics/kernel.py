"""Kernel distance of two sets of features: unbiased squared MMD, kernel (x.y / D + 1)^3 (docs/method.md 8.3)."""

import math

from torch import Tensor

from gap3d.metrics.frechet import Features, as_features

DEGREE = 3
ROWS = 1024  # of the kernel matrix at once


def kernel_distance(first: Features, second: Features, rows: int = ROWS) -> float:
    """Unbiased squared maximum mean discrepancy over all samples, in float64; its mean over splits of one set is 0.

    It is often printed times 100.

    Args:
        first: [N, D], N at least 2; may be on a GPU.
        second: [M, D], M at least 2.
        rows: of the kernel matrix that are held at once: memory is rows x the larger of N and M.

    Raises:
        ValueError: other shapes, numbers that are not finite, or fewer than two samples.
    """
    one, two = as_features(first), as_features(second)
    if one.shape[1] != two.shape[1]:
        raise ValueError(f"features of {one.shape[1]} and of {two.shape[1]} channels have no distance")
    if min(len(one), len(two)) < 2:
        raise ValueError(f"sets of {len(one)} and {len(two)} features: at least 2 are needed in each")
    across = [float(kernel(one[start : start + rows], two).sum()) for start in range(0, len(one), rows)]
    cross = math.fsum(across) / (len(one) * len(two))
    return math.fsum([mean_within(one, rows), mean_within(two, rows), -2 * cross])


def kernel(first: Tensor, second: Tensor) -> Tensor:
    """The kernel of all pairs: [N, D] and [M, D] to [N, M]."""
    return (first @ second.T / first.shape[1] + 1) ** DEGREE


def mean_within(features: Tensor, rows: int) -> float:
    """Mean kernel over the pairs of different samples of [N, D]."""
    pieces = []
    for start in range(0, len(features), rows):
        some = features[start : start + rows]
        inside = kernel(some, some)
        inside.fill_diagonal_(0)
        # The kernel is symmetric: later columns stand for their mirror images too.
        pieces += [float(inside.sum()), 2 * float(kernel(some, features[start + rows :]).sum())]
    return math.fsum(pieces) / (len(features) * (len(features) - 1))
