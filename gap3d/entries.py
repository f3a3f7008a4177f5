"""What people are shown of an object: its way through catalog, downloads, views and renders, without its pictures."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gap3d.manifest import LedgerRow, Manifest
from gap3d.records import Status
from gap3d.store import Store

STAGES = ("catalog", "downloads", "views", "renders")
NOT_RENDERED = "not rendered"  # nothing failed; the run has not come to it yet
FACTS = ("object_id", "view", "yaw", "pitch", "coverage", "flags", "missing_textures")
READ_AT_ONCE = 32  # pictures in memory


@dataclass(frozen=True)
class Fault:
    """A row that is not ok, at the stage where that began."""

    stage: str
    key: str
    status: str
    reason: str
    log_tail: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One object.

    Attributes:
        status: ok, the first fault's status, or ``not rendered``.
        faults: rows that failed, in the order of the stages.
        catalog: its row of the catalog; empty unless that is ok.
        views: its row of views; empty unless that is ok.
        renders: its good rows of renders by key, in the order of the views, without pictures.
        ledger: run facts of its rows of views and renders.
    """

    object_id: str
    shard: str
    status: str
    faults: tuple[Fault, ...] = ()
    catalog: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)
    renders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ledger: tuple[LedgerRow, ...] = ()

    @property
    def name(self) -> str:
        """Its path below the source folder, where the catalog knows it."""
        return str(self.catalog.get("identifier") or self.object_id)

    @property
    def flags(self) -> list[str]:
        """Quality gates that one of its pictures does not pass."""
        return list(dict.fromkeys(flag for row in self.renders.values() for flag in row["flags"] or ()))

    @property
    def missing_textures(self) -> list[str]:
        """Names of images that it refers to and that are not there."""
        rows = (self.views, *self.renders.values())
        return list(dict.fromkeys(name for row in rows for name in row.get("missing_textures") or ()))

    @property
    def scores(self) -> list[float]:
        """Share of its surface points that each candidate sees, in [0, 1]."""
        points = self.views.get("points") or 1
        return [count / points for count in self.views.get("counts") or ()]

    @property
    def sandboxed(self) -> bool | None:
        """False if anything opened it unconfined; None where nothing opened it, or nobody wrote that down."""
        known = [row.sandboxed for row in self.ledger if row.sandboxed is not None]
        return all(known) if known else None

    @property
    def seconds(self) -> float:
        """Work on its views and renders."""
        return sum(row.seconds for row in self.ledger)

    def keys(self, most: int) -> list[str]:
        """Keys of at most so many of its good renders, evenly spread over the views."""
        keys = list(self.renders)
        return [keys[index] for index in spread(len(keys), most)]

    @property
    def good(self) -> bool:
        """Nothing about it wants a look."""
        return self.status == Status.OK and not self.flags and self.sandboxed is not False


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spread, the first among them."""
    return sorted({index * count // min(count, most) for index in range(min(count, most))})


def shard_entries(store: Store, shard: str) -> list[Entry]:
    """All objects of a shard, good ones first, then by name."""
    held = {stage: store.manifest(stage, shard) for stage in STAGES}
    catalog = store.read(held["catalog"])
    views = store.read(held["views"])
    renders: dict[str, dict[str, dict[str, Any]]] = {}
    for key, facts in sorted(store.read(held["renders"], FACTS).items()):
        renders.setdefault(facts["object_id"], {})[key] = facts
    rows: dict[str, list[tuple[str, LedgerRow]]] = {}
    for stage in STAGES:
        for key, row in sorted(held[stage].rows.items()):
            rows.setdefault(key.partition("/")[0], []).append((stage, row))
    made = []
    for key, found in rows.items():
        faults = faults_of(found)
        done = Status.OK.value if key in renders else NOT_RENDERED
        made.append(
            Entry(
                object_id=key,
                shard=shard,
                status=faults[0].status if faults else done,
                faults=faults,
                catalog=catalog.get(key, {}),
                views=views.get(key, {}),
                renders=renders.get(key, {}),
                ledger=tuple(row for stage, row in found if stage in ("views", "renders")),
            )
        )
    return sorted(made, key=lambda entry: (entry.status != Status.OK, entry.name, entry.object_id))


def faults_of(rows: Iterable[tuple[str, LedgerRow]]) -> tuple[Fault, ...]:
    """Where an object's rows began to fail; rows that only pass a failure on say nothing new."""
    failed = [(stage, row) for stage, row in rows if row.status is not Status.OK]
    own = [(stage, row) for stage, row in failed if not row.origin] or failed[:1]
    return tuple(Fault(stage, row.key, row.status.value, row.reason, row.log_tail) for stage, row in own)


def pictures(held: Manifest, store: Store, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Rows with ``key``, ``png`` and ``depth`` of good renders, a few at a time, in the order in which they lie.

    Args:
        held: a manifest of renders.
        store: where its parts lie.
        keys: which rows.
    """
    rows = [held.rows[key] for key in keys if key in held.rows]
    rows.sort(key=lambda row: (row.part or "", row.part_row or 0))
    columns = ["png", "depth", "depth_min", "depth_max"]
    for start in range(0, len(rows), READ_AT_ONCE):
        yield from store.read(held, columns, [row.key for row in rows[start : start + READ_AT_ONCE]]).values()
