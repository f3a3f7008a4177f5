"""Sampling: from noise down the learned velocity to tokens, with guidance (docs/method.md 7).

Time runs as in ``gap3d.aligner.flow``: sigma from 1, noise, down to 0, tokens. The state is float32. Tokens come out as
they are: nothing norms them again.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gap3d import seeds
from gap3d.aligner.flow import STEPS
from gap3d.aligner_settings import SamplingSettings
from gap3d.features.tokens import TokenLayout

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of tokens [B, T, C] at timesteps int64 [B] under conditions [B, M, Dc]."""


def schedule(steps: int) -> tuple[Tensor, Tensor]:
    """Times of the sampler.

    Returns:
        Sigmas, float32 [steps + 1]: from 1 to 1 / steps at equal distances, then 0. Timesteps, int64 [steps]: those of
        all sigmas but the last, in thousandths rounded down, as the network has learned them.
    """
    left = torch.arange(steps, -1, -1)
    return (left.double() / steps).float(), STEPS * left[:-1] // steps


def noise_of(keys: Sequence[str], layout: TokenLayout, seed: int) -> Tensor:
    """Where sampling starts: float32 [B, T, C], each object's a function of its key and the seed alone."""
    shape = (layout.count, layout.width)
    drawn = [seeds.generator(key, seed, "sampling").standard_normal(shape, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(drawn))


@torch.no_grad()
def sample(
    velocity: Velocity,
    noise: Tensor,
    condition: Tensor,
    settings: SamplingSettings,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Follow the velocity from noise to tokens.

    Where guidance acts, velocity without and with condition come from one call on a batch of 2 B, the one without
    (zeros) first; elsewhere from a call on B.

    Args:
        velocity: the network's.
        noise: [B, T, C].
        condition: [B, M, Dc] on the same device, computed once for all steps.
        settings: steps, guidance and its interval, method.
        on_step: told how many steps are done, after each.

    Returns:
        Tokens, float32 [B, T, C].
    """
    sigmas, timesteps = schedule(settings.steps)
    both = torch.cat((torch.zeros_like(condition), condition))  # [2B, M, Dc]
    times = timesteps.to(noise.device)
    x = noise.float()

    def guided(x: Tensor, step: int) -> Tensor:
        low, high = settings.interval
        if settings.guidance == 1 or not low <= (settings.steps - step) / settings.steps <= high:
            return velocity(x, times[step].expand(len(x)), condition).float()  # [B, T, C]
        null, wanted = velocity(x.repeat(2, 1, 1), times[step].expand(2 * len(x)), both).float().chunk(2)
        return null + settings.guidance * (wanted - null)  # [B, T, C]

    for step in range(settings.steps):
        distance = float(sigmas[step + 1] - sigmas[step])
        slope = guided(x, step)
        # No second slope at sigma 0, where the network has learned nothing.
        if settings.method == "heun" and step + 1 < settings.steps:
            slope = (slope + guided(x + distance * slope, step + 1)) / 2
        x = x + distance * slope
        if on_step is not None:
            on_step(step + 1)
    return x
