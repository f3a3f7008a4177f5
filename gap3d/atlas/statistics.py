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

OUTLYING = 5.0  # times the median channel's RMS
NAMED_CHANNELS = 12
VALUES = 16  # tokens of an image whose numbers go into the histogram of values


class ChannelMoments:
    """Mean and variance over rows, of numbers of any shape (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(0)
        self._squares: NDArray[np.float64] = np.zeros(0)

    def add(self, rows: Tensor) -> None:
        """Take float32 [B, ...]."""
        if not len(rows):
            return
        variance, mean = (each.double().numpy() for each in torch.var_mean(rows, dim=0, correction=0))
        if not self.count:
            self.mean, self._squares = np.zeros_like(mean), np.zeros_like(mean)
        total = self.count + len(rows)
        step = mean - self.mean
        self.mean = self.mean + step * (len(rows) / total)
        self._squares = self._squares + variance * len(rows) + step**2 * (self.count * len(rows) / total)
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
    _sum: Tensor | None = None  # float64 [S, C]: by slot, over images
    _own: float = 0.0  # of |sum over the tokens of one image and slot|^2
    _images: int = 0
    _tokens: int = 0  # in one image and slot

    def add(self, tokens: Tensor, grid: tuple[int, int] | None) -> None:
        """Take float32 [B, T, C]; tokens of a grid share one slot, others have one each."""
        units = torch.nn.functional.normalize(tokens, dim=-1)
        if (count := units.shape[1]) > 1:
            own = units.square().sum((1, 2), dtype=torch.float64)
            whole = units.sum(1).double().square().sum(-1)
            self.within.add(((whole - own) / (count * (count - 1))).numpy())
        if grid is not None and count > 1:
            picture = units.unflatten(1, grid)
            right = (picture[:, :, 1:] * picture[:, :, :-1]).sum(-1).flatten(1)
            below = (picture[:, 1:] * picture[:, :-1]).sum(-1).flatten(1)
            self.adjacent.add(torch.cat([right, below], 1).mean(1).numpy())
        sums = (units.sum(1, keepdim=True) if grid is not None else units).double()  # [B, S, C]
        self._sum = sums.sum(0) + (0.0 if self._sum is None else self._sum)
        self._own += float(sums.square().sum())
        self._images += len(tokens)
        self._tokens = count if grid is not None else 1

    @property
    def across(self) -> float:
        """Mean cosine between tokens of different images, in the same slot; nan of fewer than two images."""
        if self._sum is None or self._images < 2:
            return math.nan
        pairs = len(self._sum) * self._tokens**2 * self._images * (self._images - 1)
        return (float(self._sum.square().sum()) - self._own) / pairs


class TokenStatistics:
    """Statistics of one kind of token.

    Args:
        name: cls, registers or patches.
        grid: rows and columns of patch tokens; None for tokens that have a place of their own each.

    Attributes:
        images: images taken.
        broken: tokens with a number that is not finite; they are in no other statistic.
        differs: whether two images have different tokens.
    """

    def __init__(self, name: str, grid: tuple[int, int] | None = None) -> None:
        self.name = name
        self.grid = grid
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
        if self._first is None:
            self._first = tokens[0].clone()
        self.differs = self.differs or not bool((tokens == self._first).all())
        numbers = tokens.float()
        variances, means = torch.var_mean(numbers, dim=-1, correction=0)
        sound = torch.isfinite(variances)
        self.images += len(tokens)
        self.tokens += sound.numel()
        self.broken += int((~sound).sum())
        if not sound.all():
            rows = sound.all(1)
            numbers, variances, means = numbers[rows], variances[rows], means[rows]
        width = numbers.shape[-1]
        self.means.add(means.numpy())
        self.variances.add(variances.numpy())
        self.norms.add((width * (variances.double() + means.double().square())).sqrt().numpy())
        step = max(1, numbers.shape[1] // VALUES)
        self.values.add(numbers[:, ::step].numpy())
        self.slots.add(numbers.flatten(0, 1)[:, None] if self.grid is not None else numbers)
        if len(numbers):
            self.cosines.add(numbers, self.grid)

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
