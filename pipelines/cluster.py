"""The door to Ray: a pool of workers, each an actor, fed so that every item gets an answer.

Ray Core actors rather than Ray Data: Ray Data retries an item that kills its worker for ever by
default, or drops its whole block, and costs seconds for each small shard.
"""

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

# Read by Ray when it is imported. The first keeps every socket of a local Ray on 127.0.0.1; on a
# real cluster RAY_ADDRESS is set, and nodes have to hear each other.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # 2.60 turns tokens on by itself half-way; be explicit
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from gap3d.records import Outcome, SystemicFault
from gap3d.settings import ComputeSettings
from gap3d.signals import kept
from pipelines.worker import Broken, LocalPool, Resources, Worker, guarded

log = logging.getLogger(__name__)

SHARED_TRIES = 100
STARTS = 3  # actors in a row that die before they have a worker, then something is wrong with it


@dataclass(eq=False)
class Seat:
    """An actor, and what was handed to it.

    Attributes:
        actor: Ray's handle.
        ready: answers the id of its node once the worker is made there; until then Ray looks for room.
        node: that id; None before.
        queue: answers to come, with their items, the first one at work.
        since: when that one's work began.
    """

    actor: Any
    ready: Any
    node: str | None = None
    queue: deque[tuple[Any, Any]] = field(default_factory=deque)
    since: float = 0.0


