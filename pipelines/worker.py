"""What computes items: a worker's shape, what may become of an item, and the pool of one worker in this process."""

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from gap3d.records import Outcome, SystemicFault
from gap3d.settings import Settings


class Worker(Protocol):
    """What computes items: lives in one process, keeps what is dear (a Blender, an encoder) between items."""

    def process(self, payload: Any) -> list[Outcome]:
        """Outcomes of one item; called from several threads at once where the job looks ahead."""

    def probe(self) -> None:
        """Prove that the engine works on a good input; raises SystemicFault where it does not."""

    def close(self) -> None:
        """Let go of processes and files; what is at work in another thread ends soon."""


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
    """What one worker takes of a node, and how many items it has at work.

    Attributes:
        workers: at most so many.
        ahead: items that one worker is handed at once, each in a thread of its own: while one is in its engine, the
            next is made ready and the last handed over. 1: one after another.
    """

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    ahead: int = 1


def encoder_resources(settings: Settings, ahead: int = 1) -> Resources:
    """What the workers of an encoder take (``compute.encoder_threads``, ``encoder_gpus``, ``encoder_resources``)."""
    compute = settings.compute
    return Resources(
        max(1, compute.workers // compute.encoder_threads),
        cpus=float(compute.encoder_threads),
        gpus=compute.encoder_gpus,
        custom=compute.encoder_resources,
        ahead=ahead,
    )


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
    """One worker in this process, without Ray.

    Args:
        factory: makes the worker.
        ahead: see Resources.
    """

    def __init__(self, factory: Callable[[], Worker], ahead: int = 1) -> None:
        self.worker = factory()
        self.ahead = ahead
        self.threads = ThreadPoolExecutor(ahead, thread_name_prefix="item") if ahead > 1 else None

    def run(
        self, items: Sequence[Any], payload: Callable[[Any], Any], *, alone: bool = False
    ) -> Iterator[tuple[Any, list[Outcome] | Broken]]:
        """Answers in the order in which they come; see RayPool.run."""
        if self.threads is None or alone:
            for item in items:
                yield item, guarded(partial(self.worker.process, payload(item)))
            return
        waiting: dict[Future[list[Outcome] | Broken], Any] = {}
        todo = deque(items)
        while todo or waiting:
            while todo and len(waiting) < self.ahead:
                item = todo.popleft()
                waiting[self.threads.submit(guarded, partial(self.worker.process, payload(item)))] = item
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for answer in done:
                yield waiting.pop(answer), answer.result()

    def probe(self) -> None:
        """See Worker.probe."""
        self.worker.probe()

    def close(self) -> None:
        """See Worker.close."""
        self.worker.close()
        if self.threads is not None:
            self.threads.shutdown(cancel_futures=True)
