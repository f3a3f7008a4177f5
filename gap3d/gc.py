"""Garbage collection: removes parts and blobs that no kept version refers to, and compacts mostly dead parts."""

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from gap3d import manifest
from gap3d.lease import lease
from gap3d.manifest import LedgerRow, Manifest, now
from gap3d.parts import PartWriter, read_rows, written_with
from gap3d.schemas import DATASET, SCHEMAS, StageSchema
from gap3d.settings import ComputeSettings
from gap3d.store import Store, leftovers

log = logging.getLogger(__name__)

LIVE_SHARE = 0.5  # a part with fewer live rows is rewritten
SMALL_PARTS = 8  # so many parts that together fill less than one are rewritten as one


@dataclass(frozen=True)
class Removal:
    """A file that nothing refers to."""

    place: str
    bytes: int


def shards(store: Store) -> Iterator[Manifest]:
    """Every committed manifest of the collection."""
    for stage, shard in store.committed_shards():
        yield store.committed(stage, shard)


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
    names = {path.parents[2].name for path in store.root.glob(f"*/downloads/*/{manifest.NAME}")}
    return set().union(*(listed_blobs(store.other(name)) for name in names))


def listed_blobs(store: Store) -> set[str]:
    """sha256 of every file that the downloads of a collection list."""
    used: set[str] = set()
    for shard in (shard for stage, shard in store.committed_shards() if stage == "downloads"):
        held = store.committed("downloads", shard)
        for row in store.read(held, ["files"]).values():
            used |= {file["sha256"] for file in row["files"]}
    return used


def compact(store: Store, compute: ComputeSettings, *, dry_run: bool) -> list[tuple[str, str, int]]:
    """Rewrite the live rows of parts that are mostly dead or many and small.

    Args:
        store: the collection.
        compute: says how large a part becomes, and how long to wait for a shard that is being written.
        dry_run: only say what would be rewritten.

    Returns:
        (stage, shard, number of parts) of the shards that were, or would be, compacted. Digests stay
        as they are: they cover what rows hold, not where.
    """
    done = []
    for seen in shards(store):
        if seen.stage not in SCHEMAS:
            log.warning("%s is no stage that this version knows: its parts are left as they are", seen.stage)
            continue
        folder = store.shard(seen.stage, seen.shard)
        with lease(folder, compute.lease_wait_s):
            held = store.manifest(seen.stage, seen.shard)
            parts = worth_compacting(folder, held, compute.part_bytes)
            if not parts:
                continue
            done.append((held.stage, held.shard, len(parts)))
            if not dry_run:
                rewrite(folder, held, parts, compute.part_bytes)
    return done


def alike(folder: Path, stage: str, parts: Iterable[str]) -> list[list[str]]:
    """Parts that can become one: of the same columns and compression, which say the same of themselves."""
    found: dict[tuple[StageSchema, str], list[str]] = {}
    for part in parts:
        schema, metadata = written_with(folder / part, stage)
        found.setdefault((schema, metadata["gap3d"]), []).append(part)
    return list(found.values())


def worth_compacting(folder: Path, held: Manifest, part_bytes: int) -> list[str]:
    """Parts of a shard that should be rewritten, each with those that it is ``alike``."""
    import pyarrow.parquet as pq

    live = Counter(row.part for row in held.rows.values() if row.part)
    dead = [part for part, count in live.items() if count < LIVE_SHARE * pq.read_metadata(folder / part).num_rows]
    small = [part for part in sorted(live) if (folder / part).stat().st_size < part_bytes / SMALL_PARTS]
    many = [group for group in alike(folder, held.stage, small) if len(group) >= SMALL_PARTS]
    return sorted({*dead, *chain.from_iterable(many)})


def rewrite(folder: Path, held: Manifest, parts: Sequence[str], part_bytes: int) -> None:
    """Move the live rows of some parts into new ones, which are written as those were; then replace the manifest.

    Args:
        folder: of the shard.
        held: its manifest.
        parts: their file names.
        part_bytes: a new part is closed at this size.

    Raises:
        ValueError: no stage that this version knows wrote them.
    """
    table = dict(held.rows)
    for group in alike(folder, held.stage, parts):
        for key, part, position in rewritten(folder, held, group, part_bytes):
            table[key] = replace(table[key], part=part, part_row=position)
    manifest.write(folder, held.next(table.values(), complete=held.complete, now=now()))


def rewritten(folder: Path, held: Manifest, parts: Sequence[str], part_bytes: int) -> Iterator[tuple[str, str, int]]:
    """(key, part, position in it) of the live rows of parts that are ``alike``, once they are written anew."""
    schema, metadata = written_with(folder / parts[0], held.stage)
    writer: PartWriter | None = None
    positions: dict[str, int] = {}
    for row, record in live_rows(folder, held, parts, schema.row_group_rows):
        writer = writer or PartWriter(folder, schema, metadata)
        positions[row.key] = writer.add(row.key, row.digest, record)
        if writer.bytes >= part_bytes:
            name, writer = writer.close(), None
            yield from ((key, name, position) for key, position in positions.items())
            positions.clear()
    if writer is not None:
        name = writer.close()
        yield from ((key, name, position) for key, position in positions.items())


def live_rows(
    folder: Path, held: Manifest, parts: Sequence[str], at_once: int
) -> Iterator[tuple[LedgerRow, dict[str, Any]]]:
    """The rows of parts that a manifest refers to, and what they hold beside the key; few at once are in memory."""
    for part in parts:
        rows = sorted((row for row in held.rows.values() if row.part == part), key=lambda row: row.part_row or 0)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            for row, record in zip(
                some, read_rows(folder / part, [r.part_row or 0 for r in some]).to_pylist(), strict=True
            ):
                yield row, {name: value for name, value in record.items() if name != "key"}
