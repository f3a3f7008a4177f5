"""Is a training sound: did its loss fall, were all its numbers finite, can it go on from its last checkpoint?"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gap3d.aligner.about import ABOUT
from gap3d.aligner.dit import Geometry
from gap3d.aligner.naming import from_released
from gap3d.aligner.weights import MODEL, check_geometry
from gap3d.training.checkpoint import OPTIMISER, TRAINING, Progress
from gap3d.training.log import METRICS, read
from gap3d.training.optimiser import MOMENTS
from gap3d.training.run import Run

SHARE = 10  # a tenth of the steps at either end is what the loss fell from, and to


@dataclass(frozen=True)
class Fall:
    """The training's loss at both ends.

    Attributes:
        first: mean over the first tenth of the steps.
        last: mean over the last tenth.
        steps: number of steps with a finite loss.
    """

    first: float
    last: float
    steps: int

    @property
    def fell(self) -> bool:
        """Whether the last is less; of one step nothing can be said."""
        return self.steps > 1 and self.last < self.first


def fall_of(lines: Iterable[Mapping[str, Any]]) -> Fall:
    """How far the loss fell, of lines of a metrics file.

    Raises:
        ValueError: there is no finite loss.
    """
    found = [line["loss"] for line in lines if line["kind"] == "train" and line.get("loss") is not None]
    if not found:
        raise ValueError("the run has no step with a finite loss")
    size = max(1, len(found) // SHARE)
    return Fall(sum(found[:size]) / size, sum(found[-size:]) / size, len(found))


def not_finite(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Numbers that are none, as ``loss of train at step N``."""
    return [
        f"{name} of {line['kind']} at step {line['step']}"
        for line in lines
        for name, value in line.items()
        if value is None
    ]


def faults_of(run: Run) -> list[str]:
    """Why a run can't go on from its newest checkpoint, in words; empty where it can.

    Weights and moments are read one tensor at a time: both are all there, fit each other, and hold finite numbers.
    """
    steps = run.checkpoints.steps()
    if not steps:
        return [f"there is no checkpoint in {run.checkpoints.folder}"]
    folder = run.checkpoints.path(steps[-1])
    try:
        progress = Progress(**json.loads((folder / TRAINING).read_text()))
        about = json.loads((folder / ABOUT).read_text())
        geometry, soft_tokens = Geometry(**about["geometry"]), about["settings"]["soft_tokens"]
        return [*disagreements(run, progress, steps[-1]), *broken_tensors(folder, geometry, soft_tokens)]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        return [f"{folder} can't be read: {error}"]


def disagreements(run: Run, progress: Progress, step: int) -> Iterator[str]:
    """What the checkpoint of a step says of itself that is not so."""
    if progress.step != step:
        yield f"it is named for step {step} and holds step {progress.step}"
    if (progress.settings, progress.data) != (run.settings, run.data):
        yield "it is of other settings or data than its run"
    if not progress.places:
        yield "it does not say where in the data it stands"
    told = max((line["step"] for line in read(run.folder / METRICS) if line["kind"] == "train"), default=0)
    if told < step:
        yield f"the metrics end at step {told}, before it"


def broken_tensors(folder: Path, geometry: Geometry, soft_tokens: int) -> Iterator[str]:
    """Weights and moments of a checkpoint that are missing, of another shape, or not finite.

    Raises:
        ValueError: the weights are not those of an aligner of this geometry.
    """
    with ExitStack() as stack:
        model, moments = (stack.enter_context(safe_open(folder / name, "pt")) for name in (MODEL, OPTIMISER))
        shapes = [
            {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            for file in (model, moments)
        ]
        weights, found = from_released(shapes[0]), shapes[1]
        check_geometry(
            {name: torch.empty(shape, device="meta") for name, shape in weights.items()}, geometry, soft_tokens
        )
        wanted = {f"{moment}.{name}": shape for name, shape in weights.items() for moment in MOMENTS}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                yield f"{name} is {found.get(name, 'missing')}, and its weight {wanted.get(name, 'missing')}"
        for file, names in zip((model, moments), shapes, strict=True):
            for name in names:
                if not torch.isfinite(file.get_tensor(name)).all():
                    yield f"{name} is not finite"
