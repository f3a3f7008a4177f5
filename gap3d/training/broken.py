"""A step whose loss or gradient is no number: what it saw is saved, and the run stops."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from gap3d.parts import write_atomically
from gap3d.records import SystemicFault
from gap3d.training.batches import Batch
from gap3d.training.step import Draws


class BrokenStep(SystemicFault):
    """The loss, or its gradient, is not finite."""


@dataclass(frozen=True)
class Seen:
    """One batch of a step.

    Attributes:
        batch: its samples.
        draws: what was random about them.
        loss: what came out; may be no number.
    """

    batch: Batch
    draws: Draws
    loss: float


def save(folder: Path, step: int, rank: int, seen: Sequence[Seen]) -> Path:
    """Save the batches of a broken step: those whose loss is no number, or all, where the gradient alone is none.

    ``batch.json`` names samples and captions; ``batch-N.safetensors`` holds tokens, timesteps and dropped conditions.
    The noise is drawn again from the visits (``gap3d.training.step.draw``).

    Returns:
        The folder.
    """
    place = folder / f"step-{step:08d}-rank-{rank}"
    place.mkdir(parents=True, exist_ok=True)
    guilty = [each for each in seen if not math.isfinite(each.loss)] or list(seen)
    described = []
    for number, each in enumerate(guilty):
        tensors = {
            "tokens": each.batch.tokens.detach().cpu().contiguous(),
            "timestep": each.draws.timestep.cpu(),
            "dropped": each.draws.dropped.cpu(),
        }
        save_file(tensors, place / f"batch-{number}.safetensors")
        described.append(
            {
                "loss": str(each.loss),
                "keys": each.batch.keys,
                "captions": each.batch.captions,
                "visits": each.batch.visits,
                "timestep": each.draws.timestep.tolist(),
                "dropped": each.draws.dropped.tolist(),
            }
        )
    about = {"step": step, "rank": rank, "batches": described}
    write_atomically(place / "batch.json", json.dumps(about, indent=1).encode())
    return place


def stop(step: int, loss: float, norm: float, place: Path, last: int) -> BrokenStep:
    """The sentence that ends the run."""
    what = f"the loss of step {step} is {loss}"
    if math.isfinite(loss):
        what = f"the norm of the gradient of step {step} is {norm}"
    back = f"the checkpoint of step {last} is good" if last > 0 else "there is no checkpoint yet"
    return BrokenStep(
        f"{what}: training stopped and kept nothing of this step ({back}). The batch is saved in {place}: look there "
        "for tokens that are not finite or huge (`python -m pipelines.verify` looks at all of them); if there are "
        "none, lower learning_rate or clip, which begins another run"
    )
