"""Farthest point sampling: each next point is the one that is farthest from all that were chosen (docs/method.md 8.4).

The result is that of the plain loop over all points, ties included, at a fraction of its time: points stand in boxes,
and a new choice only touches boxes that it can come nearer to than what was chosen before.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BOX = 256  # points in a box, about
ROUNDING = 1 - 1e-6  # on the distance to a box, which is rounded like those to its points


def farthest_points(points: ArrayLike, count: int, start: int = 0) -> NDArray[np.int64]:
    """Indices of points that cover a cloud evenly, in the order in which they were chosen.

    Args:
        points: [N, 3], taken as float32.
        count: how many, at most N.
        start: index of the first.

    Returns:
        int64 [count], all different. Of points equally far (in float32) the one of the least index comes first.

    Raises:
        ValueError: another shape, a number that is not finite, or more points wanted than there are.
    """
    cloud = np.asarray(points, dtype=np.float32)
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise ValueError(f"points {cloud.shape} are not [N, 3]")
    if not np.isfinite(cloud).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(cloud).all(1))} of {len(cloud)} points are not finite")
    if not 0 < count <= len(cloud) or not 0 <= start < len(cloud):
        raise ValueError(f"{count} of {len(cloud)} points can't be chosen from point {start} on")
    members = boxes(cloud)
    kept = np.where(members[..., None] < 0, cloud[:1], cloud[members]).transpose(2, 0, 1).copy()  # [3, boxes, size]
    low, high = kept.min(-1), kept.max(-1)
    # Squared distance of each point to the nearest chosen one; below 0, a place that is empty or chosen already.
    nearest = np.where(members < 0, np.float32(-1), np.float32(np.inf))
    farthest = nearest.max(-1)
    chosen = np.empty(count, dtype=np.int64)
    box, place = (int(axis[0]) for axis in np.nonzero(members == start))
    for step in range(count):
        chosen[step] = members[box, place]
        point = kept[:, box, place].copy()
        nearest[box, place] = -1
        gap = np.maximum(np.maximum(low - point[:, None], point[:, None] - high), 0)
        near = np.flatnonzero(squared(gap) * ROUNDING < farthest)
        near = np.union1d(near, box) if farthest[box] <= 0 else near
        distances = np.minimum(nearest[near], squared(kept[:, near] - point[:, None, None]))
        nearest[near] = distances
        farthest[near] = distances.max(-1)
        box, place = first_of_farthest(members, nearest, farthest)
    return chosen


def squared(difference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared length of differences [3, ...]: always summed in this order, so that equal distances are equal."""
    x, y, z = difference
    return x * x + y * y + z * z


def first_of_farthest(
    members: NDArray[np.int64], nearest: NDArray[np.float32], farthest: NDArray[np.float32]
) -> tuple[int, int]:
    """Box and place of the farthest point; among several, of the least index."""
    most = farthest.max()
    candidates = np.flatnonzero(farthest == most)
    found = [(members[box][nearest[box] == most].min(), box) for box in candidates]
    index, box = min(found)
    return int(box), int(np.flatnonzero(members[box] == index)[0])


def boxes(cloud: NDArray[np.float32]) -> NDArray[np.int64]:
    """Points in boxes of nearly equal number: slabs along x, each cut along y, each cut along z.

    Returns:
        int64 [boxes, size], indices of points; -1 where a box has fewer.
    """
    cuts = max(1, round((len(cloud) / BOX) ** (1 / 3)))
    size = -(-len(cloud) // cuts**3)
    # Points beyond the last are at infinity: they sort to the end.
    padded = np.full((size * cuts**3, 3), np.inf, dtype=np.float32)
    padded[: len(cloud)] = cloud
    order = np.arange(len(padded))
    for axis in range(3):
        grouped = order.reshape(cuts**axis, -1)
        order = np.take_along_axis(grouped, padded[grouped, axis].argsort(axis=-1), axis=-1)
    members = order.reshape(-1, size)
    return np.where(members < len(cloud), members, -1)
