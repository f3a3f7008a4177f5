"""Flow matching: times, the path from targets to noise, its velocity, the loss (paper 3.3, docs/method.md 6).

Sigma is the share of noise: 0 is a target, 1 is noise; timestep = 1000 sigma. The network regresses the velocity in the
direction of growing sigma, noise - targets. The paper counts the other way round: its t is 1 - sigma, and its velocity
is minus the network's output.

Times, path and loss are float32 in any precision of the model; the released code rounds sigma to bfloat16.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from gap3d.features.tokens import TokenLayout

STEPS = 1000


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Uniform timesteps, int64 [count] in 1 to 1000, from a generator on the CPU; all tokens of a sample share one."""
    return STEPS - (STEPS * torch.rand(count, generator=generator)).long()


def sigma(timestep: Tensor) -> Tensor:
    """Share of noise, float32, of timesteps of any shape."""
    return timestep.float() / STEPS


def noisy(targets: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """The point of the straight path at a time.

    Args:
        targets: [B, T, C].
        noise: the same shape, standard normal.
        timestep: [B].

    Returns:
        (1 - sigma) targets + sigma noise, float32 [B, T, C].
    """
    share = sigma(timestep)[:, None, None]
    return (1 - share) * targets.float() + share * noise.float()


def velocity(targets: Tensor, noise: Tensor) -> Tensor:
    """What the network is to predict: d noisy / d sigma, float32 [B, T, C]."""
    return noise.float() - targets.float()


@dataclass(frozen=True)
class Losses:
    """Mean squared errors over batch, tokens and channels, by kind of token, and their weighted sum; scalars."""

    total: Tensor
    patches: Tensor
    cls: Tensor
    registers: Tensor


def losses(
    predicted: Tensor, wanted: Tensor, layout: TokenLayout, weights: tuple[float, float, float] = (0.4, 0.3, 0.3)
) -> Losses:
    """The loss of a batch, in float32.

    Args:
        predicted: [B, T, C], of any precision.
        wanted: the same shape.
        layout: which token is which; without registers their loss is 0.
        weights: of patches, CLS, registers. Means are weighted, so a CLS token counts as much as some thousand patches.
    """
    kinds = zip(layout.split(predicted.float()), layout.split(wanted.float()), strict=True)
    cls, registers, patches = (mse_loss(p, w) if p.numel() else p.sum() for p, w in kinds)
    total = weights[0] * patches + weights[1] * cls + weights[2] * registers
    return Losses(total, patches, cls, registers)
