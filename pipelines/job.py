"""Shards in, shards out: plan the rows, compute what is not up to date, commit each shard when its rows are in."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from gap3d.manifest import Manifest
from gap3d.records import Outcome, Status
from gap3d.schemas import StageSchema
from gap3d.settings import Settings
from gap3d.shard_writer import ShardWriter
from gap3d.store import Store
from pipelines.cluster import open_pool
from pipelines.progress import progress, show_bytes
from pipelines.report import Report, ShardReport
from pipelines.worker import Broken, Resources, Worker

log = logging.getLogger(__name__)

STREAK = 20  # equal failures in a row before the engine has to prove that it works


class NotReady(Exception):
    """An earlier stage has not finished the shards that this one needs."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One expected output row.

    Attributes:
        inputs: the parts of its fingerprint; None where only the item's own work can tell them.
        decided: the outcome, where it follows without work from an earlier stage's.
        after: the row of the same item that has to be computed first.
        stands: whether what an up-to-date row refers to is still there.
        payload: what a worker needs to compute it.
    """

    stage: str
    key: str
    inputs: Mapping[str, str] | None
    decided: Outcome | None = None
    after: tuple[str, str] | None = None
    stands: bool = True
    payload: Any = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """What a worker takes at once: rows that share an input or a batch."""

    shard: str
    rows: tuple[Row, ...]
    payload: Any
    attempts: int = 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage, or stages computed in the same breath.

    Attributes:
        stages: in the order of their dependence.
        schema: columns by stage.
        rows: the expected rows of a shard.
        items: groups rows that need work; gets the shard, the rows and the manifests in force.
        factory: makes a worker.
        metadata: goes into every part of a stage.
        singly: an item of several rows as one of each row, where none needs another: if a worker dies of the item, they
            are tried so, and the guilty row costs no other. None where they can't be parted.
        bytes_of: what an outcome counts beside the bar of progress; None shows rows only.
        unit: what the bar of progress counts.
        units: of them in a row. A worker in this process tells of single ones (``progress.advance``).
        says: what else to say beside it, once the outcomes of one more item have come.
        deadline_s: an item without an answer for so long costs its worker, which has tighter limits of its own; None
            takes twice the time limit of an object and some more.
    """

    stages: tuple[str, ...]
    schema: Mapping[str, StageSchema]
    rows: Callable[[str], list[Row]]
    items: Callable[[str, list[Row], Mapping[str, Manifest]], list[Item]]
    factory: Callable[[], Worker]
    resources: Resources
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    singly: Callable[[Item], list[Item]] | None = None
    bytes_of: Callable[[Outcome], int] | None = None
    unit: str = "row"
    units: int = 1
    says: Callable[[Sequence[Outcome]], str] | None = None
    deadline_s: float | None = None


def parted(item: Item) -> list[Item]:
    """An item of several rows, whose payload is a list of theirs, as one of each (``Job.singly``)."""
    return [replace(item, rows=(row,), payload=[row.payload]) for row in item.rows]


def require_complete(store: Store, stage: str, shard: str, program: str) -> Manifest:
    """The manifest of an earlier stage.

    Raises:
        NotReady: it is not there or not whole; the message says what to run.
    """
    held = store.manifest(stage, shard)
    if not held.complete:
        raise NotReady(f"{stage} of shard {shard} is not complete: run `python -m pipelines.{program}` first")
    return held


def follower(stage: str, key: str, origin: str, row: Any) -> Outcome:
    """The outcome of an object whose earlier stage failed: the same status, and where it comes from."""
    first = row.origin or origin
    inputs = {"origin": first, "status": row.status.value, "reason": row.reason}
    return Outcome(stage=stage, key=key, status=row.status, reason=row.reason, origin=first, inputs=inputs)


def passed_on(stage: str, key: str, origin: str, row: Any) -> Row:
    """The row of an object whose earlier stage failed."""
    outcome = follower(stage, key, origin, row)
    return Row(stage=stage, key=key, inputs=outcome.inputs, decided=outcome)


@dataclass
class ShardRun:
    """One shard in progress."""

    shard: str
    rows: dict[tuple[str, str], Row]
    writers: dict[str, ShardWriter]
    leases: ExitStack
    waiting: set[tuple[str, str]] = field(default_factory=set)
    report: list[ShardReport] = field(default_factory=list)
    computed: Counter[str] = field(default_factory=Counter)
    decided: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    why: Counter[tuple[str, str]] = field(default_factory=Counter)

    def spend(self, stage: str, name: str, seconds: float) -> None:
        """Count seconds of a kind of work."""
        costs = self.costs.setdefault(stage, {})
        costs[name] = costs.get(name, 0.0) + seconds


