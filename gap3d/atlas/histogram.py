"""A histogram of numbers that arrive in pieces and whose range nobody knows beforehand."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 512
SHOWN = 72  # bars of a picture
FINEST = -30  # binary exponent of the narrowest bin


class Histogram:
    """Exact counts in bins that double their width when the range grows.

    Edges are whole multiples of a power of two, the smallest with which all numbers so far lie in at most ``bins``
    bins (two or more: one on each side of nought). So the result depends on the numbers alone, not on their order or
    on how they were cut into pieces.

    Attributes:
        count: finite numbers taken.
        missed: numbers that are not finite.
        least: smallest of them; infinity while there are none.
        most: largest of them.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = max(bins, 2)
        self.count = self.missed = 0
        self.least, self.most = np.inf, -np.inf
        self._exponent = FINEST
        self._first = 0  # the first bin begins at this multiple of the width
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, values: ArrayLike) -> None:
        """Take numbers of any shape."""
        numbers = np.asarray(values, dtype=np.float64).ravel()
        finite = np.isfinite(numbers)
        self.missed += int(len(numbers) - finite.sum())
        numbers = numbers[finite]
        if not len(numbers):
            return
        self.count += len(numbers)
        self.least, self.most = min(self.least, numbers.min()), max(self.most, numbers.max())
        self._widen()
        places = np.floor(np.ldexp(numbers, -self._exponent)).astype(np.int64) - self._first  # exact: powers of two
        self._counts += np.bincount(places, minlength=len(self._counts))

    def _widen(self) -> None:
        exponent = self._exponent
        while (span := (place(self.least, exponent), place(self.most, exponent)))[1] - span[0] >= self.bins:
            exponent += 1
        counts = np.zeros(span[1] - span[0] + 1, dtype=np.int64)
        held = (self._first + np.arange(len(self._counts))) >> (exponent - self._exponent)
        np.add.at(counts, held - span[0], self._counts)
        self._exponent, self._first, self._counts = exponent, span[0], counts

    @property
    def width(self) -> float:
        """Of one bin."""
        return float(np.ldexp(1.0, self._exponent))

    @property
    def edges(self) -> NDArray[np.float64]:
        """Float64 [bins + 1]."""
        return (self._first + np.arange(len(self._counts) + 1)) * self.width

    @property
    def counts(self) -> NDArray[np.int64]:
        """Numbers in each bin; a bin holds its lower edge, not its upper one."""
        return self._counts

    def quantile(self, share: float) -> float:
        """The number below which this share lies, to the width of a bin."""
        if not self.count:
            return float("nan")
        reached = np.cumsum(self._counts)
        index = int(np.searchsorted(reached, share * self.count))
        index = min(index, len(self._counts) - 1)
        before = reached[index] - self._counts[index]
        inside = (share * self.count - before) / max(self._counts[index], 1)
        found = self.edges[index] + inside * self.width
        return float(min(max(found, self.least), self.most))

    def as_dict(self, shown: int = SHOWN) -> dict[str, Any]:
        """For a picture of at most so many bars: neighbouring bins are taken together."""
        if not self.count:
            return {"count": 0, "missed": self.missed}
        coarse = Histogram(shown)
        coarse.least, coarse.most = self.least, self.most
        coarse._exponent, coarse._first, coarse._counts = self._exponent, self._first, self._counts
        coarse._widen()
        return {
            "count": self.count,
            "missed": self.missed,
            "start": float(coarse.edges[0]),
            "width": coarse.width,
            "counts": coarse.counts.tolist(),
            "least": float(self.least),
            "most": float(self.most),
            "quantiles": {str(share): self.quantile(share) for share in (0.01, 0.05, 0.5, 0.95, 0.99)},
        }


def place(value: float, exponent: int) -> int:
    """Which multiple of 2^exponent a number begins in."""
    return int(np.floor(np.ldexp(value, -exponent)))
