"""RMSNorm whose output is scaled, by its weight and by what modulates it, before it is rounded.

Torch has no kernel for RMSNorm on a CPU: its steps and their gradients, one after the other, take some five times as
long as these.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class ScaledRMSNorm(nn.Module):
    """x / rms(x) * weight * scale.

    Args:
        width: D.
        eps: added to the mean square.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """[B, T, D], and a scale [B, 1, D] or none (1), to [B, T, D]."""
        if x.device.type == "cpu":
            weight = self.weight.float()
            return _Scaled.apply(x, weight if scale is None else weight * scale, self.eps)
        return plain(x, self.weight, scale, self.eps)


def plain(x: Tensor, weight: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    """The same by torch, which has a kernel where this runs."""
    normed = rms_norm(x, weight.shape, weight, eps)
    return normed if scale is None else normed * scale


class _Scaled(torch.autograd.Function):
    """x / rms(x) * scale, in float32 in between (double stays double); scale is [D] or [B, 1, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        exact = _exact(x)
        inverse = (exact.square().mean(-1, keepdim=True) + eps).rsqrt()  # [B, T, 1]
        ctx.save_for_backward(x, scale, inverse)
        return (exact * inverse).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, scale, inverse = ctx.saved_tensors
        normed, gradient = _exact(x) * inverse, _exact(gradient)
        of_scale = (gradient * normed).sum_to_size(scale.shape).to(scale.dtype)
        gradient = gradient * scale
        along = torch.linalg.vecdot(gradient, normed)[..., None] / x.shape[-1]  # [B, T, 1]
        return gradient.addcmul_(normed, -along).mul_(inverse).to(x.dtype), of_scale, None


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