def run(job: Job, store: Store, settings: Settings, shards: Sequence[str]) -> Report:
    """Compute what is not up to date in these shards.

    Raises:
        SystemicFault: the engine or the machine fails; nothing that it caused is committed as a row.
        LeaseHeld: another run writes one of the shards.
        NotReady: an earlier stage is not complete.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        runs: dict[str, ShardRun] = {}
        items: list[Item] = []
        for shard in shards:
            runs[shard] = start_shard(job, store, settings, shard, stack)
            found = plan_items(job, store, settings, runs[shard])
            items += found
            if not found:
                finish_shard(job, runs[shard])
        if items:
            compute(job, settings, items, runs)
    reports = tuple(report for active in runs.values() for report in active.report)
    for report in reports:
        report.prove()
    return Report(shards=reports, wall_s=time.monotonic() - started)


def start_shard(job: Job, store: Store, settings: Settings, shard: str, stack: ExitStack) -> ShardRun:
    """Take a shard's leases and find out which rows it should have."""
    leases = stack.enter_context(ExitStack())
    writers = {
        stage: leases.enter_context(
            store.writer(stage, shard, job.schema[stage], settings.compute, settings.limits, job.metadata.get(stage))
        )
        for stage in job.stages
    }
    rows = {(row.stage, row.key): row for row in job.rows(shard)}  # under the lease: another run may just have ended
    return ShardRun(shard=shard, rows=rows, writers=writers, leases=leases)


def plan_items(job: Job, store: Store, settings: Settings, active: ShardRun) -> list[Item]:
    """Write the rows that need no work, and group those that do."""
    todo: list[Row] = []
    for place, row in active.rows.items():
        writer = active.writers[row.stage]
        known = writer.rows.get(row.key)
        reason = "new" if known is None else known.needs(row.inputs, settings.limits)
        if not reason and not row.stands:
            reason = "lost"
        if not reason and row.after in active.waiting:
            reason = "after"
        if not reason:
            continue
        if row.decided is not None:
            writer.add(row.decided, row.inputs or {})
            active.decided[row.stage] += 1
            continue
        if reason != "after":
            active.why[(row.stage, reason)] += 1
        active.waiting.add(place)
        todo.append(row)
    manifests = {stage: store.manifest(stage, active.shard) for stage in job.stages}
    return job.items(active.shard, todo, manifests) if todo else []


def compute(job: Job, settings: Settings, items: list[Item], runs: Mapping[str, ShardRun]) -> None:
    """Feed the items to workers and take their outcomes."""
    deadline_s = job.deadline_s or settings.limits.timeout_s * 2 + 300
    pool = open_pool(job.factory, job.resources, settings.compute, deadline_s)
    streak: list[tuple[Item, Outcome]] = []
    left: Counter[str] = Counter()
    for item in items:
        left[item.shard] += len(item.rows)
    label = "+".join(job.stages)
    works, done = False, 0
    try:
        with progress(total=job.units * sum(left.values()), desc=label, unit=job.unit) as bar:
            for item, found in outcomes(pool, items, settings, job.singly):
                if job.bytes_of:
                    show_bytes(bar, sum(map(job.bytes_of, found)))
                if job.says:
                    bar.set_postfix_str(job.says(found), refresh=False)
                done += job.units * len(item.rows)
                bar.update(done - bar.n)
                for outcome in found:
                    followed = bool(outcome.origin) and bool(streak)  # it goes with the failure that it passes on
                    if not followed and streak and kind(outcome) != kind(streak[0][1]):
                        settle(streak, runs)
                    if outcome.status is Status.OK:
                        works = True
                        take(item, outcome, runs)
                        continue
                    streak.append((item, outcome))
                    if sum(not held.origin for _, held in streak) >= STREAK:
                        log.warning("%d times %s in a row: proving that the engine works", STREAK, outcome.status)
                        pool.probe()
                        settle(streak, runs)
                left[item.shard] -= len(item.rows)
                for shard in [shard for shard, count in left.items() if not count]:
                    if not any(held.shard == shard for held, _ in streak):
                        del left[shard]
                        finish_shard(job, runs[shard])
            if streak and not works and streak[0][1].status in (Status.CRASHED, Status.INTERNAL_ERROR):
                pool.probe()  # a short run of nothing but crashes: the inputs, or the engine?
            settle(streak, runs)
            for shard in left:
                finish_shard(job, runs[shard])
    finally:
        pool.close()


