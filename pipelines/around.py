"""around: renders of a collection's objects from all around, in a collection of their own (docs/method.md 2.2, 8.3).

python -m pipelines.around --collection toys4k
"""

import logging
import sys
from collections.abc import Collection, Sequence

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d.evaluation.objects import objects_of
from gap3d.evaluation.views import AROUND, numbers_of
from gap3d.manifest import LedgerRow
from gap3d.parts import write_atomically
from gap3d.records import Outcome, SystemicFault
from gap3d.schemas import CATALOG, DOWNLOADS, StageSchema
from gap3d.settings import Settings, ViewSettings
from gap3d.store import Store, free_bytes
from gap3d.takedown import RECORD
from pipelines import catalog, downloads, rendering
from pipelines.command import open_store, resolved, stage_main
from pipelines.job import require_complete
from pipelines.plan import BYTES, RESERVE
from pipelines.report import Report, ShardReport, merge

log = logging.getLogger(__name__)
SUFFIX = "-around"
COPIED: tuple[tuple[str, StageSchema], ...] = (("catalog", CATALOG), ("downloads", DOWNLOADS))
FROM = "collection"  # among the inputs of a copied row: where it comes from


def settings_of(settings: Settings) -> Settings:
    """The settings of the collection of renders from all around: those of the objects' own, but for cameras and pixels.

    ``evaluation.views`` says which protocols' cameras are wanted.
    """
    section = settings.evaluation
    numbers = sorted({number for count in section.views for number in numbers_of(count)})
    first = AROUND[0]
    views = ViewSettings(
        protocol="fixed",
        yaws=tuple(AROUND[number].yaw for number in numbers),
        pitches=(first.pitch,),
        radius=first.radius,
        fov=first.fov,
    )
    renders = settings.renders.model_copy(
        update={"resolution": section.resolution, "samples": section.samples, "depth": 20 in section.views}
    )
    return settings.model_copy(
        update={"collection": f"{settings.collection}{SUFFIX}", "views": views, "renders": renders}
    )


def true_settings(settings: Settings) -> Settings:
    """The settings of the collection whose renders are those of the true objects: ``evaluation.true``, or as derived.

    Raises:
        ValueError: there is no collection of that name.
    """
    name = settings.evaluation.true
    if not name:
        return settings_of(settings)
    if not Store.exists(settings.store, name):
        raise ValueError(f"evaluation.true = {name}: there is no such collection in {settings.store}")
    shards = len(Store.open(settings.store, name, settings.blobs).shards)
    catalog = settings.catalog.model_copy(update={"shards": shards})
    return settings.model_copy(update={"collection": name, "catalog": catalog})


def parent_of(settings: Settings, store: Store) -> Store:
    """The collection that one of renders from all around was derived from; any other is its own.

    Raises:
        ValueError: it is not there any more.
    """
    rows = (row for shard in store.shards for row in store.manifest("catalog", shard).rows.values())
    name = next((row.inputs[FROM] for row in rows if FROM in row.inputs), "")
    return Store.open(settings.store, name, settings.blobs) if name else store


def run(settings: Settings, shards: Sequence[str] = (), *, objects: Collection[str] | None = None) -> Report:
    """Bring the renders of a collection's objects up to date.

    The objects are those of the collection's catalog, and their files those that its downloads took in: what it lacks
    is made first, and nothing is fetched twice.

    Args:
        settings: of the objects' own collection.
        shards: of it, and so of what is derived; none takes all.
        objects: which are rendered, by object_id; None takes those that generation is measured on
            (``evaluation.count``).

    Raises:
        ValueError: the collection of that name is another one.
        SystemicFault: the disk can't hold the renders.
    """
    if objects is None and settings.evaluation.true:
        log.warning("nothing is rendered: evaluation.true names %s", settings.evaluation.true)
        return Report(shards=())
    if settings.pictures == "images":
        raise ValueError(f"{settings.collection} is a collection of images: it has no objects that can be rendered")
    parent = open_store(settings)
    wanted = list(shards) or parent.shards
    if not all(parent.manifest("catalog", shard).complete for shard in parent.shards):
        catalog.run(settings)
    if behind := [shard for shard in wanted if not parent.manifest("downloads", shard).complete]:
        downloads.run(settings, behind)
    own = settings_of(settings)
    store = open_store(own)
    require_derived(store, parent)
    section = settings.evaluation
    chosen = objects_of(parent, section.count, section.shuffle) if objects is None else objects
    if not chosen and objects is None:
        raise ValueError(
            f"no object of collection {parent.collection} has a caption, and generation is measured on those that have"
        )
    copied = []
    for shard in wanted:
        keys = rendered_of(parent, store, shard, chosen)
        copied += [copy(parent, store, stage, shard, schema, own, keys) for stage, schema in COPIED]
    if (denied := parent.folder / RECORD).exists():  # so that a takedown knows whose bytes go here too
        write_atomically(store.folder / RECORD, denied.read_bytes())
    require_room(store, own)
    report = merge([Report(shards=tuple(copied)), rendering.run(own, wanted)])
    write_atomically(store.folder / "settings.json", resolved(own).model_dump_json(indent=1).encode())
    return report


