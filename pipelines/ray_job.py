"""A stage as a Ray job: submitted, followed, and ended when its caller ends."""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence

import pipelines.cluster  # noqa: F401 - sets Ray's environment before Ray is imported
from gap3d.parts import write_atomically
from gap3d.settings import Settings
from pipelines.command import RESOLVED
from pipelines.report import Report

log = logging.getLogger(__name__)
POLL_S = 0.5
MISSES = 60  # polls in a row without an answer, then the job is given up
STOP_S = 10.0  # a job that is asked to stop and has not after so long is reported


class JobFailed(Exception):
    """The Ray job ended without the report that would prove its rows.

    Args:
        reason: in a sentence.
        tail: the job's last lines; part of the message.
        code: its exit code, never 0.
    """

    def __init__(self, reason: str, tail: str = "", code: int = 1) -> None:
        super().__init__(f"{reason}; its last lines:\n{tail}" if tail else reason)
        self.reason, self.code = reason, code


def submit(
    module: str,
    settings: Settings,
    shards: Sequence[str],
    name: str,
    on_log: Callable[[str], None] = log.info,
    python: str = sys.executable,
) -> Report:
    """Run ``python -m pipelines.<module>`` on the cluster at ``compute.address`` and wait for it.

    Args:
        module: the stage's module.
        settings: everything; handed over in a file beside the store.
        shards: shard keys; none for a stage without shards.
        name: submission id; the same name twice is the same job, not a second one.
        on_log: takes the job's output, in pieces.
        python: the interpreter on the cluster's nodes.

    Returns:
        The job's report: the proof that expected = found.

    Raises:
        JobFailed: there is no Ray, or the job failed, was stopped, or left no report.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobStatus, JobSubmissionClient

    if not settings.compute.address:
        raise JobFailed(
            "compute.mode = job needs compute.address: name the Ray dashboard "
            "(--compute.address http://127.0.0.1:8265), or set compute.mode = inline"
        )
    if not settings.compute.address.startswith(("http://", "https://")):
        raise JobFailed(
            f"compute.address = {settings.compute.address} is no address of a Ray dashboard: it looks like "
            "http://127.0.0.1:8265"
        )
    folder = settings.store / settings.collection / "jobs" / name
    write_atomically(
        folder / RESOLVED, settings.model_dump_json(indent=1, exclude={"compute": {"mode", "address"}}).encode()
    )
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    words = [python, "-m", f"pipelines.{module}", "--preset", str(folder / RESOLVED), "--report", str(report)]
    if shards:
        words += ["--shards", ",".join(shards)]
    try:
        client = JobSubmissionClient(settings.compute.address)
    except (OSError, RuntimeError, RayError) as error:
        raise JobFailed(
            f"no Ray at {settings.compute.address} ({str(error).splitlines()[0]}): "
            "start it there, or set compute.mode = inline"
        ) from error
    # Exec: a stop of the job then reaches the program itself and not a shell around it.
    try:
        job = client.submit_job(
            entrypoint=f"exec {shlex.join(words)}", submission_id=name, metadata={"collection": settings.collection}
        )
    except (OSError, RuntimeError, RayError) as error:
        raise JobFailed(f"Ray at {settings.compute.address} takes no job: {str(error).splitlines()[0]}") from error
    on_log(f"Ray job {job} on {settings.compute.address}")
    seen, missed, text = 0, 0, ""
    try:
        while True:
            try:
                told = client.get_job_info(job)
                status = told.status
                text = str(client.get_job_logs(job))
                missed = 0
            except (OSError, RuntimeError) as error:  # the dashboard is busy or restarts: the job goes on without it
                missed += 1
                if missed > MISSES:
                    raise JobFailed(
                        f"Ray at {settings.compute.address} says nothing of job {job} any more ({error}); "
                        f"it may go on: ray job status {job}"
                    ) from error
                time.sleep(POLL_S)
                continue
            end = len(text) if status.is_terminal() else text.rfind("\n") + 1
            if news := shown(text[seen:end]):
                on_log(news)
            seen = max(seen, end)
            if status.is_terminal():
                break
            time.sleep(POLL_S)
    except JobFailed:
        raise
    except BaseException:
        try:
            stop(client, job)
        except (OSError, RuntimeError) as error:
            log.error("Ray job %s could not be stopped (%s): ray job stop %s", job, error, job)  # noqa: TRY400
        raise
    if status is not JobStatus.SUCCEEDED or not report.exists():
        tail = "\n".join([*shown(text).splitlines()[-8:], f"All of them: ray job logs {job}"])
        code = told.driver_exit_code or 1
        why = f" ({told.message})" if told.message else ""
        raise JobFailed(f"Ray job {job} ended as {status}{why}", tail, code if code > 0 else 1)  # below 0: by a signal
    return Report.load(report)


def shown(text: str) -> str:
    """Output as a terminal would show it at the end: of a progress bar, the last state."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(line for line in lines if line.strip())


def stop(client: object, job: str) -> None:
    """Ask a job to stop, and wait until it has."""
    client.stop_job(job)  # type: ignore[attr-defined]
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        if client.get_job_status(job).is_terminal():  # type: ignore[attr-defined]
            return
        time.sleep(POLL_S)
    log.error("Ray job %s did not stop within %.0f s: ray job stop %s", job, STOP_S, job)