def outcomes(
    pool: Any, items: Sequence[Item], settings: Settings, singly: Callable[[Item], list[Item]] | None = None
) -> Iterator[tuple[Item, list[Outcome]]]:
    """Every item with its outcomes; one whose worker died is tried again until its attempts are used up.

    The last try is made alone: a death in it is nobody else's doing. So that it is no other row's either, an item whose
    worker died is parted into its rows (``Job.singly``), for one more try if it has none left.
    """
    limit = settings.limits.attempts
    todo: Sequence[Item] = items
    while todo:
        again: list[Item] = []
        for item, answer in pool.run(todo, lambda item: item.payload, alone=todo[0].attempts >= limit):
            alone = singly(item) if singly and len(item.rows) > 1 else [item]
            if not isinstance(answer, Broken):
                yield item, [replace(outcome, attempts=outcome.attempts + item.attempts - 1) for outcome in answer]
            elif answer.died and (item.attempts < limit or len(alone) > 1):
                again += [replace(each, attempts=min(item.attempts + 1, limit)) for each in alone]
            else:
                yield item, [broken(row, item, answer) for row in item.rows]
        todo = again


def broken(row: Row, item: Item, answer: Broken) -> Outcome:
    """The row of an item that got no answer."""
    first = next((other for other in item.rows if (other.stage, other.key) == row.after), None)
    if first is not None:
        return follower(row.stage, row.key, first.stage, broken(first, item, answer))
    return Outcome(
        stage=row.stage,
        key=row.key,
        status=Status.CRASHED if answer.died else Status.INTERNAL_ERROR,
        reason=answer.reason,
        attempts=item.attempts,
        log_tail=answer.traceback,
        inputs=row.inputs or {},
    )


def kind(outcome: Outcome) -> tuple[Status, str]:
    """What equal failures have in common."""
    return outcome.status, outcome.stage


def settle(streak: list[tuple[Item, Outcome]], runs: Mapping[str, ShardRun]) -> None:
    """Commit failures that are the inputs' fault."""
    for item, outcome in streak:
        take(item, outcome, runs)
    streak.clear()


def take(item: Item, outcome: Outcome, runs: Mapping[str, ShardRun]) -> None:
    """Hand one outcome to its shard's writer."""
    active = runs[item.shard]
    row = active.rows[(outcome.stage, outcome.key)]
    writer = active.writers[outcome.stage]
    known = writer.rows.get(outcome.key)
    inputs = outcome.inputs if outcome.inputs is not None else row.inputs
    if inputs is None:
        raise RuntimeError(f"{outcome.stage} {outcome.key}: no inputs for its fingerprint")
    again = known is not None and known.needs(inputs, writer.limits).startswith("attempt")
    earlier = known.attempts if known is not None and again else 0
    if outcome.status is not Status.OK and not outcome.origin:
        log.warning("%s %s: %s: %s", outcome.stage, outcome.key, outcome.status, outcome.reason)
    for name, seconds in outcome.costs.items():
        active.spend(outcome.stage, name, seconds)
    begun = time.perf_counter()
    writer.add(replace(outcome, attempts=outcome.attempts + earlier), inputs)
    active.spend(outcome.stage, "write", time.perf_counter() - begun)
    (active.decided if outcome.origin else active.computed)[outcome.stage] += 1
    active.retried[outcome.stage] += int(again)
    active.seconds[outcome.stage] = active.seconds.get(outcome.stage, 0.0) + outcome.seconds
    active.waiting.discard((outcome.stage, outcome.key))


def finish_shard(job: Job, active: ShardRun) -> None:
    """Commit a shard, let go of it, and note what it holds."""
    for stage in job.stages:
        writer = active.writers[stage]
        expected = {key for (of, key) in active.rows if of == stage}
        begun = time.perf_counter()
        held = writer.finish(expected)
        active.spend(stage, "commit", time.perf_counter() - begun)
        active.report.append(
            ShardReport(
                stage=stage,
                shard=active.shard,
                expected=len(expected),
                found=len(held.rows),
                computed=active.computed[stage],
                decided=active.decided[stage],
                retried=active.retried[stage],
                by_status=held.by_status(),
                digest=held.digest,
                seconds=active.seconds.get(stage, 0.0),
                why={reason: count for (of, reason), count in active.why.items() if of == stage},
                costs={name: round(seconds, 6) for name, seconds in active.costs[stage].items()},
            )
        )
    active.leases.close()
