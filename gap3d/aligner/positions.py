"""Rotary positions: patches are turned by their row and column, CLS and registers by nothing (docs/method.md 5.4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 10000.0


@dataclass(frozen=True)
class Rotation:
    """The turn of every pair of neighbouring channels at every token.

    Args:
        units: complex64 [T, 1, D/2] for head width D. Complex, and no tuple of sines and cosines: what shards a model
            would round those to bfloat16 on their way into a block, and this is ten times as fast.
    """

    units: Tensor

    def __call__(self, heads: Tensor) -> Tensor:
        """Turn [B, T, H, D] in float32; comes back in its own precision."""
        pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))  # [B, T, H, D/2]
        return torch.view_as_real(pairs * self.units).flatten(-2).to(heads.dtype)


def rotation(unplaced: int, grid: tuple[int, int], width: int, device: torch.device | None = None) -> Rotation:
    """The turns of CLS and registers, which have no place, and then of a grid of patches, row by row.

    Pair 2m of a head turns by row x w_m, pair 2m + 1 by column x w_m, w_m = 10000 ** (-4m / D).

    Args:
        unplaced: how many tokens come before the patches.
        grid: rows and columns of patches.
        width: channels D of a head, a multiple of 4.
        device: of the result.
    """
    rows, columns = grid
    speeds = BASE ** (-torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(rows * columns, 2)  # row-major
    angles = (places[:, None, :] * speeds[:, None]).flatten(1)  # [N, D/2]: row, column, row, column ...
    angles = torch.cat((angles.new_zeros(unplaced, width // 2), angles))[:, None]  # [T, 1, D/2]
    return Rotation(torch.polar(torch.ones_like(angles), angles).to(device, torch.complex64))
