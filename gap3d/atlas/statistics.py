"""Statistics of tokens, taken up a batch at a time: norms, variances, channels, cosines.

Targets are layer-normed without affine, so that each token has mean 0, variance 1 and norm sqrt(C) by construction:
these prove that a store is sound and say nothing of the encoder. What does is how tokens differ: by channel, within an
image, between images.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d.atlas.histogram import Histogram
from gap3d.moments import round_off, token_moments

OUTLYING = 5.0  # times the median channel's RMS
NAMED_CHANNELS = 12
VALUES = 16  # tokens of an image whose numbers go into the histogram of values


class ChannelMoments:
    """Mean and variance of numbers of any shape over rows that come in pieces (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(0)
        self._squares: NDArray[np.float64] = np.zeros(0)

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Take a piece of so many rows; the variance is that of the population."""
        if not self.count:
            self.mean = self._squares = np.zeros(mean.shape)
        total = self.count + count
        step = mean.double().numpy() - self.mean
        self.mean = self.mean + step * (count / total)
        self._squares = self._squares + variance.double().numpy() * count + step**2 * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> NDArray[np.float64]:
        """Of the population: divided by the number of rows."""
        return self._squares / max(self.count, 1)


@dataclass
class Cosines:
    """Cosines between tokens, exact over all pairs, from sums of unit vectors.

    The sum of the cosines of all pairs among unit vectors u is (|sum u|^2 - sum |u|^2) / 2.

    Attributes:
        within: of each image, the mean over all pairs of its tokens.
        adjacent: of each image, the mean over neighbours in the grid; empty for tokens without a grid.
    """

    within: Histogram = field(default_factory=Histogram)
    adjacent: Histogram = field(default_factory=Histogram)
    _sum: Tensor | float = 0.0  # float64 [S, C]: by slot, over images
    _own: float = 0.0  # of |sum over the tokens of one image and slot|^2
    _images: int = 0
    _pairs: int = 0  # of one image's tokens with those of another, in the same slot

    def add(self, image: Tensor, norms: Tensor, grid: tuple[int, int] | None) -> None:
        """Take float32 [T, C] and the norms [T]; tokens of a grid share one slot, others have one each."""
        count = len(image)
        scales = 1 / norms.clamp(min=1e-12)
        whole = scales[None] @ image  # the sum of unit vectors, [1, C]
        if count > 1:
            own = float((scales * norms).square().sum())
            self.within.add([(float(whole.double().square().sum()) - own) / (count * (count - 1))])
        if grid is not None and count > 1:
            self.adjacent.add([adjacent(image, scales, grid)])
        sums = (whole if grid is not None else image * scales[:, None]).double()
        self._sum = self._sum + sums
        self._own += float(sums.square().sum())
        self._images += 1
        self._pairs = count**2 if grid is not None else count

    @property
    def across(self) -> float:
        """Mean cosine between tokens of different images, in the same slot; nan of fewer than two images."""
        if isinstance(self._sum, float) or self._images < 2:
            return math.nan
        pairs = self._pairs * self._images * (self._images - 1)
        return (float(self._sum.square().sum()) - self._own) / pairs


def adjacent(image: Tensor, scales: Tensor, grid: tuple[int, int]) -> float:
    """Mean cosine between horizontal and vertical neighbours of float32 [N, C], whose inverse norms are ``scales``."""
    rows, columns = grid
    ones = image.new_ones(image.shape[1])
    found = []
    for step in (1, columns):
        dots = (image[step:] * image[:-step]) @ ones
        dots *= scales[step:] * scales[:-step]
        inside = torch.arange(len(dots)) % columns < columns - 1 if step == 1 and rows > 1 else slice(None)
        found.append(dots[inside] if columns > 1 or step > 1 else dots[:0])
    return float(torch.cat(found).mean())


class TokenStatistics:
    """Statistics of one kind of token.

    Args:
        name: cls, registers or patches.
        grid: rows and columns of patch tokens; None for tokens that have a place of their own each.
        kind: number format that they were stored in.

    Attributes:
        bound: greatest error of their numbers (``moments.round_off``); 0 before the first image.
        images: images taken.
        broken: tokens with a number that is not finite; their images are in no other statistic.
        differs: whether two images have different tokens.
    """

    def __init__(self, name: str, grid: tuple[int, int] | None = None, kind: str = "float16") -> None:
        self.name = name
        self.grid = grid
        self.kind = kind
        self.bound = 0.0
        self.images = self.tokens = self.broken = 0
        self.differs = False
        self.means, self.variances, self.norms, self.values = Histogram(), Histogram(), Histogram(), Histogram()
        self.slots = ChannelMoments()
        self.cosines = Cosines()
        self._first: Tensor | None = None

    def add(self, tokens: Tensor) -> None:
        """Take a batch [B, T, C] of any precision."""
        if not tokens.numel():
            return
        for image in tokens:  # one by one: what is made of it stays in the processor's cache
            if self._first is None:
                self._first = image.clone()
            self.differs = self.differs or not torch.equal(image, self._first)
            self._take(image.float())

    def _take(self, image: Tensor) -> None:
        count, width = image.shape
        seen = token_moments(image)
        self.bound = round_off(self.kind, width)
        self.images += 1
        self.tokens += count
        self.broken += int((~seen.finite).sum())
        if not seen.finite.all():
            return
        self.means.add(seen.mean.numpy())
        self.norms.add(seen.norm.numpy())
        self.variances.add(seen.variance.numpy())
        self.values.add(image[:: max(1, count // VALUES)].numpy())
        if self.grid is None:
            self.slots.add(1, image, torch.zeros_like(image))
        else:
            share = image.new_full((1, count), 1 / count)
            mean = share @ image
            self.slots.add(count, mean, share @ (image - mean).square_())
        self.cosines.add(image, seen.norm, self.grid)

    @property
    def channel_means(self) -> NDArray[np.float64]:
        """By channel, over tokens and images: [C]."""
        return self.slots.mean.mean(0)

    @property
    def channel_deviations(self) -> NDArray[np.float64]:
        """By channel, over tokens and images: [C]."""
        return np.sqrt(self.slots.variance.mean(0) + self.slots.mean.var(0))

    @property
    def channel_rms(self) -> NDArray[np.float64]:
        """By channel; 1 in the mean square over channels: [C]."""
        return np.sqrt(self.channel_means**2 + self.channel_deviations**2)

    @property
    def outliers(self) -> list[int]:
        """Channels whose RMS is more than ``OUTLYING`` times the median's, the largest first."""
        rms = self.channel_rms
        found = np.flatnonzero(rms > OUTLYING * np.median(rms))
        return found[np.argsort(-rms[found], kind="stable")].tolist()

    @property
    def mean_error(self) -> float:
        """Mean squared error of predicting the mean token, of each slot its own: what a model has to beat."""
        return float(self.slots.variance.mean())

    def as_dict(self) -> dict[str, Any]:
        """For the page and its companion in JSON; what is not known is None."""
        if not self.slots.count:
            return {"name": self.name, "images": self.images, "tokens": self.tokens, "broken": self.broken}
        rms = self.channel_rms
        loudest = np.argsort(-rms, kind="stable")[:NAMED_CHANNELS].tolist()
        outliers = self.outliers
        across = self.cosines.across
        return {
            "name": self.name,
            "images": self.images,
            "tokens": self.tokens,
            "broken": self.broken,
            "differs": self.differs,
            "width": len(rms),
            "norms": self.norms.as_dict(),
            "variances": self.variances.as_dict(),
            "means": self.means.as_dict(),
            "values": self.values.as_dict(),
            "channels": {
                "means": np.round(self.channel_means, 4).tolist(),
                "deviations": np.round(self.channel_deviations, 4).tolist(),
            },
            "loudest": [{"channel": each, "rms": float(rms[each])} for each in loudest],
            "outliers": outliers,
            "outlier_share": float((rms[outliers] ** 2).sum() / (rms**2).sum()),
            "mean_error": self.mean_error,
            "within": self.cosines.within.as_dict(),
            "adjacent": self.cosines.adjacent.as_dict(),
            "across": None if math.isnan(across) else across,
        }
