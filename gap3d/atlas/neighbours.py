"""Nearest neighbours by cosine, exact, in blocks: memory grows with the rows, never with their square."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS, COLUMNS = 1024, 8192  # of one block of cosines: 32 MiB
MOST_PAIRS = 200


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

    def add(self, cosines: Tensor, rows: Tensor, columns: Tensor, sides: Tensor) -> None:
        """Take a block: cosines [R, C] of sorted rows [R] and columns [C], each pair once: row before column."""
        wanted = (cosines >= self.bound) & (rows[:, None] < columns)
        found = int(wanted.sum())
        if not found:
            return
        self.count += found
        self.across += int((wanted & (sides[rows][:, None] != sides[columns])).sum())
        values, places = torch.where(wanted, cosines, -2.0).flatten().topk(min(found, self.most))
        pairs = torch.stack([rows[places // len(columns)], columns[places % len(columns)]], 1)
        values, pairs = torch.cat([self._cosines, values]), torch.cat([self._rows, pairs])
        self._cosines, kept = values.sort(descending=True, stable=True)
        self._cosines, self._rows = self._cosines[: self.most], pairs[kept[: self.most]]

    def result(self, order: Tensor) -> Duplicates:
        """With the rows' own numbers."""
        named = order[self._rows].sort(1).values.tolist()
        pairs = [(a, b, cosine) for (a, b), cosine in zip(named, self._cosines.tolist(), strict=True)]
        return Duplicates(self.count, self.across, sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1])))


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
        tell: hears of every block how many rows it had, for a progress bar.
    """
    n = len(vectors)
    labels = torch.arange(n) if groups is None else torch.from_numpy(groups)
    labels, order = labels.sort(stable=True)  # a group's rows side by side: few blocks have to be masked
    side_of = torch.zeros(n, dtype=torch.int64) if sides is None else torch.from_numpy(sides)[order]
    units = torch.nn.functional.normalize(vectors.float(), dim=-1)[order]
    best = torch.full((n, k), -2.0)
    where = torch.full((n, k), -1, dtype=torch.int64)
    pairs = Pairs(bound, most_pairs)
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        for left in range(0, n, COLUMNS):
            columns = slice(left, min(left + COLUMNS, n))
            cosines = units[rows] @ units[columns].T
            if labels[left] <= labels[rows.stop - 1] and labels[columns.stop - 1] >= labels[start]:
                cosines.masked_fill_(labels[rows, None] == labels[None, columns], -2.0)
            top, place = cosines.topk(min(k, cosines.shape[1]), dim=1)
            if columns.stop > start and float(top[:, 0].max()) >= bound:
                numbers = torch.arange(rows.start, rows.stop), torch.arange(columns.start, columns.stop)
                pairs.add(cosines, *numbers, side_of)
            merged = torch.cat([best[rows], top], 1), torch.cat([where[rows], place + left], 1)
            best[rows], kept = merged[0].topk(k, dim=1)
            where[rows] = merged[1].gather(1, kept)
        tell(rows.stop - rows.start)
    there = best > -1.5
    indices = torch.where(there, order[where.clamp(min=0)], -1)
    back = torch.empty_like(order)
    back[order] = torch.arange(n)
    cosines = torch.where(there, best, torch.nan)
    return Neighbours(indices[back].numpy(), cosines[back].numpy()), pairs.result(order)
