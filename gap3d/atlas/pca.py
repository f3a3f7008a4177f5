"""Principal components of patch tokens, and tokens as colours.

Conventions: components come by falling variance; each one's loading of largest magnitude is positive, so that the
same tokens have the same colours in every run. Colours are scaled once for all images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RANGE = (0.02, 0.98)  # quantiles of a component that become black and full colour


@dataclass(frozen=True)
class Components:
    """An affine map to the leading components.

    Attributes:
        mean: float32 [C].
        axes: float32 [K, C], orthonormal rows.
        variances: float64 [K], of the population, along each.
        total: variance over all channels.
    """

    mean: Tensor
    axes: Tensor
    variances: NDArray[np.float64]
    total: float

    @property
    def shares(self) -> list[float]:
        """Of the variance, by component."""
        return (self.variances / max(self.total, 1e-30)).tolist()

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens [..., C] as float32 [..., K]."""
        return tokens.float() @ self.axes.T - self.axes @ self.mean


class Covariance:
    """The covariance of tokens that arrive in batches: bounded memory, exact components."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor  # near the mean: what is summed stays small
        self._sum: Tensor
        self._products: Tensor

    def add(self, tokens: Tensor) -> None:
        """Take [n, C] of any precision."""
        if not len(tokens):
            return
        numbers = tokens.float()
        if not self.count:
            self._shift = numbers.mean(0)
            self._sum = torch.zeros(numbers.shape[1], dtype=torch.float64)
            self._products = torch.zeros(numbers.shape[1], numbers.shape[1], dtype=torch.float64)
        near = numbers - self._shift
        self.count += len(near)
        self._sum += near.sum(0, dtype=torch.float64)
        self._products += near.T @ near

    def _matrix(self) -> Tensor:
        if not self.count:
            raise ValueError("no tokens, no covariance")
        mean = self._sum / self.count
        return self._products / self.count - torch.outer(mean, mean)

    @property
    def effective(self) -> float:
        """How many dimensions the tokens fill: the participation ratio of the spectrum v, (sum v)^2 / sum v^2."""
        matrix = self._matrix()
        return float(matrix.trace() ** 2 / matrix.square().sum().clamp(min=1e-30))

    def components(self, most: int) -> Components:
        """The leading components, at most so many.

        Raises:
            ValueError: nothing was taken.
        """
        matrix = self._matrix()
        variances, vectors = torch.linalg.eigh(matrix)
        axes = vectors.T.flip(0)[:most]
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        axes = torch.where(largest < 0, -axes, axes)
        return Components(
            mean=(self._sum / self.count + self._shift).float(),
            axes=axes.float(),
            variances=variances.flip(0)[:most].clamp(min=0).numpy(),
            total=float(matrix.trace()),
        )


@dataclass(frozen=True)
class Colours:
    """The scale from the first three components to RGB.

    Attributes:
        low: component values that become 0: [3].
        high: those that become 255: [3].
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def of(cls, projected: NDArray[np.float32]) -> "Colours":
        """A scale from tokens of many images, float32 [n, K]: ``RANGE`` of each component."""
        low, high = np.quantile(projected[:, :3], RANGE, axis=0).astype(np.float32)
        return cls(low, high)

    def paint(self, projected: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Tokens [..., K] as uint8 [..., 3]; a component that is not there, or is constant, is mid-grey."""
        spread = self.high - self.low
        safe = np.where(spread > 0, spread, 1)
        unit = np.where(spread > 0, (projected[..., :3] - self.low) / safe, 0.5)
        rgb = np.full((*projected.shape[:-1], 3), 0.5, dtype=np.float32)
        rgb[..., : unit.shape[-1]] = unit
        return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
