"""gc: remove what no kept version refers to, compact parts that are mostly dead, and erase what the deny-list names."""

from pathlib import Path

from gap3d import gc, takedown, temporary
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from gap3d.store import ALL, Store
from pipelines import dataset
from pipelines.command import open_store, parse, parser, require_catalog, say, sentences
from pipelines.fetcher import KIND, SCRATCH

YOURS = "  the images themselves lie in tars or in a folder, which are yours to change"
STILL = "of this store has them too: give it the deny-list, run its line, then its gc"


def erase(store: Store, settings: Settings) -> list[str]:
    """Erase what the deny-list names, without grace; lines that tell and prove it.

    Raises:
        ValueError: a stage has to run first.
        SystemicFault: something is left of a denied object.
    """
    objects = takedown.denied(store)
    for folder, pattern in leftovers(store):
        temporary.sweep(folder, pattern)
    if not objects:
        return []
    done = takedown.rewrite(store, objects, settings.compute)
    if store.manifest(dataset.STAGE, ALL).complete:
        dataset.run(settings)  # the index names the parts that hold its rows now, also where a kill came between
    takedown.remove(store, done, settings.compute.lease_wait_s)
    left = takedown.traces(store, objects, done.contents)
    if left:
        raise SystemicFault(f"{len(left)} traces of denied objects are left: {', '.join(left[:5])}")
    others = takedown.others(store, done)
    return [
        f"takedown: {len(objects)} objects denied; {len(done.parts)} parts and {len(done.files)} files erased",
        *(f"  {name}" for name in done.parts),
        *(f"  {path}" for path in done.files),
        *([YOURS] if any(store.shard("images", shard).exists() for shard in store.shards) else []),
        *(
            f"  {folder}: these files held other objects too: run `python -m pipelines.export --out {folder}` "
            "as before to have them again"
            for folder in done.exports
        ),
        *(
            f"  {folder.name} may have learned from them: weights forget nothing; remove {folder}, or train anew"
            for folder in takedown.learned(store)
        ),
        f"takedown: every part, table, page and export was read: nothing of {len(objects)} objects is left"
        + (f" in {store.collection}; {', '.join(others)} {STILL}" if others else ""),
    ]


def leftovers(store: Store) -> list[tuple[Path, str]]:
    """Where killed runs leave files of objects, and how those are called."""
    return [
        (store.root / SCRATCH, f"{KIND}-*"),
        (store.root / "unpacked", "part-*"),
        (store.folder, "selection-*"),
    ]


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--dry-run", action="store_true", help="only say what would go (takedowns: nothing is said)")
    made.add_argument("--grace-hours", type=float, default=24.0, help="keep files that are not older (default: 24)")
    known, settings = parse(made)
    with sentences(made):
        store, told = open_store(settings), list[str]()
        require_catalog(store, or_without=True)
        if not known.dry_run:
            told = erase(store, settings)
            say(*told)
        for stage, shard, parts in gc.compact(store, settings.compute, dry_run=known.dry_run):
            say(f"compact {stage}/{shard}: {parts} parts into one")
        found = gc.collect(store, known.grace_hours * 3600, settings.compute.lease_wait_s, dry_run=known.dry_run)
        for removal in found:
            say(f"remove {removal.place.removeprefix(f'{store.root}/')} ({removal.bytes} bytes)")
        verb = "would free" if known.dry_run else "freed"
        size = sum(removal.bytes for removal in found) / 1e6
        say(f"collection {store.collection} in {store.root}: {verb} {size:.1f} MB in {len(found)} files")
        if told and told[-1].endswith(STILL):
            made.exit(1, f"{made.prog}: {told[-1]}\n")


if __name__ == "__main__":
    main()
