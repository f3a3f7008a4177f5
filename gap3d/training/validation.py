"""How good is the aligner on pairs that it has not seen: held-out loss, and alignment of tokens that it generates.

Every call measures at the same times and with the same noises, which belong to the pair's key: what changes from one
call to the next is the model's doing. Of several ranks each takes its share, and all return the same numbers.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from gap3d import seeds
from gap3d.aligner import flow
from gap3d.aligner.model import Aligner
from gap3d.aligner_settings import SamplingSettings, TrainingSettings
from gap3d.metrics.alignment import GAP, NORMALISED, Alignment, greatest, kinds_of, mean
from gap3d.metrics.neighbourhood import neighbourhood_overlap
from gap3d.training.held_out import HeldOut, Pairs

log = logging.getLogger(__name__)
TIMES = 4  # at which the loss of a pair is measured, one in each quarter of the path
NEIGHBOURS = 10  # docs/method.md 6
BEST = "cosine_patches"
"""The number that decides which checkpoint is the best: greater is better.

Patches are nearly all of what the 3D generator is given, and the cosine tells how good the end of the sampler's path
is; the held-out loss tells about single steps, and falls on while samples get worse."""

Values = dict[str, list[float]]


def better(new: Mapping[str, float | None], old: Mapping[str, float | None] | None) -> bool:
    """Whether a validation's numbers are better than those of the best one so far; not if they are no numbers."""
    value, before = new.get(BEST), (old or {}).get(BEST)
    if value is None or not math.isfinite(value):
        return False
    return before is None or not math.isfinite(before) or value > before


def validate(
    aligner: Aligner,
    pairs: HeldOut,
    settings: TrainingSettings,
    sampling: SamplingSettings,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Measure the aligner as it is now; changes nothing of it, and draws nothing from a global generator.

    With ``torch.distributed`` under way every rank calls it, with its own part of the pairs.

    Args:
        aligner: in training or not; it is left as it was.
        pairs: held-out ones.
        settings: ``loss_weights`` and ``validation_steps``.
        sampling: guidance, method and seed of the sampler, and of times and noises.
        on_batch: told how many pairs of how many are done, after each batch.

    Returns:
        ``loss``, ``loss_patches`` ...: as in training, at ``TIMES`` times of each pair. ``cosine_patches``,
        ``mse_...``, ``norm_ratio_...``, ``identity_gap_...`` (``gap3d.metrics.alignment``) and ``overlap``
        (``gap3d.metrics.neighbourhood``, k = 10; none where there are no more than 10 patches) of tokens sampled in
        ``validation_steps`` steps. ``pairs``: number of pairs that these are means of. ``unread``: of those that are
        damaged.

    Raises:
        ValueError: not one pair could be measured.
    """
    how = sampling.model_copy(update={"steps": settings.validation_steps, "batch_size": pairs.batch_size})
    values: Values = {}
    done = 0
    with evaluating(aligner):
        for batch in pairs:
            counted = [row for row, counts in enumerate(batch.counted) if counts]
            for found in (held_out_losses(aligner, batch, settings, how.seed), alignment(aligner, batch, how)):
                for name, numbers in found.items():
                    values.setdefault(name, []).extend(numbers[row] for row in counted)
            done += len(batch.keys)
            if on_batch is not None:
                on_batch(done, len(pairs))
    values = of_all_ranks(values)
    measured = len(values.get("loss", []))
    if not measured:
        raise ValueError(f"none of {pairs.count} held-out pairs could be read: see the warnings above")
    means = {name: greatest(each) if name.startswith(GAP) else mean(each) for name, each in values.items()}
    gap = max(value for name, value in means.items() if name.startswith(GAP))
    if gap > NORMALISED:
        log.warning(
            "held-out targets are not layer-normed: the mean square of a token is %.2g from 1, and squared errors and "
            "norm ratios can't be compared with published ones (`python -m pipelines.verify` reads all tokens)",
            gap,
        )
    return {**means, "pairs": measured, "unread": pairs.count - measured}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; afterwards every module is as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training


def held_out_losses(aligner: Aligner, batch: Pairs, settings: TrainingSettings, seed: int) -> Values:
    """The loss of each pair, with its caption always, as means over times."""
    device = aligner.device
    targets = batch.tokens.to(device)  # [B, T, C]
    condition = aligner.condition(batch.captions)  # [B, M, Dc]
    totals: Values = {}
    for quarter in range(TIMES):
        drawn = [draw(key, batch.tokens[0], quarter, seed) for key in batch.keys]
        timestep = torch.tensor([time for time, _ in drawn], device=device)  # [B]
        noise = torch.stack([noise for _, noise in drawn]).to(device)  # [B, T, C]
        predicted = aligner(flow.noisy(targets, noise, timestep), timestep, condition)
        wanted = flow.velocity(targets, noise)
        for row in range(len(batch.keys)):
            one = slice(row, row + 1)
            loss = flow.losses(predicted[one], wanted[one], aligner.layout, settings.loss_weights)
            for name, part in vars(loss).items():
                named = "loss" if name == "total" else f"loss_{name}"
                totals.setdefault(named, [0.0] * len(batch.keys))[row] += float(part) / TIMES
    if not aligner.layout.registers:
        del totals["loss_registers"]
    return totals


def draw(key: str, tokens: Tensor, quarter: int, seed: int) -> tuple[int, Tensor]:
    """A timestep in a quarter of 1 to 1000, and a noise like tokens [T, C], of one pair."""
    rng = seeds.generator(key, seed, f"validation{quarter}")
    step = flow.STEPS - int(flow.STEPS * (quarter + rng.random()) / TIMES)
    return step, torch.from_numpy(rng.standard_normal(tuple(tokens.shape), dtype=np.float32))


def alignment(aligner: Aligner, batch: Pairs, sampling: SamplingSettings) -> Values:
    """Table 1's measures, and the neighbours, of tokens generated from each pair's caption."""
    predicted = aligner.generate(batch.captions, batch.keys, sampling)  # [B, T, C]
    ours = kinds_of(predicted, aligner.layout)
    theirs = kinds_of(batch.tokens.to(predicted.device), aligner.layout)
    measured = Alignment()
    measured.add(ours, theirs)
    values = dict(measured.values)
    if aligner.layout.patches > NEIGHBOURS:
        values["overlap"] = neighbourhood_overlap(ours["patches"], theirs["patches"], NEIGHBOURS).tolist()
    return values


def of_all_ranks(values: Values) -> Values:
    """The values of all ranks; without ``torch.distributed``, these."""
    if not torch.distributed.is_initialized():
        return values
    gathered: list[Values] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, values)
    return {name: [value for each in gathered for value in each.get(name, [])] for each in gathered for name in each}
