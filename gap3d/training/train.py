"""A training from its plan to its result: what each of its processes does."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from gap3d.aligner.about import read_about
from gap3d.aligner.model import Aligner, build_aligner
from gap3d.aligner.weights import check_geometry, read_weights
from gap3d.lease import lease
from gap3d.parts import write_atomically
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from gap3d.training.data import of_collection, open_batches, validation_collection
from gap3d.training.held_out import HeldOut
from gap3d.training.log import METRICS, read
from gap3d.training.parallel import Processes
from gap3d.training.plan import Plan
from gap3d.training.run import SETTINGS
from gap3d.training.trainer import Trainer, Values

log = logging.getLogger(__name__)


def train(
    settings: Settings,
    plan: Plan,
    processes: Processes,
    *,
    stopped: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, Values], None] | None = None,
    on_validation: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Do this process's part of a training, from its beginning or its newest checkpoint to its end.

    Args:
        settings: everything.
        plan: of the stage.
        processes: this one and the others; the first writes.
        stopped: see ``Trainer``, as the rest.
        on_step: of the first process.
        on_validation: of the first process.

    Returns:
        What ``result.json`` holds.

    Raises:
        LeaseHeld: another program is at this run.
        Stopped: it was asked to stop; a checkpoint is written.
        SystemicFault: weights or data can't be had, loss or gradient is no number, or the disk is full.
    """
    training, run = plan.training, plan.run
    first = processes.rank == 0
    with ExitStack() as stack:
        if first:
            stack.enter_context(lease(run.folder, settings.compute.lease_wait_s))
            write_atomically(run.folder / SETTINGS, settings.model_dump_json(indent=1).encode())
        processes.gathered(None)  # the others begin when nobody else can write
        batches = open_batches(
            settings,
            training,
            plan.data.layout,
            rank=processes.rank,
            ranks=processes.ranks,
            device=processes.device.type,
        )
        aligner = begin(settings, plan, processes.device)
        about = {"stage": plan.stage, "run": run.name, "data": plan.data.digest, "encoder": dict(plan.data.encoder)}
        trainer = Trainer(
            run,
            aligner,
            batches,
            training,
            settings.sampling,
            steps=plan.steps,
            held_out=held_out_of(settings, plan, processes),
            processes=processes,
            about=about,
            stopped=stopped,
            on_step=on_step if first else None,
            on_validation=on_validation if first else None,
        )
        trainer.train()
        digest = trainer.digest()
        result = result_of(plan, trainer, aligner, digest)
        if first:
            run.save_result(result)
    return result


def begin(settings: Settings, plan: Plan, device: torch.device) -> Aligner:
    """The aligner with the weights that training begins with.

    Raises:
        SystemicFault: those of a checkpoint are of another geometry, language model or encoder.
    """
    aligner = build_aligner(settings.aligner, plan.data.layout, device)
    if plan.start is None:
        return aligner
    state = read_weights(plan.start)
    try:
        check_geometry(state, aligner.dit.geometry, settings.aligner.soft_tokens)
    except ValueError as error:
        raise SystemicFault(f"{plan.start} can't be trained further with these settings: {error}") from error
    check_origin(plan, aligner)
    with torch.no_grad():
        for name, weight in aligner.trainable().items():
            weight.copy_(state[name])
    return aligner


def check_origin(plan: Plan, aligner: Aligner) -> None:
    """Hold language model and encoder against those of the checkpoint, where it says which they were.

    Raises:
        SystemicFault: they are others.
    """
    assert plan.start is not None
    said = read_about(plan.start) or {}
    vlm, encoder = said.get("vlm") or {}, said.get("about", {}).get("encoder", {})
    if vlm and vlm["weights"] != aligner.conditioner.description["weights"]:
        raise SystemicFault(
            f"{plan.start} was trained with the language model {vlm['label']}, and the weights of "
            f"{aligner.settings.vlm!r} are others: name a folder or hub id that has them (--aligner.vlm)"
        )
    if encoder.get("fingerprint") != plan.data.encoder.get("fingerprint") and encoder:
        raise SystemicFault(
            f"{plan.start} was trained on tokens of {encoder.get('label')}, and the data's are of "
            f"{plan.data.encoder.get('label')}: an aligner speaks the language of one encoder"
        )


def held_out_of(settings: Settings, plan: Plan, processes: Processes) -> HeldOut | None:
    """This process's held-out pairs; None where there are none."""
    place = validation_collection(settings, plan.training)
    try:
        found = of_collection(place, "validation")
    except ValueError as error:
        log.warning("training goes on without validation: %s", error)
        return None
    if found.layout != plan.data.layout:
        raise SystemicFault(f"the held-out targets in {place} are laid out otherwise than those that are trained on")
    return HeldOut(
        place,
        plan.data.layout,
        count=plan.training.validation_count,
        batch_size=plan.training.batch_size,
        rank=processes.rank,
        ranks=processes.ranks,
    )


def result_of(plan: Plan, trainer: Trainer, aligner: Aligner, digest: str) -> dict[str, Any]:
    """What came out of a finished run.

    Paths are relative to the run's folder: ``checkpoint`` is the last one, ``best`` that of the best validation.
    """
    run, progress = plan.run, trainer.progress
    lines: dict[str, dict[str, Any]] = {}
    if (run.folder / METRICS).exists():
        lines = {str(line["kind"]): line for line in read(run.folder / METRICS)}

    def relative(step: int) -> str:
        return str(run.checkpoints.path(step).relative_to(run.folder))

    return {
        "stage": plan.stage,
        "run": run.name,
        "step": progress.step,
        "samples": progress.step * trainer.samples,
        "checkpoint": relative(progress.step),
        "best": relative(progress.best) if progress.best > 0 else None,
        "best_step": progress.best if progress.best > 0 else None,
        "train": lines.get("train"),
        "validation": lines.get("validation"),
        "best_validation": progress.best_values,
        "seconds": progress.seconds,
        "digest": digest,
        "data": run.data,
        "settings": run.settings,
        "start": str(plan.start) if plan.start else None,
        "trained": aligner.trained,
        "label": aligner.label,
        "vlm": aligner.conditioner.label,
        "encoder": plan.data.encoder.get("label"),
    }


def device_here() -> torch.device:
    """A GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
