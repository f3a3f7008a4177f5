"""The door to Ray: a pool of workers, each an actor, fed so that every item gets an answer.

Ray Core actors rather than Ray Data: Ray Data retries an item that kills its worker for ever by
default, or drops its whole block, and costs seconds for each small shard.
"""

import logging
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

# Read by Ray when it is imported. The first keeps every socket of a local Ray on 127.0.0.1; on a
# real cluster RAY_ADDRESS is set, and nodes have to hear each other.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # 2.60 turns tokens on by itself half-way; be explicit
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from gap3d.records import Outcome, SystemicFault
from gap3d.settings import ComputeSettings

log = logging.getLogger(__name__)


class Worker(Protocol):
    """What computes items: lives in one process, keeps what is dear (a Blender, an encoder) between items."""

    def process(self, payload: Any) -> list[Outcome]:
        """Outcomes of one item."""

    def probe(self) -> None:
        """Prove that the engine works on a good input; raises SystemicFault where it does not."""

    def close(self) -> None:
        """Let go of processes and files."""


@dataclass(frozen=True)
class Broken:
    """No outcome: the worker raised or died.

    Attributes:
        reason: one line.
        traceback: all of it.
        died: the worker's process is gone, so another try may do better.
    """

    reason: str
    traceback: str = ""
    died: bool = False


@dataclass(frozen=True)
class Resources:
    """What one worker takes of a node."""

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0


def guarded(call: Callable[[], list[Outcome]]) -> list[Outcome] | Broken:
    """An exception in one item's handling is that item's answer; a systemic fault goes on."""
    try:
        return call()
    except SystemicFault:
        raise
    except (OSError, MemoryError) as error:
        # Workers turn what a bad input can cause into outcomes; this is the disk, the store or the machine.
        raise SystemicFault(f"{type(error).__name__}: {error}") from error
    except Exception as error:  # noqa: BLE001 - it becomes an internal_error row with this traceback
        return Broken(f"{type(error).__name__}: {error}"[:500], traceback.format_exc()[-2048:])


class LocalPool:
    """One worker in this process, without Ray."""

    def __init__(self, factory: Callable[[], Worker]) -> None:
        self.worker = factory()

    def run(self, items: Iterable[Any], payload: Callable[[Any], Any]) -> Iterator[tuple[Any, list[Outcome] | Broken]]:
        """Answers, one item after another."""
        for item in items:
            yield item, guarded(partial(self.worker.process, payload(item)))

    def probe(self) -> None:
        """See Worker.probe."""
        self.worker.probe()

    def close(self) -> None:
        """See Worker.close."""
        self.worker.close()


