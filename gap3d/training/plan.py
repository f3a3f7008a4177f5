"""What a stage of training is going to be, told from the settings before anything heavy is loaded."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from gap3d.aligner_settings import TrainingSettings
from gap3d.fingerprints import digest_of
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from gap3d.training.data import Described, described
from gap3d.training.run import Run, Stage, run_of


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        stage: pretrain or finetune.
        training: its settings.
        data: what it is trained on.
        run: its name and folder.
        start: folder of the checkpoint that it begins with; None where weights are drawn.
    """

    stage: Stage
    training: TrainingSettings
    data: Described
    run: Run
    start: Path | None

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return steps_of(self.training, self.data.rows)


def steps_of(settings: TrainingSettings, rows: int) -> int:
    """Optimiser steps of a training.

    Args:
        settings: of the training.
        rows: samples of its data, those of a mixture not counted.
    """
    if settings.steps is not None:
        return settings.steps
    a_step = settings.batch_size * settings.accumulate * settings.workers * (1 - settings.mix_share)
    return max(1, math.ceil(settings.epochs * rows / a_step))


def plan_of(settings: Settings, stage: Stage) -> Plan:
    """The plan of a stage.

    Raises:
        ValueError: its data are not there, or all of its steps would be warm-up.
        SystemicFault: the checkpoint that it is to begin with is not there.
    """
    training = settings.pretraining if stage == "pretrain" else settings.finetuning
    data = described(settings, training)
    if training.warmup_steps >= (steps := steps_of(training, data.rows)):
        raise ValueError(
            f"the {stage}ing has {steps} steps, and warmup_steps = {training.warmup_steps} leaves none at the full "
            f"learning rate: train longer (--{stage}ing.steps N), or warm up for fewer steps"
        )
    start, digest = training.start, ""
    if start is not None:
        digest = weights_digest(start)
    elif stage == "finetune":
        before = plan_of(settings, "pretrain").run
        result, start = before.result(), before.trained
        if result is None or start is None:
            raise SystemicFault(not_pretrained(before))
        digest = result["digest"]
    run = run_of(settings.store / settings.collection, stage, settings.aligner, training, data.digest, digest)
    return Plan(stage, training, data, run, start)


def not_pretrained(run: Run) -> str:
    """The sentence for a finetuning without a pretraining."""
    steps = run.checkpoints.steps()
    how_far = f"it was stopped at step {steps[-1]}" if steps else "there is none"
    return (
        f"finetuning begins with the finished pretraining of the same settings and data, {run.name}, and {how_far}: "
        "run `python -m pipelines.pretrain` with these settings first, or name a checkpoint (--finetuning.start DIR)"
    )


def weights_digest(folder: Path) -> str:
    """Digest of a checkpoint's files of weights.

    Raises:
        SystemicFault: there are none.
    """
    files = sorted(folder.glob("model*.safetensors*"))
    if not files:
        raise SystemicFault(f"{folder} is no checkpoint: it has no model.safetensors")
    found = []
    for path in files:
        with path.open("rb") as file:
            found.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return digest_of(json.dumps(found))
