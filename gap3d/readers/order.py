"""The order in which rows are read: arithmetic alone, so that any place of it is reached without reading.

Rows lie in *blocks* (row groups, runs of a tar), which are cheap to read whole. An epoch permutes the blocks. A rank
takes an equal run of the rows in that order, of whole blocks except at its two ends. The run is cut into *lanes*, and
in a lane the blocks are interleaved: block ``j`` of ``n`` gives each of its rows a time drawn from [j, j + W), modulo
n, and rows are read by their times. So W blocks are in progress at any time, never more. A block is visited once, and
the last W, whose rows are at both ends of the lane, twice.

Batch ``b`` of a rank comes from lane ``b mod lanes`` and goes to worker ``b mod workers``. The sequence therefore does
not depend on the number of workers; where the lanes are a multiple of the workers, no two workers read the same block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

INTERLEAVE = 16


class Place(NamedTuple):
    """One row in the sequence of a rank.

    Attributes:
        position: in the sequence.
        row: its number.
        until: the position of the last row of this visit to its block: after it the block need not be kept.
    """

    position: int
    row: int
    until: int


@dataclass(frozen=True, kw_only=True)
class Split:
    """Who reads what.

    Attributes:
        rank: this process, of ``ranks`` that train together.
        ranks: their number.
        pad: give every rank the same number of rows: those with one fewer read their first one again.
        batch: rows that follow one another from one lane: the loader's batch size.
        lanes: runs that a rank reads in turn.
    """

    rank: int = 0
    ranks: int = 1
    pad: bool = False
    batch: int = 1
    lanes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} of {self.ranks}: ranks are counted from 0")
        if self.batch < 1 or self.lanes < 1:
            raise ValueError(f"batch = {self.batch} and lanes = {self.lanes} must be at least 1")

    def bounds(self, rows: int) -> tuple[int, int]:
        """This rank's run of so many rows."""
        return rows * self.rank // self.ranks, rows * (self.rank + 1) // self.ranks

    def count(self, rows: int) -> int:
        """Rows that this rank reads in an epoch."""
        start, stop = self.bounds(rows)
        return -(-rows // self.ranks) if self.pad else stop - start


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of an epoch.

    Args:
        sizes: rows of each block, int64 [blocks]; row numbers count through the blocks.
        seed: with the epoch, what the order is drawn from.
        epoch: number of the epoch.
        interleave: blocks in progress in a lane at a time; 0 does not shuffle at all.
        split: who reads what.
    """

    sizes: NDArray[np.int64]
    seed: int
    epoch: int
    interleave: int
    split: Split

    def __len__(self) -> int:
        return self.split.count(int(self.sizes.sum()))

    def places(self, start: int = 0, worker: int = 0, workers: int = 1) -> Iterator[Place]:
        """What a worker reads of this rank's sequence.

        Args:
            start: rows of the sequence that were read before.
            worker: which worker asks.
            workers: their number; batches are dealt to them in turn, beginning at ``start``.
        """
        size, sequences = self.split.batch, self._lanes()
        total = len(self)
        for number, first in enumerate(range(start, total, size)):
            if number % workers == worker:
                for position in range(first, min(first + size, total)):
                    yield sequences.place(position)

    def _lanes(self) -> "Lanes":
        rows = int(self.sizes.sum())
        blocks = np.arange(len(self.sizes))
        if self.interleave:
            blocks = self.rng(0).permutation(blocks)
        start, stop = self.split.bounds(rows)
        return Lanes(self, blocks, start, stop)

    def rng(self, *what: int) -> np.random.Generator:
        """A generator of this seed and epoch, and of what it is for."""
        return np.random.Generator(np.random.PCG64((self.seed % 2**64, self.epoch, *what)))


class Lanes:
    """The sequence of one rank.

    Args:
        order: whose.
        blocks: the blocks as the epoch permutes them.
        start: this rank's first row in that order.
        stop: and the one after its last.
    """

    def __init__(self, order: Order, blocks: NDArray[np.int64], start: int, stop: int) -> None:
        self.order, self.blocks = order, blocks
        self.start, self.stop = start, stop
        self.lanes = order.split.lanes if order.interleave else 1
        self._firsts = np.concatenate([[0], np.cumsum(order.sizes)])  # of each block, in row numbers
        self._ends = np.cumsum(order.sizes[blocks])  # of each block, in the epoch's order
        self._made: dict[int, tuple[NDArray[np.uint32], NDArray[np.uint32]]] = {}

    def place(self, position: int) -> Place:
        """The row at a position of the rank's sequence."""
        length = self.stop - self.start
        if position >= length:  # padding; a rank without a row of its own takes the epoch's first
            row = self.place(0).row if length else int(self._firsts[self.blocks[0]])
            return Place(position, row, position)
        batch = self.order.split.batch
        number, within = divmod(position, batch)
        turn, lane = divmod(number, self.lanes)
        if lane not in self._made:
            self._made[lane] = self._lane(lane)
        rows, ends = self._made[lane]
        index = turn * batch + within
        turn, within = divmod(int(ends[index]), batch)
        return Place(position, int(rows[index]), (turn * self.lanes + lane) * batch + within)

    def _lane(self, lane: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """The rows of a lane in the order of reading, and for each where in that order its visit to the block ends."""
        sizes = [lane_rows(self.stop - self.start, self.order.split.batch, self.lanes, n) for n in range(lane + 1)]
        start = self.start + sum(sizes[:-1])
        stop = start + sizes[-1]
        first, last = np.searchsorted(self._ends, [start, max(start, stop - 1)], side="right")
        blocks = self.blocks[first : last + 1]
        heads = self._ends[first : last + 1] - self.order.sizes[blocks]  # where each block begins in the epoch's order
        skipped = np.maximum(start - heads, 0)
        counts = np.maximum(np.minimum(self._ends[first : last + 1], stop) - heads - skipped, 0)
        before = np.cumsum(counts) - counts
        rows = np.repeat(self._firsts[blocks] + skipped - before, counts) + np.arange(counts.sum())
        visits = np.repeat(np.arange(len(blocks)), counts)
        if self.order.interleave:
            width = min(self.order.interleave, len(blocks))
            split = self.order.split
            times = visits + width * self.order.rng(1, split.ranks, split.rank, lane).random(len(rows))
            wrapped, times = np.divmod(times, max(1, len(blocks)))
            read = np.argsort(times, kind="stable")
            rows, visits = rows[read], (2 * visits + wrapped.astype(np.int64))[read]
        ends = np.zeros(2 * len(blocks), np.uint32)
        ends[visits] = np.arange(len(visits))  # of equal visits the last one stays
        return rows.astype(np.uint32), ends[visits]


def lane_rows(length: int, batch: int, lanes: int, lane: int) -> int:
    """Rows of one lane, if ``length`` rows are dealt to the lanes a batch at a time."""
    batches, rest = divmod(length, batch)
    full = batches // lanes + (lane < batches % lanes)
    return full * batch + (rest if lane == batches % lanes else 0)
