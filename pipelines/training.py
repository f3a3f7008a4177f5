"""The door to Ray Train: a training in its workers, one a GPU where there are GPUs; in this process without Ray.

Checkpoints are the run's own (``gap3d.training.checkpoint``). Ray keeps nothing beyond the run: what it writes goes to
a folder that is removed. A worker that dies costs the steps since the last checkpoint: the workers are started again.
"""

import json
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pipelines.cluster  # noqa: F401 - sets Ray's environment before Ray is imported
from gap3d.lease import LeaseHeld
from gap3d.parts import write_atomically
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from gap3d.temporary import TemporaryFolder
from gap3d.training.log import METRICS
from gap3d.training.parallel import Processes
from gap3d.training.plan import Plan
from gap3d.training.train import train
from gap3d.training.trainer import Stopped, Values
from pipelines.cluster import connect
from pipelines.worker import Resources

STOP = "stop"  # in the driver's folder: asks the workers to stop
MEASURING = "measuring.json"  # the same: held-out pairs done, and all of them, while they are measured
FOLLOW_S = 0.5
DEATHS = 3  # of workers in a row, without a step between them, then the run is given up
KNOWN = (LeaseHeld, SystemicFault, ValueError, OSError)  # another try would come to the same
log = logging.getLogger(__name__)


