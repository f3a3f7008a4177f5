"""gc: remove what no kept version refers to, and compact parts that are mostly dead."""

from gap3d import gc
from pipelines.command import open_store, parse, parser, say, sentences


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--dry-run", action="store_true", help="only say what would go")
    made.add_argument("--grace-hours", type=float, default=24.0, help="keep what was replaced less than so long ago")
    known, settings = parse(made)
    with sentences(made):
        store = open_store(settings)
        for stage, shard, parts in gc.compact(store, settings.compute.lease_wait_s, dry_run=known.dry_run):
            say(f"compact {stage}/{shard}: {parts} parts into one")
        found = gc.collect(store, known.grace_hours * 3600, settings.compute.lease_wait_s, dry_run=known.dry_run)
        for removal in found:
            say(f"remove {removal.path.relative_to(store.root)} ({removal.bytes} bytes)")
        verb = "would free" if known.dry_run else "freed"
        say(f"{verb} {sum(removal.bytes for removal in found) / 1e6:.1f} MB in {len(found)} files")


if __name__ == "__main__":
    main()
