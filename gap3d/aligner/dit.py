"""The diffusion transformer (paper 3.2, docs/method.md 5).

It predicts, from the noisy tokens of an image, how noisy they are, and a condition, the velocity of all tokens at once:
CLS, registers, patches. Self-attention with rotary positions and gated cross-attention to the condition share their
output projection; time and the pooled condition modulate every block.

Nothing here knows how many patches, registers or channels there are. Weights, and the tokens between the blocks, are of
one precision; norms and rotations compute in float32.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from gap3d.aligner.attention import attend
from gap3d.aligner.norm import ScaledRMSNorm
from gap3d.aligner.positions import Rotation, rotation

EPS = 1e-5  # of every norm but the last
LAST_EPS = 1e-6
FREQUENCIES = 128  # of the timestep
ROLE_STD = 0.02


@dataclass(frozen=True)
class Geometry:
    """Everything that shapes the transformer's weights.

    Args:
        channels: C of a token, in and out.
        registers: R, register tokens; may be 0.
        condition_width: Dc of a condition token.
        width: D between the blocks.
        blocks: depth. The paper says 36; its own parameter count, and the released configuration, say 24.
        heads: H of attention.

    Raises:
        ValueError: rotary positions need a head width that is a multiple of 4.
    """

    channels: int
    registers: int
    condition_width: int
    width: int = 1792
    blocks: int = 24
    heads: int = 28

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} is no multiple of 4 x {self.heads} heads: choose another of the two")

    @property
    def modulation(self) -> int:
        """E, channels of what time and pooled condition are embedded in."""
        return min(self.width, 1024)

    @property
    def inner(self) -> int:
        """F of the feed-forward network: two thirds of 4 D, rounded up to a multiple of 256."""
        return math.ceil(8 * self.width // 3 / 256) * 256


class DiT(nn.Module):
    """The whole transformer.

    Args:
        geometry: its shapes.

    Attributes:
        checkpointing: keep only what enters each block, and compute the rest anew in the backward pass.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.checkpointing = False
        channels, registers, width = geometry.channels, geometry.registers, geometry.width
        self.cls_in = nn.Linear(channels, width)
        self.cls_role = nn.Parameter(torch.empty(1, width))
        nn.init.trunc_normal_(self.cls_role, std=ROLE_STD)
        if registers:
            self.registers_in = nn.Linear(channels, width)
            self.registers_role = nn.Parameter(torch.empty(1, registers, width))
            nn.init.trunc_normal_(self.registers_role, std=ROLE_STD)
        self.patches_in = nn.Linear(channels, width)
        self.condition_in = nn.Sequential(
            nn.Linear(geometry.condition_width, width), nn.GELU("tanh"), nn.Linear(width, width)
        )
        self.modulator = Modulator(geometry)
        self.blocks = nn.ModuleList(Block(geometry) for _ in range(geometry.blocks))
        self.norm_out = nn.LayerNorm(width, LAST_EPS, elementwise_affine=False)
        self.scale_out = nn.Linear(geometry.modulation, width)
        self.out = nn.Linear(width, channels)

    def forward(self, tokens: Tensor, timestep: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """The velocity noise - targets of the flow (``gap3d.aligner.flow``).

        Args:
            tokens: [B, T, C], noisy, in the order of ``TokenLayout``, of any precision.
            timestep: [B], 0 to 1000; 1000 is pure noise. Integers pass through every wrapper unrounded.
            condition: [B, M, Dc]; zeros for none.
            grid: rows and columns of patches.

        Returns:
            [B, T, C] in the precision of the weights.

        Raises:
            ValueError: the tokens are not of this grid.
        """
        registers, (rows, columns) = self.geometry.registers, grid
        if tokens.shape[1] != 1 + registers + rows * columns:
            raise ValueError(
                f"{tokens.shape[1]} tokens are not CLS, {registers} registers and {rows} x {columns} patches"
            )
        dtype = self.out.weight.dtype
        h = self.embed(tokens.to(dtype))  # [B, T, D]
        condition = self.condition_in(condition.to(dtype))  # [B, M, D]
        modulation = self.modulator(timestep, condition)  # [B, 1, E]
        turn = rotation(1 + registers, grid, self.geometry.width // self.geometry.heads, tokens.device)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, condition, modulation, turn, use_reentrant=False)  # [B, T, D]
            else:
                h = block(h, condition, modulation, turn)  # [B, T, D]
        h = self.norm_out(h) * (1 + self.scale_out(modulation))  # [B, T, D]
        return self.out(h)  # [B, T, C]

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, C] as [B, T, D], each kind by a projection of its own; CLS and registers get a role."""
        registers = self.geometry.registers
        cls, special, patches = tokens.split((1, registers, tokens.shape[1] - 1 - registers), 1)
        parts = [self.cls_in(cls) + self.cls_role, self.patches_in(patches)]  # [B, 1, D], [B, N, D]
        if registers:
            parts.insert(1, self.registers_in(special) + self.registers_role)  # [B, R, D]
        return torch.cat(parts, 1)


class Modulator(nn.Module):
    """Time and pooled condition as one vector, after its SiLU, of which every block makes scales and gates."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        width = geometry.modulation
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Sequential(nn.LayerNorm(geometry.width, EPS), nn.Linear(geometry.width, width))

    def forward(self, timestep: Tensor, condition: Tensor) -> Tensor:
        """Timestep [B] and projected condition [B, M, D] to [B, 1, E]."""
        time = self.time(sinusoids(timestep).to(condition.dtype))  # [B, E]
        return silu(time + self.pooled(condition.mean(1)))[:, None]  # [B, 1, E]


class Block(nn.Module):
    """Attention to the tokens and to the condition, then a feed-forward network; gates let them in."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        width = geometry.width
        self.modulation = nn.Linear(geometry.modulation, 4 * width)
        self.attention_norm = ScaledRMSNorm(width, EPS)
        self.condition_norm = ScaledRMSNorm(width, EPS)
        self.attention = Attention(width, geometry.heads)
        self.attention_norm_out = ScaledRMSNorm(width, EPS)
        self.feed_forward_norm = ScaledRMSNorm(width, EPS)
        self.feed_forward = FeedForward(width, geometry.inner)
        self.feed_forward_norm_out = ScaledRMSNorm(width, EPS)

    def forward(self, h: Tensor, condition: Tensor, modulation: Tensor, turn: Rotation) -> Tensor:
        """Tokens [B, T, D], condition [B, M, D], modulation [B, 1, E] to tokens [B, T, D]."""
        scale_1, gate_1, scale_2, gate_2 = self.modulation(modulation).chunk(4, -1)  # [B, 1, D] each
        n = self.attention_norm(h, 1 + scale_1)  # [B, T, D]
        attended = self.attention(n, self.condition_norm(condition), turn)  # [B, T, D]
        h = h + self.attention_norm_out(attended, gate_1.tanh())  # [B, T, D]
        n = self.feed_forward_norm(h, 1 + scale_2)  # [B, T, D]
        return h + self.feed_forward_norm_out(self.feed_forward(n), gate_2.tanh())  # [B, T, D]


class Attention(nn.Module):
    """Self-attention plus gated cross-attention, with one output projection for their sum.

    The gates, one a head, start at 0: at first the condition acts through the modulation alone, and the projections of
    cross-attention get no gradient until the gates, which do, have moved.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.self_q, self.self_k, self.self_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.cross_q, self.cross_k, self.cross_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.self_q_norm, self.self_k_norm = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.cross_q_norm, self.cross_k_norm = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.gate = nn.Parameter(torch.zeros(heads))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, n: Tensor, condition: Tensor, turn: Rotation) -> Tensor:
        """Normed tokens [B, T, D] and condition [B, M, D] to [B, T, D]."""
        q = turn(self.split(self.self_q_norm(self.self_q(n))))  # [B, T, H, D/H]
        k = turn(self.split(self.self_k_norm(self.self_k(n))))  # [B, T, H, D/H]
        within = attend(q, k, self.split(self.self_v(n)))  # [B, T, H, D/H]
        q = turn(self.split(self.cross_q_norm(self.cross_q(n))))  # [B, T, H, D/H]
        k = self.split(self.cross_k_norm(self.cross_k(condition)))  # [B, M, H, D/H]
        across = attend(q, k, self.split(self.cross_v(condition)))  # [B, T, H, D/H]
        return self.out((within + self.gate.tanh()[:, None] * across).flatten(2))  # [B, T, D]

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] as heads [B, T, H, D/H]."""
        return x.unflatten(-1, (self.heads, -1))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, n: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.down(silu(self.gate(n)) * self.up(n))  # silu computes in float32, in any precision


def sinusoids(timestep: Tensor) -> Tensor:
    """Timesteps [B] as float32 [B, 256]: cosines, then sines, of 128 frequencies from 1 down to 1e4 ** (-127/128)."""
    steps = torch.arange(FREQUENCIES, dtype=torch.float32, device=timestep.device)
    angles = timestep[:, None].float() * torch.exp(-math.log(10000.0) * steps / FREQUENCIES)
    return torch.cat((angles.cos(), angles.sin()), -1)
