"""Runs that a power cut or ``kill -9`` of everything left behind: nobody else would ever say that they ended."""

import dagster as dg
import psutil

UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def process_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[int, float] | None:
    """Process id of a run on this machine, and the time at which it said so; None where it never did."""
    for entry in reversed(instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)):
        data = entry.get_dagster_event().engine_event_data
        told = data.metadata.get("pid")
        if told is not None:
            return int(str(told.value)), entry.timestamp
    return None


def is_lost(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run that counts as running has no process any more."""
    known = process_of(instance, run)
    if known is None:
        return False
    number, said_at = known
    try:
        process = psutil.Process(number)
        # A process id is given again after a restart, but to a process that began later.
        return process.create_time() > said_at + 1.0 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process died together with Dagster, so that the queue goes on. "
    "What they had finished is kept: materialise again.",
)
def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """See the description."""
    found = [
        run for run in context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) if is_lost(context.instance, run)
    ]
    for run in found:
        words = "The process of this run is gone: it was killed, or the machine was. Finished rows are kept."
        context.instance.report_run_failed(run, words)
    return dg.SkipReason(f"{len(found)} lost runs")
