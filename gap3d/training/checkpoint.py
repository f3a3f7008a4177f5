"""Checkpoints of a run: folders that appear whole or not at all; the newest ones and the best are kept.

``step-00000500/`` holds ``model.safetensors`` and ``aligner.json`` (an aligner that ``load_aligner`` takes; float32),
``optimiser.safetensors`` (the moments of AdamW), and ``training.json``: step, place in the data, best step, digests.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gap3d.aligner.weights import read_weights
from gap3d.parts import fsync_path
from gap3d.records import SystemicFault
from gap3d.signals import unbroken
from gap3d.temporary import TemporaryFolder

OPTIMISER, TRAINING = "optimiser.safetensors", "training.json"
TEMPORARY = ".writing"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, apart from tensors.

    Attributes:
        step: optimiser steps that were made.
        steps: of the whole training.
        places: where each process stands in the data (``Batch.place``).
        validated: the step that was validated last; -1 for none.
        best: of the validated ones, the best step; -1 for none.
        best_values: what its validation measured.
        seconds: of training so far, over all runs.
        data: digest of the data.
        settings: digest of the result settings.
        version: of this form.
    """

    step: int
    steps: int
    places: tuple[dict[str, Any], ...]
    validated: int = -1
    best: int = -1
    best_values: dict[str, float] | None = None
    seconds: float = 0.0
    data: str
    settings: str
    version: int = VERSION


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds: float32 weights by our names, moments as ``<moment>.<name>``."""

    masters: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    progress: Progress


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: that holds them.
        keep: so many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(match[1]) for path in found if (match := re.fullmatch(r"step-(\d+)", path.name)))

    def write(self, save_model: Callable[[Path], None], moments: Mapping[str, Tensor], progress: Progress) -> None:
        """Write the checkpoint of a step, then remove those that nobody needs any more.

        Args:
            save_model: writes the aligner into a folder.
            moments: of the optimiser.
            progress: of the run.

        Raises:
            SystemicFault: the disk is full or gone; earlier checkpoints are as they were.
        """
        final = self.path(progress.step)
        with unbroken():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                made = TemporaryFolder(self.folder, TEMPORARY)
                try:
                    save_model(made.path)
                    save_file(dict(moments), made.path / OPTIMISER)
                    (made.path / TRAINING).write_text(json.dumps(asdict(progress), indent=1))
                    for path in (*made.path.iterdir(), made.path):
                        fsync_path(path)
                    made.path.chmod(0o755)
                    if final.exists():  # of the same step: a run that was stopped before it made another one
                        shutil.rmtree(final)
                    made.path.rename(final)
                    fsync_path(self.folder)
                finally:
                    made.remove()
            except (OSError, SafetensorError) as error:
                raise SystemicFault(
                    f"the checkpoint of step {progress.step} can't be written to {self.folder} ({error}): make room, "
                    "then run it again to go on"
                ) from error
            self.prune(progress.best)

    def prune(self, best: int) -> None:
        """Remove all but the newest and the best."""
        steps = self.steps()
        for step in set(steps) - {*steps[-self.keep :], best}:
            shutil.rmtree(self.path(step), ignore_errors=True)

    def load(self, step: int) -> Loaded:
        """What the checkpoint of a step holds.

        Raises:
            SystemicFault: it can't be read.
        """
        folder = self.path(step)
        try:
            progress = Progress(**json.loads((folder / TRAINING).read_text()))
            return Loaded(read_weights(folder), load_file(folder / OPTIMISER), progress)
        except (OSError, ValueError, TypeError, SafetensorError, SystemicFault) as error:
            raise unreadable(folder, error) from error


def unreadable(folder: Path, error: Exception) -> SystemicFault:
    """The sentence about a checkpoint that a run can't go on from."""
    return SystemicFault(
        f"the checkpoint {folder} can't be read ({error}): remove the folder, then run it again to go on from the one "
        "before"
    )


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of tensors by name: of what they are, not of the file they lie in."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        state.update(f"\0{name}\0{tensor.dtype}{tuple(tensor.shape)}\0".encode())
        state.update(tensor.flatten().numpy().data.cast("B"))
    return state.hexdigest()[:32]