class RayPool:
    """Actors on whatever nodes have room for them, now or later; two items are at each, or as many as it looks ahead.

    All the actors that are wanted are asked for at once. Ray places those that fit; the others wait for room, take
    part when a node joins, and cost nothing until then. One that dies is asked for again in the same way, so a lost
    node makes the pool smaller, not slower to end.

    Args:
        factory: makes a worker; sent to the actors.
        resources: how many workers at most, and what each takes.
        deadline_s: an item without an answer for so long costs its actor. Workers have limits of
            their own, well below this.

    Raises:
        SystemicFault: no node can ever hold a worker.
    """

    def __init__(self, factory: Callable[[], Worker], resources: Resources, deadline_s: float) -> None:
        import ray

        self.ray = ray
        connect(resources)
        self.factory = factory
        self.resources = resources
        self.deadline_s = deadline_s
        self.make: Any = ray.remote(Host).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            resources=dict(resources.custom),
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=resources.ahead,
            scheduling_strategy="SPREAD",
        )
        self.seats: list[Seat] = []
        self.alone_since = time.monotonic()  # without a single worker
        self.told = 0.0
        self.failed_starts = 0
        self.spared: set[int] = set()
        if not self.fits():
            if not self.growing():
                raise SystemicFault(self.no_room())
            log.warning("waiting for the autoscaler: %s", self.no_room())

    def needs(self) -> dict[str, float]:
        """What one worker takes, by Ray's names."""
        found = {"CPU": self.resources.cpus, "GPU": self.resources.gpus, **self.resources.custom}
        return {name: amount for name, amount in found.items() if amount}

    def nodes(self) -> dict[str, Mapping[str, float]]:
        """Everything that the living nodes have, in use or not, by node id."""
        return {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}

    def fits(self) -> bool:
        """Whether a node that lives could hold a worker if it had nothing else to do."""
        needs = self.needs()
        return any(all(has.get(name, 0) >= needs[name] for name in needs) for has in self.nodes().values())

    def growing(self) -> bool:
        """Whether the cluster has an autoscaler (``ray up`` starts one), which may bring the node that lacks."""
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        return is_autoscaler_v2(fetch_from_server=True)

    def no_room(self) -> str:
        """The sentence for a cluster that can't hold a worker."""
        names = self.needs()
        each = [", ".join(f"{name} {has.get(name, 0):g}" for name in names) for has in self.nodes().values()]
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in names.items())
        return (
            f"no node of the Ray cluster has what one worker takes ({wanted}); its nodes have: "
            f"{'; '.join(each) or 'none is alive'}. Start a node that has it, or ask for less "
            "(compute.render_gpus, compute.render_resources, compute.encoder_..., renders.threads)"
        )

    def add(self) -> None:
        """Ask for one more actor; it gets its worker wherever Ray finds room."""
        actor = self.make.remote(self.factory)
        self.seats.append(Seat(actor, actor.ready.remote()))

    def run(
        self, items: Sequence[Any], payload: Callable[[Any], Any], *, alone: bool = False
    ) -> Iterator[tuple[Any, list[Outcome] | Broken]]:
        """Answers in the order in which they come.

        Args:
            items: what is to be done.
            payload: what a worker gets of an item.
            alone: an actor has one item at work, whatever else it might look ahead: if it dies, that one did it.
        """
        waiting = deque(items)
        depth = 1 if alone and self.resources.ahead > 1 else max(2, self.resources.ahead)
        while len(self.seats) < min(self.resources.workers, len(items)):
            self.add()
        while waiting or any(seat.queue for seat in self.seats):
            for seat in self.seats:
                while seat.node and len(seat.queue) < depth and waiting:
                    if not seat.queue:
                        seat.since = time.monotonic()
                    item = waiting.popleft()
                    seat.queue.append((seat.actor.process.remote(payload(item)), item))
            seats = {reference: seat for seat in self.seats for reference in self.awaited(seat)}
            ready, _ = self.ray.wait(list(seats), num_returns=1, timeout=1.0)
            for reference in ready:
                seat = seats[reference]
                if seat.node is None:
                    self.seat(seat)
                    continue
                try:
                    answer = self.ray.get(reference)
                except self.ray.exceptions.RayTaskError as error:
                    cause = error.cause
                    raise cause if isinstance(cause, SystemicFault) else SystemicFault(str(error)) from error
                except self.ray.exceptions.RayError as error:
                    yield from self.lose(seat, waiting, error)
                    continue
                seat.since = time.monotonic()
                item = next(each for each in seat.queue if each[0] == reference)
                seat.queue.remove(item)
                yield item[1], answer
            for seat in list(self.seats):
                if seat.queue and time.monotonic() - seat.since > self.deadline_s:
                    yield from self.lose(seat, waiting, None)
            self.require_someone()

    def awaited(self, seat: Seat) -> list[Any]:
        """What will come from it: a worker that is made, or answers; of one item after another, the first's."""
        if seat.node is None:
            return [seat.ready]
        references = [reference for reference, _ in seat.queue]
        return references if self.resources.ahead > 1 else references[:1]

    def seat(self, seat: Seat) -> None:
        """Note that an actor has its worker; one that died on the way is asked for again.

        Raises:
            SystemicFault: a worker can't be made: something is missing on its node.
        """
        try:
            seat.node = self.ray.get(seat.ready)
            self.failed_starts = 0
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, SystemicFault) else SystemicFault(str(error)) from error
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= STARTS:
                raise SystemicFault(f"a worker does not start: {error}") from error
            self.drop(seat)
            self.add()

    def lose(self, seat: Seat, waiting: deque[Any], error: Exception | None) -> Iterator[tuple[Any, Broken]]:
        """Ask for a fresh actor in a dead one's place; the item it was at is its answer, others go back in line.

        Where several were at work in it, any of them may have done it: that is the answer of each, and their last try
        is made alone. An item whose actor went with its node gets another try for nothing, once: a node that dies is
        no item's fault, unless it is the same item's every time.
        """
        items = [item for _, item in seat.queue]
        at_work = len(items) if self.resources.ahead > 1 else 1
        gone = error is not None and self.went_with_its_node(seat, error)
        blamed = [item for item in items[:at_work] if not gone or id(item) in self.spared]
        if len(blamed) < at_work:
            log.warning("the Ray node %s is gone: its work is done again elsewhere", (seat.node or "")[:8])
        answered = set(map(id, blamed))
        self.spared.update(map(id, items[:at_work] if gone else []))
        waiting.extendleft(item for item in reversed(items) if id(item) not in answered)
        self.drop(seat)
        if waiting:
            self.add()
        silent = f"no answer for {self.deadline_s:.0f} s"
        for item in blamed:
            yield item, Broken(silent if error is None else "the worker process died", died=True)

    def went_with_its_node(self, seat: Seat, error: Exception) -> bool:
        """Whether not the worker alone is gone; of a worker alone its node tells at once that it died."""
        return seat.node not in self.nodes() or not isinstance(error, self.ray.exceptions.ActorDiedError)

    def drop(self, seat: Seat) -> None:
        """Let go of an actor."""
        self.ray.kill(seat.actor)
        self.seats.remove(seat)

    def require_someone(self) -> None:
        """Nothing to do while there is a worker; without one, there has to be hope of one.

        Raises:
            SystemicFault: there is none.
        """
        now = time.monotonic()
        if any(seat.node for seat in self.seats):
            self.alone_since, self.told = now, 0.0
            return
        waited = now - self.alone_since
        if waited > self.deadline_s:
            raise SystemicFault(
                f"no room on the Ray cluster for {waited:.0f} s: other work holds it" if self.fits() else self.no_room()
            )
        if waited - self.told > 60:
            self.told = waited
            log.warning("waiting for room on the Ray cluster%s", "" if self.fits() else f": {self.no_room()}")

    def probe(self) -> None:
        """Probe with a worker of the pool, behind what it has to do: another one may find no room."""
        if not self.seats:
            self.add()
        seat = min(self.seats, key=lambda seat: (seat.node is None, len(seat.queue)))
        try:
            self.ray.get(seat.actor.probe.remote(), timeout=self.deadline_s * (1 + len(seat.queue)))
        except (self.ray.exceptions.RayError, TimeoutError) as error:
            raise SystemicFault(f"the engine fails on a good input too: {error}") from error

    def close(self) -> None:
        """End the actors; their children go with them. Gently, unless they are at work and would not hear it."""
        if not any(seat.queue for seat in self.seats):
            done = [seat.actor.close.remote() for seat in self.seats if seat.node]
            if done:
                self.ray.wait(done, num_returns=len(done), timeout=5.0)
        for seat in self.seats:
            self.ray.kill(seat.actor)


