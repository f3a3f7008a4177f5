"""plan: how many rows each stage would compute, how long it takes, how many GB it writes; refuses too much."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from gap3d.manifest import LedgerRow
from gap3d.records import Status
from gap3d.schemas import STAGES
from gap3d.settings import Settings
from gap3d.store import Store, free_bytes
from pipelines import downloads, rendering, targets
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences
from pipelines.job import Job, NotReady

# Seconds and bytes of one row, measured on the demo (two cores of a virtual AMD EPYC, `make demo`); a
# collection that has rows of its own is planned from those. Renders and targets scale with their settings.
SECONDS = {"downloads": 0.01, "views": 0.25, "renders": 2.0, "targets": 6.0}
BYTES = {"downloads": 500_000, "views": 1_000, "renders": 60_000}
RESERVE = 1.1  # the disk has to hold so many times the plan


@dataclass(frozen=True)
class StagePlan:
    """What a run would do in one stage.

    Attributes:
        rows: expected rows.
        compute: rows that would be computed; with ``at_most``, no more than so many, for it depends
            on what earlier stages give.
        seconds: on one worker.
        measured: whether the unit costs come from this collection.
    """

    stage: str
    rows: int
    compute: int
    at_most: bool
    seconds: float
    bytes: int
    measured: bool


def unit_costs(store: Store, stage: str, default_s: float, default_bytes: int) -> tuple[float, int, bool]:
    """(seconds, bytes, measured) of one row: medians over what the collection holds, else the defaults."""
    seconds: list[float] = []
    sizes = 0
    rows = 0
    for shard in store.shards:
        held = store.manifest(stage, shard)
        good = [row for row in held.rows.values() if row.status is Status.OK]
        seconds += [row.seconds for row in good]
        rows += len(good)
        if stage == "downloads":
            sizes += sum(row["bytes"] for row in store.read(held, ["bytes"]).values())
        else:
            sizes += sum((store.shard(stage, shard) / part).stat().st_size for part in held.parts)
    if len(seconds) < 5:
        return default_s, default_bytes, False
    return statistics.fmean(seconds), sizes // rows, True


def make_plan(settings: Settings) -> list[StagePlan]:
    """The stages of the line that need workers, in order."""
    store = open_store(settings)
    token_bytes = targets.row_bytes(settings)
    pixels = settings.renders.resolution**2 * settings.renders.samples
    defaults_s = {**SECONDS, "renders": SECONDS["renders"] * pixels / (256**2 * 32)}
    defaults_b = {
        **BYTES,
        "renders": int(BYTES["renders"] * settings.renders.resolution**2 / 256**2),
        "targets": token_bytes,
    }
    rendered = settings.pictures == "renders"
    first = "catalog" if rendered else "images"
    objects = sum(len(store.manifest(first, shard).rows) for shard in store.shards)
    jobs: list[tuple[tuple[str, ...], Job]] = [((targets.STAGE,), targets.make_job(settings))]
    if rendered:
        jobs.insert(0, (rendering.STAGES, rendering.make_job(settings)))
        jobs.insert(0, ((downloads.STAGE,), downloads.make_job(settings)))
    plans = []
    upstream = 0  # objects that an earlier stage recomputes: their followers may change too
    views = settings.views.images if rendered else 1
    images = {stage: views if stage in ("renders", "targets") else 1 for stage in STAGES}
    for stages, job in jobs:
        counts = {stage: [0, 0] for stage in stages}
        for shard in store.shards:
            tally(store, settings, job, shard, counts)
        for stage in stages:
            rows, compute = counts[stage]
            most = max(objects * images[stage], rows)
            bound = min(most, compute + upstream * images[stage])
            seconds, size, measured = unit_costs(store, stage, defaults_s[stage], defaults_b[stage])
            plans.append(StagePlan(stage, most, bound, bound > compute, bound * seconds, bound * size, measured))
        upstream = max(upstream, *(-(-plan.compute // images[plan.stage]) for plan in plans))
    return plans


def tally(store: Store, settings: Settings, job: Job, shard: str, counts: Mapping[str, list[int]]) -> None:
    """Count a shard's rows and those that need work."""
    try:
        rows = job.rows(shard)
    except NotReady:
        return
    held = {stage: store.manifest(stage, shard) for stage in counts}
    for row in rows:
        known: LedgerRow | None = held[row.stage].rows.get(row.key)
        counts[row.stage][0] += 1
        if row.decided is None and (known is None or not row.stands or known.needs(row.inputs, settings.limits)):
            counts[row.stage][1] += 1


def lines(plans: list[StagePlan], settings: Settings, free: int) -> list[str]:
    """The plan as a table."""
    made = [f"{'stage':>9} {'rows':>8} {'compute':>9} {'hours':>9} {'GB':>9}  unit costs"]
    workers = max(1, settings.compute.workers)
    for plan in plans:
        bound = "<=" if plan.at_most else "  "
        where = "measured here" if plan.measured else "defaults"
        hours = plan.seconds / workers / 3600
        made.append(
            f"{plan.stage:>9} {plan.rows:8d} {bound}{plan.compute:7d} {hours:9.3f} {plan.bytes / 1e9:9.3f}  {where}"
        )
    made.append(f"writes {sum(p.bytes for p in plans) / 1e9:.3f} GB; {free / 1e9:.1f} GB are free; {workers} workers")
    return made


def refusal(plans: list[StagePlan], free: int) -> str:
    """Why the disk can't hold it; empty where it can."""
    needed = int(sum(plan.bytes for plan in plans) * RESERVE)
    if needed <= free:
        return ""
    have = f"{free / 1e9:.1f} GB are free: free some, or set another --store"
    return f"refused: {needed / 1e9:.1f} GB are needed with reserve, {have}"


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    _, settings = parse(made)
    with sentences(made):
        store = open_store(settings)
        require_catalog(store)
        plans = make_plan(settings)
        free = free_bytes(store.root)
        say(*lines(plans, settings, free))
        if why := refusal(plans, free):
            made.exit(1, why + "\n")


if __name__ == "__main__":
    main()
