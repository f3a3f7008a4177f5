"""The store: ``<root>/<collection>/<stage>/<shard>`` holds a manifest and immutable parts.

All paths inside are relative, so a store can be moved. A reader that holds a manifest keeps a
consistent view: parts are never changed, and only ``gc`` removes them.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gap3d import fingerprints, manifest
from gap3d.lease import NAME as LEASE
from gap3d.lease import OWNER, lease
from gap3d.manifest import LedgerRow, Manifest
from gap3d.parts import TEMPORARY, name_of, read_rows, write_atomically
from gap3d.records import SystemicFault
from gap3d.remote import blobs_at
from gap3d.schemas import LEFT_OUT, StageSchema, require_known
from gap3d.settings import ComputeSettings, Limits
from gap3d.shard_writer import ShardWriter

log = logging.getLogger(__name__)
ALL = "all"  # the one shard of an unpartitioned stage
HEAD = "collection.json"  # what makes a folder a collection: the number of its shards


def shards_in(head: Path) -> int:
    """The number of shards that a collection was made with.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return int(json.loads(head.read_text())["shards"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{head} is damaged: write {{"shards": N}} into it, as many as a stage\'s folder has'
        ) from error


class Store:
    """One collection's part of a store on a local or shared file system.

    Args:
        root: the store's folder.
        collection: a catalog with its view protocol.
        shards: number of shards, fixed when the collection is made.
        blobs: folder or fsspec URL of the objects' own files; empty takes ``<root>/blobs``.

    Raises:
        ValueError: the collection was made with another number of shards.
    """

    def __init__(self, root: Path, collection: str, shards: int, blobs: str = "") -> None:
        self.root = root.expanduser().absolute()
        self.collection = collection
        self.folder = self.root / collection
        self.shards = fingerprints.shard_keys(shards)
        self.blobs = blobs_at(blobs or str(self.root / "blobs"))
        head = self.folder / HEAD
        described = json.dumps({"shards": shards, "schema_version": 1}).encode()
        if not head.exists():
            write_atomically(head, described)
        made_with = shards_in(head)
        if made_with != shards and not any(path.is_dir() for path in self.folder.iterdir()):
            write_atomically(head, described)  # somebody looked before anything was made: nothing holds the number yet
            made_with = shards
        if made_with != shards:
            saved = self.folder / "settings.json"
            kept = f"take its settings (--preset {saved}), " if saved.exists() else ""
            raise ValueError(
                f"collection {collection} in {self.root} has {made_with} shards, the settings ask for {shards}: "
                f"{kept}set catalog.shards = {made_with}, or choose another collection name"
            )

    @classmethod
    def open(cls, root: Path, collection: str, blobs: str = "") -> "Store":
        """A collection that is there, whatever its number of shards.

        Raises:
            ValueError: there is none of this name.
        """
        if not cls.exists(root, collection):
            there = ", ".join(cls.collections(root)) or "none"
            raise ValueError(f"there is no collection {collection} in {root} (there are: {there})")
        return cls(root, collection, shards_in(root.expanduser() / collection / HEAD), blobs)

    @classmethod
    def exists(cls, root: Path, collection: str) -> bool:
        """Whether a store has a collection of this name."""
        return (root.expanduser() / collection / HEAD).is_file()

    @classmethod
    def collections(cls, root: Path) -> list[str]:
        """Names of the collections of a store."""
        return sorted(head.parent.name for head in root.expanduser().glob(f"*/{HEAD}"))

    def other(self, collection: str) -> "Store":
        """Another collection of the same store; raises as ``open`` does."""
        return Store.open(self.root, collection, self.blobs.place)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.root, self.collection, len(self.shards), self.blobs.place))

    def shard(self, stage: str, shard: str) -> Path:
        """Folder of one shard of a stage."""
        return self.folder / stage / shard

    def committed_shards(self) -> list[tuple[str, str]]:
        """(stage, shard) of all that was ever committed, of whatever stage."""
        places = (path.parent for path in self.folder.glob(f"*/*/{manifest.NAME}"))
        return sorted((place.parent.name, place.name) for place in places)

    def committed(self, stage: str, shard: str) -> Manifest:
        """What was committed of a shard, whether or not its parts are still there."""
        return manifest.read(self.shard(stage, shard), stage, shard)

    def manifest(self, stage: str, shard: str) -> Manifest:
        """What there is of a shard now: rows whose part somebody removed are gone, and a run makes them again."""
        held = self.committed(stage, shard)
        lost = {part for part in held.parts if not (self.shard(stage, shard) / part).exists()}
        if not lost:
            return held
        rows = {key: row for key, row in held.rows.items() if row.part not in lost}
        log.warning(
            "%s of shard %s has lost %d rows with %s: run the stage again",
            *(stage, shard, len(held.rows) - len(rows), ", ".join(sorted(lost))),
        )
        kept = held if lost.isdisjoint(held.left_out) else replace(held, left_out=(), left_digest="", left_counts={})
        return replace(kept, rows=rows, complete=False)

    def left_out(self, held: Manifest, *, name: str | None = None) -> pa.Table:
        """The rows that a selection left out of a shard (``schemas.LEFT_OUT``), or those with a key or identifier."""
        wanted = None if name is None else [[("key", "=", name)], [("identifier", "=", name)]]
        folder = self.shard(held.stage, held.shard)
        tables = [pq.read_table(folder / part, filters=wanted, schema=LEFT_OUT) for part in held.left_out]
        return pa.concat_tables([LEFT_OUT.empty_table(), *tables])

    def read(
        self, held: Manifest, columns: Sequence[str] | None = None, keys: Iterable[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """The ok rows of a manifest as dictionaries by key, for stages of small rows."""
        wanted = set(keys) if keys is not None else None
        by_part: dict[str, list[LedgerRow]] = {}
        for row in held.rows.values():
            if row.part and (wanted is None or row.key in wanted):
                by_part.setdefault(row.part, []).append(row)
        found: dict[str, dict[str, Any]] = {}
        names = list(dict.fromkeys(["key", *columns])) if columns is not None else None
        for part, rows in by_part.items():
            table = read_rows(self.shard(held.stage, held.shard) / part, [row.part_row or 0 for row in rows], names)
            for row, record in zip(rows, table.to_pylist(), strict=True):
                if record["key"] != row.key:
                    raise ValueError(
                        f"{held.stage}/{held.shard}/{part} row {row.part_row} is {record['key']}, not {row.key}"
                    )
                found[row.key] = record
        return found

    def verify(self, held: Manifest) -> list[str]:
        """What is wrong with a shard's parts: absent, damaged (page checksums), wrong rows. Reads every byte."""
        faults = []
        for part in sorted(held.parts):
            path = self.shard(held.stage, held.shard) / part
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    keys = [
                        key for batch in file.iter_batches(batch_size=16) for key in batch.column("key").to_pylist()
                    ]
            except (OSError, pa.ArrowException, KeyError) as error:
                faults.append(f"{held.stage}/{held.shard}/{part}: {str(error).splitlines()[0][:200]}")
                continue
            if part in held.left_out and name_of(path) != part:
                faults.append(f"{held.stage}/{held.shard}/{part}: its bytes are not those that were written")
            rows = [row for row in held.rows.values() if row.part == part]
            if any((row.part_row or 0) >= len(keys) or keys[row.part_row or 0] != row.key for row in rows):
                faults.append(f"{held.stage}/{held.shard}/{part}: rows are not where the manifest says")
        return faults

    def save_settings(self, stage: str, digest: str, content: Mapping[str, Any]) -> None:
        """Keep resolved result settings beside the outputs that they shaped."""
        path = self.folder / "settings" / f"{stage}-{digest}.json"
        if not path.exists():
            write_atomically(path, json.dumps(content, indent=1, sort_keys=True).encode())

    def settings(self, stage: str, digest: str) -> dict[str, Any]:
        """Settings saved under a digest; empty where there are none."""
        path = self.folder / "settings" / f"{stage}-{digest}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def writer(
        self,
        stage: str,
        shard: str,
        schema: StageSchema,
        compute: ComputeSettings,
        limits: Limits,
        metadata: Mapping[str, Any] | None = None,
    ) -> Iterator[ShardWriter]:
        """Hold a shard's lease and write it. What is finished is committed even when an exception leaves.

        Raises:
            LeaseHeld: another run writes it.
            SystemicFault: the disk is full or gone.
            ValueError: ``gap3d.schemas`` does not know what the stage writes.
        """
        require_known(stage, schema)
        folder = self.shard(stage, shard)
        with lease(folder, compute.lease_wait_s):
            held = self.manifest(stage, shard)
            clean(folder, held)
            writer = ShardWriter(folder, held, schema, compute, limits, metadata or {})
            try:
                yield writer
                writer.flush_open()
            except OSError as error:
                writer.discard()  # the disk is full or gone: a commit would fail too
                raise SystemicFault(f"{type(error).__name__}: {error}") from error
            except BaseException:
                try:
                    writer.flush_open()
                except OSError as error:
                    log.warning("%s: finished rows are not committed: %s", folder, error)
                    writer.discard()
                raise


def leftovers(folder: Path, held: Manifest) -> list[Path]:
    """What a killed run left in a shard's folder: temporary files, and parts that no manifest ever listed."""
    known = held.parts | set(held.retired) | {manifest.NAME, LEASE, OWNER}
    return sorted(path for path in folder.iterdir() if path.name not in known or path.name.endswith(TEMPORARY))


def clean(folder: Path, held: Manifest) -> None:
    """Remove leftovers; only for the holder of the lease."""
    for path in leftovers(folder, held):
        log.info("removing leftover %s", path)
        path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Bytes that can still be written where ``path`` is or will be."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
