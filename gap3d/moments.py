"""Mean, variance and norm of tokens over their channels, and whether they can be those of a target.

A target is a layer norm without affine (docs/method.md 3): each token has mean 0, variance 1 and norm sqrt(C), up to
the number format that it is stored in. What is not finite, or drifts, shows without the encoder.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_VARIANCE = 0.99  # the norm's eps takes more only of tokens that were nearly constant
ARITHMETIC = 1e-5  # of means and variances that are taken in float32


@dataclass(frozen=True)
class TokenMoments:
    """Of tokens [..., C], each [...]: float32, the variance of the population in float64.

    Attributes:
        finite: whether every number of a token is.
    """

    mean: Tensor
    variance: Tensor
    norm: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Sound:
    """What mean and variance a target's token can have.

    Attributes:
        mean: the greatest distance from 0.
        variance: least and most.
    """

    mean: float
    variance: tuple[float, float]

    def holds(self, seen: TokenMoments) -> Tensor:
        """Which tokens can be a target's: bool [...]."""
        least, most = self.variance
        return seen.finite & (seen.mean.abs() <= self.mean) & (seen.variance >= least) & (seen.variance <= most)


def token_moments(tokens: Tensor) -> TokenMoments:
    """Moments of tokens [..., C] of any precision, in a fifth of ``torch.var_mean``'s time.

    The variance is a difference of sums, where nothing cancels: a mean is near 0, or is found to be none of a target's.
    """
    values = tokens.float()
    width = values.shape[-1]
    mean = values @ values.new_full((width,), 1 / width)
    norm = torch.linalg.vector_norm(values, dim=-1)
    variance = norm.double().square() / width - mean.double().square()
    return TokenMoments(mean, variance, norm, torch.isfinite(variance))


def round_off(kind: str, width: int) -> float:
    """Greatest error of a stored number, as a share of the root mean square of its token.

    Args:
        kind: number format; int8 is symmetric with a scale per token, a token's greatest number is at most sqrt(width)
            times its root mean square, and it is read as float16.
        width: channels.
    """
    if kind == "int8":
        return math.sqrt(width) / 254 + round_off("float16", width)
    return torch.finfo(getattr(torch, kind)).eps / 2


def sound(bound: float) -> Sound:
    """The bounds of tokens whose numbers are stored with this error (``round_off``).

    sum (x + e)^2 / C of a unit token lies within 1 +- (2 bound + bound^2) where |e| <= bound * rms.
    """
    slack = 2 * bound + bound**2 + ARITHMETIC
    return Sound(bound + ARITHMETIC, (LEAST_VARIANCE - slack, 1 + slack))
