"""The training of an aligner, from the first step or from a checkpoint, to the last step.

One process or several run the same code; the first of them writes. A run that is killed goes on from its last
checkpoint and comes to the same weights as one that nobody killed.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NoReturn

import torch

from gap3d.aligner.model import Aligner, describe
from gap3d.aligner_settings import SamplingSettings, TrainingSettings
from gap3d.features.tokens import TORCH_DTYPES
from gap3d.parts import write_atomically
from gap3d.records import SystemicFault
from gap3d.signals import unbroken
from gap3d.training import broken, parallel, peak
from gap3d.training.batches import Batches, Drawn
from gap3d.training.broken import Seen
from gap3d.training.checkpoint import Progress, tensors_digest, unreadable
from gap3d.training.curves import draw as draw_curves
from gap3d.training.held_out import HeldOut
from gap3d.training.log import METRICS, MetricsLog
from gap3d.training.optimiser import Optimiser, learning_rate
from gap3d.training.parallel import Processes
from gap3d.training.run import CURVES, FAILED, Run
from gap3d.training.step import draw, losses
from gap3d.training.validation import better, validate

log = logging.getLogger(__name__)
Values = dict[str, float]
DRAW_S = 60.0  # seconds from one drawing of the curves to the next, at least
LOSSES = ("loss", "loss_patches", "loss_cls", "loss_registers")


class Stopped(Exception):
    """Training was asked to stop, and wrote a checkpoint."""


class Trainer:
    """One process's part of a run.

    Args:
        run: which.
        aligner: the model on its device, with the weights that training begins with, in float32.
        batches: of this process.
        settings: of the training.
        sampling: how validation generates tokens.
        held_out: this process's pairs of the validation; None where there are none.
        steps: optimiser steps of the whole training.
        processes: this one and the others.
        about: goes into the checkpoints' description.
        stopped: asked after every step whether to stop.
        on_step: told the step and what was measured.
        on_validation: told pairs done and pairs wanted.
    """

    def __init__(
        self,
        run: Run,
        aligner: Aligner,
        batches: Batches,
        settings: TrainingSettings,
        sampling: SamplingSettings,
        *,
        steps: int,
        held_out: HeldOut | None = None,
        processes: Processes | None = None,
        about: Mapping[str, Any] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        on_step: Callable[[int, Values], None] | None = None,
        on_validation: Callable[[int, int], None] | None = None,
    ) -> None:
        self.run, self.aligner, self.batches, self.settings = run, aligner, batches, settings
        self.sampling, self.held_out, self.steps = sampling, held_out, steps
        self.processes = processes or Processes()
        self.about, self.stopped, self.on_step, self.on_validation = dict(about or {}), stopped, on_step, on_validation
        self.writes = self.processes.rank == 0
        self.dtype = TORCH_DTYPES[aligner.settings.dtype]
        aligner.train()
        aligner.checkpointing(settings.checkpointing)
        if self.processes.ranks > 1:
            parallel.share(aligner.dit, self.processes, settings.strategy, self.dtype)
        self.optimiser = Optimiser(aligner.trainable(), settings.weight_decay, dtype=self.dtype)
        if settings.compile:
            aligner.dit.compile()
        self.peak = peak.matrix_rate(self.processes.device, self.dtype) * self.processes.ranks
        tokens, condition = batches.layout.count, aligner.settings.soft_tokens
        self.products = peak.training_products(aligner.dit.geometry, tokens, condition) * self.samples
        self.progress = Progress(step=0, steps=steps, places=(), data=run.data, settings=run.settings)
        self.place: dict[str, Any] = {}
        self.saved = -1
        self.asked_to_stop = False
        self.drawn_at = time.monotonic()
        self.log: MetricsLog | None = None

    @property
    def samples(self) -> int:
        """Samples that a step sees, of all processes."""
        return self.settings.batch_size * self.settings.accumulate * self.processes.ranks

    def train(self) -> None:
        """Bring the run to its last step.

        Raises:
            Stopped: it was asked to stop before; a checkpoint is written.
            BrokenStep: loss or gradient is no number; the last checkpoint is as it was.
        """
        self.resume()
        with ExitStack() as stack:
            if self.writes:
                self.log = stack.enter_context(MetricsLog(self.run.folder, self.progress.step))
            drawn = stack.enter_context(self.batches.read_ahead())
            try:
                while True:
                    self.validate_when_due()
                    self.save_when_due()
                    if self.progress.step >= self.steps:
                        break
                    if self.asked_to_stop:
                        self.save()
                        raise Stopped(f"stopped at step {self.progress.step} of {self.steps}")
                    with unbroken():
                        self.step(drawn)
            except BaseException as error:
                # Ctrl-C, SIGTERM, or what a caller makes of them; it came between two steps. Of several processes each
                # would have to hear it at the same step: they are asked to stop.
                if not isinstance(error, Exception) and self.processes.ranks == 1:
                    self.save()
                raise
            self.draw_curves()

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        steps = self.run.checkpoints.steps()
        if not steps:
            return
        held, folder = self.run.checkpoints.load(steps[-1]), self.run.checkpoints.path(steps[-1])
        if (held.progress.data, held.progress.settings) != (self.run.data, self.run.settings):
            raise SystemicFault(f"{folder} is of other settings or data than its run: remove the folder")
        # The run's name has where the language model lies, and not what lies there.
        with_, now = (describe(folder)["vlm"] or {}), self.aligner.conditioner.description
        if with_.get("weights") != now["weights"]:
            raise SystemicFault(
                f"{folder} was trained with other weights of {self.aligner.settings.vlm!r} than those that are there "
                "now: put the earlier ones back (--aligner.vlm_revision, for a hub id), or remove "
                f"{self.run.folder} to begin anew"
            )
        try:
            self.optimiser.restore(held.masters, held.moments, held.progress.step)
            self.place = held.progress.places[self.processes.rank]
            self.batches.restore(self.place)
        except (ValueError, LookupError, TypeError) as error:
            raise unreadable(folder, error) from error
        self.progress, self.saved = held.progress, steps[-1]
        self.aligner.about = {**self.about, "step": self.progress.step}
        log.info("%s goes on from step %d of %d", self.run.name, self.progress.step, self.steps)

    def step(self, drawn: Iterator[Drawn]) -> None:
        """One optimiser step, and its line."""
        begun, waited = time.perf_counter(), 0.0
        step, seen = self.progress.step + 1, list[Seen]()
        parts = torch.zeros(len(LOSSES), device=self.processes.device)
        for number in range(self.settings.accumulate):
            asked = time.perf_counter()
            came = next(drawn)
            waited += time.perf_counter() - asked
            batch = self.batches.finished(came)
            draws = draw(
                batch.visits,
                batch.tokens.shape[1:],
                self.settings.seed,
                self.settings.condition_dropout,
                self.processes.device,
            )
            parallel.summing(self.aligner.dit, last=number == self.settings.accumulate - 1)
            loss = losses(self.aligner, batch, draws, self.settings.loss_weights)
            (loss.total / self.settings.accumulate).backward()
            self.optimiser.gather()
            part = torch.stack([loss.total, loss.patches, loss.cls, loss.registers]).detach()
            parts += part / self.settings.accumulate
            seen = [*(each.without_tokens() for each in seen), Seen.of(batch, draws, float(part[0]))]
        parallel.sum_the_rest(self.optimiser.masters, self.processes)
        norm = self.optimiser.clip(self.settings.clip)
        wish = parts.new_tensor([float(self.stopped()), waited, float(batch.damaged)])
        *measured, asked_for, waited, damaged = self.processes.mean(torch.cat([parts, wish])).tolist()
        values = dict(zip(LOSSES, measured, strict=True)) | {"gradient_norm": norm}
        if not math.isfinite(norm) or not math.isfinite(values["loss"]):
            self.optimiser.forget()
            self.stop_broken(step, values, seen)
        rate = learning_rate(step, self.steps, self.settings)
        self.optimiser.step(rate)
        seconds = time.perf_counter() - begun
        self.place, self.asked_to_stop = batch.place, asked_for > 0
        self.progress = replace(self.progress, step=step, seconds=self.progress.seconds + seconds)
        values |= {
            "learning_rate": rate,
            "samples_per_s": self.samples / seconds,
            "flops_share": self.products / seconds / self.peak,
            "data_wait_share": waited / seconds,
            "epoch": batch.place["data"]["epoch"],
            "damaged": damaged * self.processes.ranks,
            "seconds": seconds,
        }
        if self.log:
            self.log.write(step, "train", values)
        if self.on_step:
            self.on_step(step, values)

    def stop_broken(self, step: int, values: Values, seen: list[Seen]) -> NoReturn:
        """Save what a broken step saw, and stop."""
        own = any(not math.isfinite(each.loss) for each in seen)
        guilty = self.processes.gathered(own)
        place = self.run.folder / FAILED
        if own or not any(guilty):
            place = broken.save(place, step, self.processes.rank, seen)
        if self.log:
            self.log.write(step, "train", values)
        raise broken.stop(step, values["loss"], values["gradient_norm"], place, self.saved)

    def validate_when_due(self) -> None:
        """Measure on held-out pairs, and see whether this is the best step so far."""
        step = self.progress.step
        due = step > 0 and (step % self.settings.validate_every == 0 or step == self.steps)
        if self.held_out is None or not due or self.progress.validated == step:
            return
        values = validate(self.aligner, self.held_out, self.settings, self.sampling, self.on_validation)
        with unbroken():
            self.progress = replace(self.progress, validated=step)
            if better(values, self.progress.best_values):
                self.progress = replace(self.progress, best=step, best_values=values)
            if self.log:
                self.log.write(step, "validation", values)
            if self.saved == step:  # by who stopped the run in a validation: what it holds does not know of this one
                self.saved = -1
                self.save()
        if time.monotonic() - self.drawn_at > DRAW_S:
            self.draw_curves()

    def save_when_due(self) -> None:
        """Write the checkpoint of this step, if it is to have one."""
        step = self.progress.step
        wanted = step % self.settings.save_every == 0 or step in (self.steps, self.progress.best)
        if step > 0 and wanted and self.saved != step:
            self.save()

    def save(self) -> None:
        """Write a checkpoint; every process takes part."""
        if self.progress.step in (0, self.saved):
            return
        with unbroken():
            masters, moments, _ = self.optimiser.state()
            self.progress = replace(self.progress, places=tuple(self.processes.gathered(self.place)))
            self.aligner.about = {**self.about, "step": self.progress.step}
            if self.writes:
                self.run.checkpoints.write(
                    lambda folder: self.aligner.save(folder, self.aligner.about, masters), moments, self.progress
                )
            self.saved = self.progress.step

    def draw_curves(self) -> None:
        """The metrics as a picture."""
        self.drawn_at = time.monotonic()
        if self.writes:
            title = self.run.name if self.aligner.trained else f"{self.aligner.label} \u00b7 {self.run.name}"
            write_atomically(self.run.folder / CURVES, draw_curves(self.run.folder / METRICS, title))

    def digest(self) -> str:
        """Of the float32 weights as they are now; every process takes part."""
        return tensors_digest(self.optimiser.state()[0])