def require_derived(store: Store, parent: Store) -> None:
    """Raises ValueError for a collection whose objects are not its parent's: nobody's own is written over."""
    for shard in store.shards:
        for row in store.manifest("catalog", shard).rows.values():
            if row.inputs.get(FROM) != parent.collection:
                raise ValueError(
                    f"collection {store.collection} in {store.root} is not one that `python -m pipelines.around` made "
                    f"of {parent.collection}: if it shows the true objects from all around, name it with "
                    f"--evaluation.true {store.collection}; else rename its folder"
                )


def inputs_of(parent: Store, row: LedgerRow) -> dict[str, str]:
    """The fingerprint of a row that is taken over."""
    return {FROM: parent.collection, "row": row.digest, "reason": row.reason}


def rendered_of(parent: Store, store: Store, shard: str, chosen: Collection[str]) -> set[str]:
    """Which objects of a shard have renders: the chosen ones, and of others those that have them already.

    These stay as long as their files are what they were: renders are dear, and a smaller count may be a glance.
    """
    theirs = require_complete(parent, "downloads", shard, "downloads").rows
    ours = store.manifest("downloads", shard).rows
    begun = {key.rpartition("/")[0] for key in store.manifest("renders", shard).rows} & ours.keys() & theirs.keys()
    return {key for key in begun if dict(ours[key].inputs) == inputs_of(parent, theirs[key])} | set(chosen)


def copy(
    parent: Store,
    store: Store,
    stage: str,
    shard: str,
    schema: StageSchema,
    settings: Settings,
    objects: Collection[str],
) -> ShardReport:
    """Take a stage's rows of these objects, as far as they are there, over from the parent as they are."""
    held = require_complete(parent, stage, shard, stage)
    keys = set(held.rows) & set(objects)
    data = parent.read(held, keys=keys)
    # One commit a shard: its rows are there already.
    compute = settings.compute.model_copy(update={"flush_rows": 1 << 30, "flush_s": 1e9})
    with store.writer(stage, shard, schema, compute, settings.limits) as writer:
        for key in sorted(keys):
            row = held.rows[key]
            inputs = inputs_of(parent, row)
            known = writer.rows.get(key)
            if known is not None and dict(known.inputs) == inputs:
                continue
            content = {name: value for name, value in data[key].items() if name != "key"} if key in data else None
            writer.add(
                Outcome(stage=stage, key=key, status=row.status, reason=row.reason, origin=row.origin, data=content),
                inputs,
            )
        made = writer.finish(keys)
    return ShardReport(
        stage=stage,
        shard=shard,
        expected=len(keys),
        found=made.count,
        computed=0,
        decided=writer.added,
        by_status=made.by_status(),
        digest=made.digest,
    )


def require_room(store: Store, settings: Settings) -> None:
    """Raises SystemicFault where the disk can't hold the pictures that are to come."""
    objects = sum(len(store.manifest("catalog", shard).rows) for shard in store.shards)
    there = sum(
        row.part is not None for shard in store.shards for row in store.manifest("renders", shard).rows.values()
    )
    pictures = max(0, objects * settings.views.images - there) * (1 + settings.renders.depth)
    needed = int(pictures * BYTES["renders"] * (settings.renders.resolution / 256) ** 2 * RESERVE)
    if needed > (free := free_bytes(store.root)):
        raise SystemicFault(
            f"refused: {objects} objects from {settings.views.images} sides need {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: free some, or set another --store, --evaluation.count or "
            "--evaluation.resolution"
        )


if __name__ == "__main__":
    stage_main("around", __doc__, run)
