"""What a step computes: condition, path, loss (docs/method.md 6). Its randomness belongs to each sample's visit."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gap3d.aligner import flow
from gap3d.aligner.flow import Losses
from gap3d.aligner.model import Aligner
from gap3d.training.batches import Batch


@dataclass(frozen=True)
class Draws:
    """What is random about a batch.

    Attributes:
        timestep: int64 [B], 1 to 1000.
        noise: float32 [B, T, C].
        dropped: bool [B]: samples whose condition is zeros.
    """

    timestep: Tensor
    noise: Tensor
    dropped: Tensor


def draw(visits: Sequence[str], shape: Sequence[int], seed: int, dropout: float, device: torch.device) -> Draws:
    """Times, noises and dropout of a batch: of each sample by its visit and the seed, and by nothing else.

    Args:
        visits: one a sample.
        shape: T, C of its tokens.
        seed: of the training.
        dropout: share of conditions that are dropped.
        device: where the results are wanted. The noise is drawn there, and each kind of device draws its own.
    """
    timesteps, dropped = [], []
    noise = torch.empty(len(visits), *shape, device=device)
    for row, visit in enumerate(visits):
        number = int.from_bytes(hashlib.sha256(f"{seed}:{visit}".encode()).digest()[:7])
        generator = torch.Generator().manual_seed(number)
        timesteps.append(flow.draw_timesteps(1, generator))
        dropped.append(torch.rand(1, generator=generator) < dropout)
        there = torch.Generator(device).manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        noise[row].normal_(generator=there)
    return Draws(torch.cat(timesteps).to(device), noise, torch.cat(dropped).to(device))


def losses(aligner: Aligner, batch: Batch, draws: Draws, weights: tuple[float, float, float]) -> Losses:
    """The loss of a batch, with gradients to the transformer and the soft tokens.

    Args:
        aligner: the model.
        batch: its samples.
        draws: what is random.
        weights: of patches, CLS, registers.
    """
    tokens = batch.tokens.to(draws.noise.device, non_blocking=True)  # [B, T, C]
    condition = aligner.condition(batch.captions)  # [B, M, Dc]
    # Not a multiplication: zeros also where the condition is no number.
    condition = torch.where(draws.dropped[:, None, None], torch.zeros_like(condition), condition)
    predicted = aligner(flow.noisy(tokens, draws.noise, draws.timestep), draws.timestep, condition)  # [B, T, C]
    return flow.losses(predicted, flow.velocity(tokens, draws.noise), aligner.layout, weights)
