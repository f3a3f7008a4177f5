"""Garbage collection: removes parts and blobs that no kept version refers to, and compacts mostly dead parts."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from gap3d import manifest
from gap3d.lease import lease
from gap3d.manifest import Manifest
from gap3d.parts import PartWriter, read_rows
from gap3d.schemas import CATALOG, DATASET, DOWNLOADS, IMAGES, PROMPTS, RENDERS, TARGET_ROWS, VIEWS, StageSchema
from gap3d.store import Store, leftovers, now

LIVE_SHARE = 0.5  # a part with fewer live rows is rewritten
PART_BYTES = 512 * 1024**2  # a new part is closed at this size
SMALL_PARTS = 8  # so many parts that together fill less than one are rewritten as one
SCHEMAS = {
    "catalog": CATALOG,
    "downloads": DOWNLOADS,
    "views": VIEWS,
    "renders": RENDERS,
    "images": IMAGES,
    "dataset": DATASET,
    "prompts": PROMPTS,
}


@dataclass(frozen=True)
class Removal:
    """A file that nothing refers to."""

    place: str
    bytes: int


def shards(store: Store) -> Iterator[Manifest]:
    """Every committed manifest of the collection."""
    for path in sorted(store.folder.glob(f"*/*/{manifest.NAME}")):
        yield manifest.read(path.parent, path.parent.parent.name, path.parent.name)


def pinned(store: Store) -> set[tuple[str, str, str]]:
    """Parts that the dataset index refers to, as (stage, shard, part): training reads them by name."""
    held = store.manifest("dataset", "all")
    return {
        ("targets", row["target_shard"], row["target_part"]) for row in store.read(held, list(DATASET.exempt)).values()
    }


def collect(store: Store, grace_s: float, wait_s: float, *, dry_run: bool) -> list[Removal]:
    """Remove retired parts and blobs of no object, older than the grace, and what killed runs left.

    Args:
        store: the collection; blobs are looked up in all collections of its store.
        grace_s: readers that hold an older manifest have so long to finish.
        wait_s: how long to wait for a shard that is being written.
        dry_run: only say what would go.
    """
    found = []
    kept = pinned(store)
    for held in shards(store):
        folder = store.shard(held.stage, held.shard)
        with lease(folder, wait_s):
            held = store.manifest(held.stage, held.shard)
            for path in leftovers(folder, held):
                found.append(Removal(str(path), path.stat().st_size))
                if not dry_run:
                    path.unlink()
            for part, when in held.retired.items():
                path = folder / part
                age = time.time() - datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
                if age < grace_s or (held.stage, held.shard, part) in kept or not path.exists():
                    continue
                found.append(Removal(str(path), path.stat().st_size))
                if not dry_run:
                    path.unlink()
            gone = {part for part in held.retired if not (folder / part).exists()}
            if gone and not dry_run:
                retired = {part: when for part, when in held.retired.items() if part not in gone}
                manifest.write(folder, replace(held, retired=retired))
    found += collect_blobs(store, grace_s, dry_run=dry_run)
    return found


def collect_blobs(store: Store, grace_s: float, *, dry_run: bool) -> list[Removal]:
    """Remove blobs that no collection's downloads list."""
    used = used_blobs(store)
    found = []
    for entry in store.blobs.entries():
        ours = re.fullmatch("[0-9a-f]{64}", entry.name)  # the folder may be the user's, and hold more
        if ours and entry.name not in used and time.time() - entry.modified >= grace_s:
            found.append(Removal(entry.place, entry.bytes))
            if not dry_run:
                store.blobs.remove(entry.name)
    for path in store.blobs.leftovers():
        found.append(Removal(str(path), path.stat().st_size))
        if not dry_run:
            path.unlink(missing_ok=True)
    return found


def used_blobs(store: Store) -> set[str]:
    """sha256 of every file that the downloads of a collection of this store list."""
    folders = {path.parents[2] for path in store.root.glob(f"*/downloads/*/{manifest.NAME}")}
    return set().union(*(listed_blobs(opened(store, folder)) for folder in folders))


