"""Nearest neighbours by cosine, exact, in blocks: memory grows with the rows, never with their square."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 2048  # rows and columns of one block of cosines: 16 MiB
MOST_PAIRS = 200
APART = -2.0  # the cosine of what is not compared


@dataclass(frozen=True)
class Neighbours:
    """Of every row, its nearest rows of other groups, the nearest first.

    Attributes:
        indices: int64 [n, k]; -1 where there are fewer rows than that.
        cosines: float32 [n, k]; nan there.
    """

    indices: NDArray[np.int64]
    cosines: NDArray[np.float32]

    @property
    def closeness(self) -> NDArray[np.float32]:
        """Mean cosine of each row to its neighbours: the lowest are outliers. nan for a row that has none."""
        there = self.indices >= 0
        total = np.where(there, self.cosines, 0).sum(1)
        counts = there.sum(1)
        return np.where(counts > 0, total / np.maximum(counts, 1), np.nan).astype(np.float32)


@dataclass(frozen=True)
class Duplicates:
    """Pairs of rows of different groups whose cosine is above a bound.

    Attributes:
        count: all of them.
        across: of them, those between two sides of the split.
        pairs: (row, row, cosine), the nearest first; at most as many as were asked for.
    """

    count: int
    across: int
    pairs: list[tuple[int, int, float]]


class Pairs:
    """Gathers the nearest pairs above a bound, and counts all."""

    def __init__(self, bound: float, most: int) -> None:
        self.bound = bound
        self.most = most
        self.count = self.across = 0
        self._rows = torch.zeros(0, 2, dtype=torch.int64)
        self._cosines = torch.zeros(0)

    def add(self, cosines: Tensor, rows: slice, columns: slice, sides: Tensor) -> None:
        """Take a block: cosines [R, C] of rows with columns of the same or of later rows."""
        wanted = cosines >= self.bound
        if rows == columns:
            wanted = wanted.triu(1)  # each pair once
        found = int(wanted.sum())
        if not found:
            return
        self.count += found
        self.across += int((wanted & (sides[rows][:, None] != sides[columns])).sum())
        values, places = torch.where(wanted, cosines, APART).flatten().topk(min(found, self.most))
        width = columns.stop - columns.start
        pairs = torch.stack([rows.start + places // width, columns.start + places % width], 1)
        values, pairs = torch.cat([self._cosines, values]), torch.cat([self._rows, pairs])
        values, kept = values.sort(descending=True, stable=True)
        self._cosines, self._rows = values[: self.most], pairs[kept[: self.most]]

    def result(self, order: Tensor) -> Duplicates:
        """With the rows' own numbers."""
        named = order[self._rows].sort(1).values.tolist()
        pairs = [(a, b, cosine) for (a, b), cosine in zip(named, self._cosines.tolist(), strict=True)]
        return Duplicates(self.count, self.across, sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1])))


class Nearest:
    """The k nearest of every row so far."""

    def __init__(self, rows: int, k: int) -> None:
        self.k = k
        self.cosines = torch.full((rows, k), APART)
        self.places = torch.full((rows, k), -1, dtype=torch.int64)

    def add(self, cosines: Tensor, rows: slice, columns: slice) -> None:
        """Take a block: cosines [R, C]."""
        top, place = cosines.topk(min(self.k, cosines.shape[1]), dim=1)
        values = torch.cat([self.cosines[rows], top], 1)
        places = torch.cat([self.places[rows], place + columns.start], 1)
        self.cosines[rows], kept = values.topk(self.k, dim=1)
        self.places[rows] = places.gather(1, kept)


def nearest(
    vectors: Tensor,
    k: int,
    groups: NDArray[np.int64] | None = None,
    sides: NDArray[np.int64] | None = None,
    bound: float = 0.98,
    most_pairs: int = MOST_PAIRS,
    tell: Callable[[int], object] = bool,
) -> tuple[Neighbours, Duplicates]:
    """Nearest neighbours of every row, and near duplicates.

    Args:
        vectors: float32 [n, C]; a row of zeros is near nothing.
        k: neighbours of a row.
        groups: [n]; rows of one group (views of an object) are not compared. None: every row is its own.
        sides: [n]; of the split. None: all on one side.
        bound: cosine from which on two rows are near duplicates.
        most_pairs: near duplicates that are named.
        tell: hears of every row of blocks how many rows it had, for a progress bar.
    """
    n = len(vectors)
    labels = torch.arange(n) if groups is None else torch.from_numpy(groups)
    labels, order = labels.sort(stable=True)  # a group's rows side by side: few blocks have to be masked
    side_of = torch.zeros(n, dtype=torch.int64) if sides is None else torch.from_numpy(sides)[order]
    units = vectors[order].float()
    units /= units.norm(dim=1, keepdim=True).clamp(min=1e-12)
    best, pairs = Nearest(n, k), Pairs(bound, most_pairs)
    blocks = [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
    for number, rows in enumerate(blocks):
        for columns in blocks[number:]:
            cosines = units[rows] @ units[columns].T
            if labels[columns.start] <= labels[rows.stop - 1]:
                cosines.masked_fill_(labels[rows, None] == labels[None, columns], APART)
            best.add(cosines, rows, columns)
            if columns != rows:
                best.add(cosines.T, columns, rows)
            pairs.add(cosines, rows, columns, side_of)
        tell(rows.stop - rows.start)
    there = best.cosines > APART
    back = torch.empty_like(order)
    back[order] = torch.arange(n)
    indices = torch.where(there, order[best.places.clamp(min=0)], -1)[back]
    return Neighbours(indices.numpy(), torch.where(there, best.cosines, torch.nan)[back].numpy()), pairs.result(order)