class Host:
    """The actor: one worker in a process of its own."""

    def __init__(self, factory: Callable[[], Worker]) -> None:
        self.factory = factory

    def ready(self) -> str:
        """Make the worker, and say on which node: an error here reaches the driver as what it is."""
        import ray

        self.worker = self.factory()
        return ray.get_runtime_context().get_node_id()

    def process(self, payload: Any) -> list[Outcome] | Broken:
        """See guarded."""
        host = socket.gethostname()
        return guarded(lambda: [replace(outcome, host=host) for outcome in self.worker.process(payload)])

    def probe(self) -> None:
        """See Worker.probe."""
        self.worker.probe()

    def close(self) -> None:
        """See Worker.close."""
        self.worker.close()


class Shared:
    """One object for all workers of the cluster, of a class without arguments; called as if it were here.

    A small actor holds it: made by whoever needs it first, and anew where it went with its maker.
    """

    def __init__(self, make: type) -> None:
        self._make, self._actor = make, cast(Any, None)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    def _call(self, method: str, *args: Any) -> Any:
        import ray

        options = {"name": self._make.__name__, "namespace": "gap3d", "get_if_exists": True, "num_cpus": 0}
        for _ in range(SHARED_TRIES):
            try:
                self._actor = self._actor or ray.remote(self._make).options(**options).remote()
                return ray.get(getattr(self._actor, method).remote(*args))
            except (ray.exceptions.RayActorError, ValueError):  # it died; another is being made, by us or by others
                self._actor = None
                time.sleep(0.1)
        raise SystemicFault(f"what the workers of the cluster share ({self._make.__name__}) can't be reached")


def connect(resources: Resources) -> None:
    """Join the cluster at RAY_ADDRESS, else the Ray of this process, else start one."""
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        # Ray puts the driver's folder first on the nodes' search path: of a home that holds a clone named gap3d,
        # they would import the clone as a package. In this folder, they find what they are to find.
        with contextlib.chdir(Path(__file__).parents[1]), kept():
            ray.init(**options)
        return
    cpus = max(os.cpu_count() or 1, int(resources.workers * resources.cpus))
    with kept():
        ray.init(address="local", include_dashboard=False, num_cpus=cpus, **options)


def open_pool(
    factory: Callable[[], Worker], resources: Resources, compute: ComputeSettings, deadline_s: float
) -> LocalPool | RayPool:
    """The pool that the settings ask for."""
    if compute.workers == 0:
        return LocalPool(factory, resources.ahead)
    return RayPool(factory, resources, deadline_s)
