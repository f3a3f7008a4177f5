"""What the stages pretrain and finetune have in common: one training brought up to date, and a report of it."""

import time
from collections.abc import Sequence
from pathlib import Path

from gap3d.features.encoder import UNTRAINED
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from gap3d.store import ALL
from gap3d.training.parallel import Processes
from gap3d.training.plan import Plan, plan_of
from gap3d.training.run import Stage
from gap3d.training.train import device_here, train
from gap3d.training.trainer import Values
from pipelines.command import open_store, resolved, say, stage_main
from pipelines.job import NotReady
from pipelines.progress import progress, say_beside
from pipelines.report import Report, ShardReport
from pipelines.training import fit


def run(settings: Settings, stage: Stage) -> Report:
    """Train, unless that is done: other settings, or new data, are another run.

    Raises:
        NotReady: an earlier stage has to run first.
        LeaseHeld: another program is at it.
        SystemicFault: see ``gap3d.training.train``.
    """
    started = time.monotonic()
    settings = resolved(settings)
    open_store(settings)
    plan = ready(settings, stage)
    result = plan.run.result()
    computed = int(result is None)
    if result is None:
        if settings.compute.workers == 0 and plan.training.workers > 1:
            raise SystemicFault(
                f"{plan.training.workers} workers need Ray, and compute.workers = 0 asks for none: set it to 1 or more"
            )
        with progress(total=plan.steps, desc=stage, unit="step") as bar:

            def show(step: int, values: Values) -> None:
                bar.set_postfix_str(format_progress(values), refresh=False)
                bar.update(step - bar.n)

            def measuring(done: int, total: int) -> None:
                say_beside(bar, f"measures {done} of {total} held-out pairs")

            bar.initial = bar.n = (plan.run.checkpoints.steps() or [0])[-1]
            if settings.compute.workers == 0:
                result = train(settings, plan, Processes(device=device_here()), on_step=show, on_validation=measuring)
            else:
                result = fit(settings, plan, show, measuring)
    report = ShardReport(
        stage=stage,
        shard=ALL,
        expected=1,
        found=1,
        computed=computed,
        by_status={"ok": 1},
        digest=result["digest"],
        seconds=result["seconds"] if computed else 0.0,
    )
    report.prove()
    return Report(shards=(report,), wall_s=time.monotonic() - started)


def ready(settings: Settings, stage: Stage) -> Plan:
    """The plan of a stage whose data are there.

    Raises:
        NotReady: they are not.
    """
    try:
        return plan_of(settings, stage)
    except ValueError as error:
        raise NotReady(str(error)) from error


def format_progress(values: Values) -> str:
    """What the bar says beside the steps."""
    return (
        f"loss {values['loss']:.4g}, {values['samples_per_s']:.3g} samples/s, "
        f"{100 * values['flops_share']:.0f} % of peak"
    )


def main(stage: Stage, doc: str) -> None:
    """The program of a stage."""

    def run_and_print(settings: Settings, _shards: Sequence[str] = ()) -> Report:
        report = run(settings, stage)
        say(*lines(settings, stage, report))
        return report

    stage_main(stage, doc, run_and_print, sharded=False)


def lines(settings: Settings, stage: Stage, report: Report) -> list[str]:
    """What came of a stage, for a person."""
    found = ready(settings, stage).run
    result = found.result()
    assert result is not None
    if not report.count("computed"):
        first = f"{found.name} is finished: nothing to train"
    else:
        first = f"{found.name}: {result['step']} steps, {result['samples']} samples, {result['seconds']:.0f} s"
    place = Path(found.folder)
    made = [first, f"model:    {place / result['checkpoint']}", f"curves:   {place / 'curves.png'}"]
    if not result["trained"]:
        made.append(f"{UNTRAINED}: {result['label'].partition(': ')[2]}; what it generates means nothing")
    return made
