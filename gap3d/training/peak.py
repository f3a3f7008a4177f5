"""How much of what the machine can do a training does: products counted from the geometry, over a measured rate.

Counted are the multiplications and additions of the diffusion transformer's matrix products, three times those of a
forward pass (the backward pass makes two products of each). What activation checkpointing computes anew is work, but no
progress, and is not counted; nor is the frozen language model.
"""

import time

import torch

from gap3d.aligner.dit import FREQUENCIES, Geometry

SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is timed
SECONDS, ROUNDS = 0.3, 3  # of timing, at least


def forward_products(geometry: Geometry, tokens: int, condition: int) -> int:
    """Floating point operations of the matrix products of one sample's forward pass.

    Args:
        geometry: of the transformer.
        tokens: T of a sample.
        condition: M, tokens of its condition.
    """
    g, t, m = geometry, tokens, condition
    d, e = g.width, g.modulation
    embedding = t * g.channels * d + m * d * (g.condition_width + d) + e * (2 * FREQUENCIES + e + d)
    self_attention = 4 * t * d * d + 2 * t * t * d  # q, k, v, out; scores and their sum
    cross_attention = t * d * d + 2 * m * d * d + 2 * t * m * d
    block = 4 * e * d + self_attention + cross_attention + 3 * t * d * g.inner
    return 2 * (embedding + g.blocks * block + e * d + t * d * g.channels)


def training_products(geometry: Geometry, tokens: int, condition: int) -> int:
    """The same of a sample's forward and backward pass."""
    return 3 * forward_products(geometry, tokens, condition)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a plain product of large square matrices on this machine."""
    side = SIDE["cpu" if device.type == "cpu" else "cuda"]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken: list[float] = []
    torch.mm(a, b)
    while len(taken) < ROUNDS or sum(taken) < SECONDS:
        synchronise()
        started = time.perf_counter()
        torch.mm(a, b)
        synchronise()
        taken.append(time.perf_counter() - started)
    return 2 * side**3 / min(taken)
