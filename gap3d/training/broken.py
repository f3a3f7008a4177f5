"""A step whose loss or gradient is no number: what it saw is saved, and the run stops."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from gap3d.parts import write_atomically
from gap3d.records import SystemicFault
from gap3d.training.batches import Batch
from gap3d.training.step import Draws


class BrokenStep(SystemicFault):
    """The loss, or its gradient, is not finite."""


@dataclass(frozen=True)
class Seen:
    """One batch of a step, without its noise.

    Attributes:
        batch: its samples. Of batches whose loss is a number only the last one of a step keeps its tokens: a step may
            have hundreds.
        timestep: int64 [B].
        dropped: bool [B].
        loss: what came out; may be no number.
    """

    batch: Batch
    timestep: Tensor
    dropped: Tensor
    loss: float

    @classmethod
    def of(cls, batch: Batch, draws: Draws, loss: float) -> "Seen":
        """What is kept of a batch until its step is over."""
        return cls(batch, draws.timestep, draws.dropped, loss)

    def without_tokens(self) -> "Seen":
        """The same when another batch has followed."""
        if not math.isfinite(self.loss):
            return self
        return replace(self, batch=replace(self.batch, tokens=self.batch.tokens[:0].clone()))


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
        tensors = {"tokens": each.batch.tokens, "timestep": each.timestep, "dropped": each.dropped}
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(held, place / f"batch-{number}.safetensors")
        described.append(
            {
                "loss": str(each.loss),
                "keys": each.batch.keys,
                "captions": each.batch.captions,
                "visits": each.batch.visits,
                "timestep": each.timestep.tolist(),
                "dropped": each.dropped.tolist(),
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