class RayPool:
    """Actors that are replaced when they die; at most two items wait at each, so submission is bounded.

    Args:
        factory: makes a worker; sent to the actors.
        resources: how many workers, and what each takes.
        deadline_s: an item without an answer for so long costs its actor. Workers have limits of
            their own, well below this.
    """

    def __init__(self, factory: Callable[[], Worker], resources: Resources, deadline_s: float) -> None:
        import ray

        self.ray = ray
        self.owned = connect(resources)
        self.factory = factory
        self.deadline_s = deadline_s
        host = ray.remote(Host)
        self.make: Any = host.options(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=0, max_task_retries=0
        )
        cpus = ray.cluster_resources().get("CPU", 1.0)
        fitting = max(1, min(resources.workers, int(cpus / (resources.cpus or 1))))
        self.queues: dict[int, deque[tuple[Any, Any]]] = {}
        self.actors = self.start(fitting)

    def start(self, count: int) -> list[Any]:
        """Fresh actors, each with a worker that was made without an error.

        Raises:
            SystemicFault: a worker can't be made: something is missing on its node.
        """
        actors = [self.make.remote(self.factory) for _ in range(count)]
        for actor in actors:
            try:
                self.ray.get(actor.ready.remote(), timeout=self.deadline_s)
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, SystemicFault) else SystemicFault(str(error)) from error
            except (self.ray.exceptions.RayError, TimeoutError) as error:
                raise SystemicFault(f"a worker does not start: {error}") from error
        return actors

    def run(self, items: Iterable[Any], payload: Callable[[Any], Any]) -> Iterator[tuple[Any, list[Outcome] | Broken]]:
        """Answers in the order in which they come."""
        source = iter(items)
        queues = self.queues = {index: deque() for index in range(len(self.actors))}
        started = dict.fromkeys(queues, time.monotonic())
        again: deque[Any] = deque()
        exhausted = False

        def feed(index: int) -> None:
            nonlocal exhausted
            while len(queues[index]) < 2 and not (exhausted and not again):
                try:
                    item = again.popleft() if again else next(source)
                except StopIteration:
                    exhausted = True
                    return
                if not queues[index]:
                    started[index] = time.monotonic()
                queues[index].append((self.actors[index].process.remote(payload(item)), item))

        def replace(index: int) -> Any:
            """Put a fresh actor in a dead one's place; returns the item it died of, the next goes back in line."""
            guilty = queues[index].popleft()[1]
            again.extend(item for _, item in queues[index])
            queues[index].clear()
            self.ray.kill(self.actors[index])
            self.actors[index] = self.start(1)[0]
            return guilty

        for index in queues:
            feed(index)
        while any(queues.values()):
            heads = {queue[0][0]: index for index, queue in queues.items() if queue}
            ready, _ = self.ray.wait(list(heads), num_returns=1, timeout=1.0)
            for reference in ready:
                index = heads[reference]
                started[index] = time.monotonic()
                try:
                    answer = self.ray.get(reference)
                    item = queues[index].popleft()[1]
                except self.ray.exceptions.RayTaskError as error:
                    cause = error.cause
                    raise cause if isinstance(cause, SystemicFault) else SystemicFault(str(error)) from error
                except self.ray.exceptions.RayActorError:
                    item, answer = replace(index), Broken("the worker process died", died=True)
                yield item, answer
            for index in list(queues):
                if queues[index] and time.monotonic() - started[index] > self.deadline_s:
                    yield replace(index), Broken(f"no answer for {self.deadline_s:.0f} s", died=True)
                feed(index)

    def probe(self) -> None:
        """Probe a fresh worker."""
        actor = self.make.options(num_cpus=0).remote(self.factory)
        try:
            self.ray.get(actor.probe.remote(), timeout=self.deadline_s)
        except (self.ray.exceptions.RayError, TimeoutError) as error:
            raise SystemicFault(f"the engine fails on a good input too: {error}") from error
        finally:
            self.ray.kill(actor)

    def close(self) -> None:
        """End the actors; their children go with them. Gently, unless they are at work and would not hear it."""
        if not any(self.queues.values()):
            done = [actor.close.remote() for actor in self.actors]
            self.ray.wait(done, num_returns=len(done), timeout=5.0)
        for actor in self.actors:
            self.ray.kill(actor)


class Host:
    """The actor: one worker in a process of its own."""

    def __init__(self, factory: Callable[[], Worker]) -> None:
        self.worker = factory()

    def ready(self) -> None:
        """Answer once the worker is made."""

    def process(self, payload: Any) -> list[Outcome] | Broken:
        """See guarded."""
        return guarded(lambda: self.worker.process(payload))

    def probe(self) -> None:
        """See Worker.probe."""
        self.worker.probe()

    def close(self) -> None:
        """See Worker.close."""
        self.worker.close()


def connect(resources: Resources) -> bool:
    """Join the cluster at RAY_ADDRESS, else the Ray of this process, else start one; says whether it did."""
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**options)
        return False
    cpus = max(os.cpu_count() or 1, int(resources.workers * resources.cpus))
    ray.init(address="local", include_dashboard=False, num_cpus=cpus, **options)
    return True


def open_pool(
    factory: Callable[[], Worker], resources: Resources, compute: ComputeSettings, deadline_s: float
) -> LocalPool | RayPool:
    """The pool that the settings ask for."""
    return LocalPool(factory) if compute.workers == 0 else RayPool(factory, resources, deadline_s)