def fit(
    settings: Settings,
    plan: Plan,
    on_step: Callable[[int, Values], None],
    on_validation: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Bring a run to its end with Ray Train.

    What interrupts this (Ctrl-C, SIGTERM) reaches the workers as a wish: they write a checkpoint and end.

    Args:
        settings: everything.
        plan: of the stage.
        on_step: told step and what was measured, as the workers write it down.
        on_validation: told pairs done and pairs wanted.

    Returns:
        What ``result.json`` holds.

    Raises:
        LeaseHeld, SystemicFault, ValueError, OSError: a worker's, as in ``train``.
    """
    plan.run.folder.mkdir(parents=True, exist_ok=True)
    metrics = Follower(plan.run.folder / METRICS, on_step)
    resources, gpu = room(plan.training.workers)  # here: a Ray that is started by a thread ends with it
    desk = TemporaryFolder(plan.run.folder, "driver")  # its own: another program, refused, has no say over this one
    wish = desk.path / STOP
    work: Future[dict[str, Any] | None] = Future()

    def call() -> dict[str, Any] | None:
        return survive(plan, lambda: once(settings, plan, resources, desk.path, gpu=gpu))

    # Beside the main thread, in which Ray would take Ctrl-C for itself.
    threading.Thread(target=settle, args=(work, call), name="fit", daemon=True).start()
    try:
        while not work.done():
            wait([work], timeout=FOLLOW_S)
            metrics.read()
            if found := measured(desk.path):
                on_validation(*found)
        result = work.result()
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        write_atomically(wish, b"")
        log.warning("stopping: the workers finish their step and write a checkpoint")
        wait([work])
        raise
    finally:
        desk.remove()
    if result is None:
        raise SystemicFault(f"somebody asked {plan.run.name} to stop: run it again to go on")
    return result


def measuring(folder: Path, done: int, total: int) -> None:
    """Note in a folder how far a validation is; nothing once it is done."""
    if done < total:
        write_atomically(folder / MEASURING, json.dumps([done, total]).encode())
    else:
        (folder / MEASURING).unlink(missing_ok=True)


def measured(folder: Path) -> tuple[int, int] | None:
    """What ``measuring`` noted."""
    try:
        done, total = json.loads((folder / MEASURING).read_text())
    except FileNotFoundError:
        return None
    return done, total


def settle(work: "Future[Any]", call: Callable[[], Any]) -> None:
    """Do a call, and give what comes of it to a future."""
    try:
        work.set_result(call())
    except BaseException as error:  # noqa: BLE001 - whoever waits for it hears of it
        work.set_exception(error)


def survive(plan: Plan, attempt: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Start workers until they come to the end: one that died is started again, at the last checkpoint.

    Args:
        plan: of the stage.
        attempt: one group of workers from its start to its end.

    Returns:
        None where they were asked to stop.
    """
    from ray.train import TrainingFailedError

    deaths = 0
    while True:
        before = plan.run.checkpoints.steps()
        try:
            return attempt()
        except TrainingFailedError as error:
            fault = fault_of(error)
            if isinstance(fault, KNOWN):
                raise fault from error
            deaths = deaths + 1 if plan.run.checkpoints.steps() == before else 0
            if deaths >= DEATHS or (isinstance(fault, Exception) and plan.training.workers == 1):
                raise SystemicFault(
                    f"the workers of {plan.run.name} end before they come to the next checkpoint: {str(error)[-2000:]}"
                ) from error
            log.warning("a worker of %s died; it goes on from its last checkpoint", plan.run.name)


def fault_of(error: Exception) -> Exception | None:
    """What a worker raised; None where it died."""
    failures = getattr(error, "worker_failures", {}).values()
    raised = [failure for failure in failures if not type(failure).__module__.startswith("ray.")]
    return min(raised, key=lambda fault: not isinstance(fault, KNOWN), default=None)


def once(
    settings: Settings, plan: Plan, resources: dict[str, float], desk: Path, *, gpu: bool
) -> dict[str, Any] | None:
    """One group of workers from its start to its end; ``desk`` is the folder by which they and the driver talk."""
    import ray.train.torch
    from ray.train.backend import Backend

    api: Any = ray.train  # its annotations are those of an earlier version

    class HereOnly(api.torch.TorchConfig):  # type: ignore[misc, name-defined]
        """Leaves it to the workers to find each other: torch's own meeting place listens to every network."""

        @property
        def backend_cls(self) -> type:
            return Backend

    scratch = TemporaryFolder(plan.run.folder, "ray")
    alone = not os.environ.get("RAY_ADDRESS")
    meeting = f"file://{scratch.path}/meeting" if alone else ""
    environment = {"GLOO_SOCKET_IFNAME": "lo"} if alone else {}
    try:
        trainer = api.torch.TorchTrainer(
            worker,
            train_loop_config={"settings": settings, "plan": plan, "desk": desk, "meeting": meeting},
            scaling_config=api.ScalingConfig(
                num_workers=plan.training.workers, use_gpu=gpu, resources_per_worker=resources
            ),
            run_config=api.RunConfig(
                name=plan.run.name, storage_path=str(scratch.path), worker_runtime_env={"env_vars": environment}
            ),
            torch_config=(HereOnly if alone else api.torch.TorchConfig)(backend="nccl" if gpu else "gloo"),
        )
        return trainer.fit().return_value
    finally:
        scratch.remove()


def room(workers: int) -> tuple[dict[str, float], bool]:
    """(what each worker takes, whether that is a GPU): GPUs where the cluster has any, else equal shares of the cores.

    Raises:
        SystemicFault: there are GPUs, and too few.
    """
    import ray

    cores = max(1, (os.cpu_count() or 1) // workers)
    connect(Resources(workers, cpus=float(cores)))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < workers:
        raise SystemicFault(f"{workers} workers want a GPU each, and the Ray cluster has {gpus}: set workers = {gpus}")
    if gpus:
        return {"CPU": 1.0, "GPU": 1.0}, True
    most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1.0)
    return {"CPU": float(max(1, min(cores, int(most))))}, False


def worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """What one worker does."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    plan: Plan = config["plan"]
    desk: Path = config["desk"]
    processes = Processes(context.get_world_rank(), context.get_world_size(), device)
    if config["meeting"]:
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(
            backend, init_method=config["meeting"], rank=processes.rank, world_size=processes.ranks
        )
    try:
        on_validation = partial(measuring, desk)
        return train(config["settings"], plan, processes, stopped=(desk / STOP).exists, on_validation=on_validation)
    except Stopped:
        return None
    finally:
        if config["meeting"]:
            torch.distributed.destroy_process_group()


class Follower:
    """Reads the lines that the workers add to a run's metrics.

    Args:
        path: of the metrics.
        on_step: told step and values of each new line of a step that was made: of one whose loss or gradient is no
            number, the worker itself tells.
    """

    def __init__(self, path: Path, on_step: Callable[[int, Values], None]) -> None:
        self.path, self.on_step = path, on_step
        self._place = path.stat().st_size if path.exists() else 0
        self._step = 0

    def read(self) -> None:
        """Tell what is new."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._place:
                self._place = 0  # lines after the checkpoint were dropped, and are made again
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._place += len(line)
                values = json.loads(line)
                made = values.pop("kind") == "train" and None not in (values.get("loss"), values.get("gradient_norm"))
                if made and (step := values.pop("step")) > self._step:
                    self._step = step
                    self.on_step(step, values)