def opened(store: Store, folder: Path) -> Store:
    """A collection of the same store, whatever its number of shards, to read in."""
    other = object.__new__(Store)
    other.root, other.folder, other.collection, other.blobs = store.root, folder, folder.name, store.blobs
    return other


def listed_blobs(store: Store) -> set[str]:
    """sha256 of every file that the downloads of a collection list."""
    used: set[str] = set()
    for path in store.folder.glob(f"downloads/*/{manifest.NAME}"):
        held = manifest.read(path.parent, "downloads", path.parent.name)
        for row in store.read(held, ["files"]).values():
            used |= {file["sha256"] for file in row["files"]}
    return used


def compact(store: Store, wait_s: float, *, dry_run: bool) -> list[tuple[str, str, int]]:
    """Rewrite the live rows of parts that are mostly dead or many and small.

    Returns:
        (stage, shard, number of parts) of the shards that were, or would be, compacted. Digests stay
        as they are: they cover what rows hold, not where.
    """
    done = []
    for seen in shards(store):
        schema = SCHEMAS.get(seen.stage)
        folder = store.shard(seen.stage, seen.shard)
        if schema is None:
            schema = targets_schema(folder, seen)
        with lease(folder, wait_s):
            held = store.manifest(seen.stage, seen.shard)
            parts = worth_compacting(folder, held)
            if schema is None or not parts:
                continue
            done.append((held.stage, held.shard, len(parts)))
            if not dry_run:
                rewrite(folder, held, parts, schema)
    return done


def targets_schema(folder: Path, held: Manifest) -> StageSchema | None:
    """The columns of a shard's target parts and their compression, as its first part has them."""
    import pyarrow.parquet as pq

    parts = sorted(held.parts)
    if not parts:
        return None
    with pq.ParquetFile(folder / parts[0]) as file:
        zstd = file.metadata.row_group(0).column(0).compression == "ZSTD"
        columns = file.schema_arrow.remove_metadata()
    return StageSchema(columns, row_group_rows=TARGET_ROWS, compression="zstd" if zstd else "none")


def worth_compacting(folder: Path, held: Manifest) -> list[str]:
    """Parts of a shard that should become one."""
    import pyarrow.parquet as pq

    live: dict[str, int] = {}
    for row in held.rows.values():
        if row.part:
            live[row.part] = live.get(row.part, 0) + 1
    dead = [part for part, count in live.items() if count < LIVE_SHARE * pq.read_metadata(folder / part).num_rows]
    small = [part for part in live if (folder / part).stat().st_size < 64 * 1024**2]
    return sorted(set(dead) | set(small if len(small) >= SMALL_PARTS else []))


def rewrite(folder: Path, held: Manifest, parts: list[str], schema: StageSchema) -> None:
    """Move the live rows of some parts into new ones, then replace the manifest."""
    import pyarrow.parquet as pq

    metadata = {"gap3d": (pq.read_schema(folder / parts[0]).metadata or {}).get(b"gap3d", b"").decode()}
    table = dict(held.rows)
    writer: PartWriter | None = None
    positions: dict[str, int] = {}

    def publish(made: PartWriter) -> None:
        name = made.close()
        table.update((key, replace(table[key], part=name, part_row=position)) for key, position in positions.items())
        positions.clear()

    for part in parts:
        rows = sorted((row for row in held.rows.values() if row.part == part), key=lambda row: row.part_row or 0)
        for start in range(0, len(rows), schema.row_group_rows):
            chunk = rows[start : start + schema.row_group_rows]
            writer = writer or PartWriter(folder, schema, metadata)
            for row, record in zip(
                chunk, read_rows(folder / part, [r.part_row or 0 for r in chunk]).to_pylist(), strict=True
            ):
                key = record.pop("key")
                positions[key] = writer.add(key, row.digest, record)
            if writer.bytes >= PART_BYTES:
                publish(writer)
                writer = None
    if writer is not None:
        publish(writer)
    manifest.write(folder, held.next(table.values(), complete=held.complete, now=now()))
