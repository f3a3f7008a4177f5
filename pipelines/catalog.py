"""catalog: which objects, with captions, split, rank and shard. Key: object_id."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

import pyarrow as pa

from gap3d import catalog, fingerprints, takedown
from gap3d.annotations import annotation_tables
from gap3d.archives import is_archive, unpacked
from gap3d.evaluation.objects import describe
from gap3d.parts import write_atomically
from gap3d.records import Outcome, Status
from gap3d.references import FILE_TYPES
from gap3d.schemas import CATALOG
from gap3d.selection import Selection
from gap3d.settings import Settings
from gap3d.shard_writer import ShardWriter
from gap3d.store import Store
from gap3d.temporary import TemporaryFolder
from pipelines.command import open_store, stage_main
from pipelines.progress import progress
from pipelines.report import Report, ShardReport

STAGE = "catalog"
NETWORKED = ("objaverse", "tables")  # kinds of sources whose files are elsewhere
OWN_LICENCE = "Apache-2.0"  # of the bundled objects, which this project made
log = logging.getLogger(__name__)


def source_folder(settings: Settings) -> Path:
    """The folder that objects are read from; the bundled ones, and an archive's, are written into the store first."""
    if settings.source.kind == "samples":
        from gap3d.samples import write_samples  # trimesh takes a while, and only the bundled objects need it

        folder = (settings.store / "samples").expanduser().absolute()
        write_samples(folder)
        return folder
    folder = (settings.source.path or Path()).expanduser().absolute()
    if folder.is_file() and is_archive(folder):
        return unpacked(folder, settings.store.expanduser().absolute(), settings.limits)
    if not folder.is_dir():
        raise ValueError(f"source.path = {folder} is no folder and no archive: name the folder with the 3D files")
    return folder


def scan(settings: Settings, previous: Mapping[str, Mapping[str, Any]]) -> list[Outcome]:
    """What each file of the source folder is; unchanged files are not read again."""
    folder = source_folder(settings)
    table = settings.source.captions or folder / "captions.csv"
    if settings.source.captions and not table.is_file():
        raise ValueError(f"source.captions = {table} is no file")
    captions = catalog.read_captions(table) if table.is_file() else {}
    overrides = catalog.read_overrides(settings.source.overrides) if settings.source.overrides else {}
    paths = list(catalog.walk(folder))
    if not paths:  # more likely a disk that is not mounted than a wish to forget every object
        raise ValueError(f"{folder} holds no 3D file: known types are {', '.join(FILE_TYPES)}")
    catalog.log_unknown("captions", captions, paths)
    catalog.log_unknown("overrides", overrides, paths)
    listed = progress(paths, desc=STAGE, unit="object")
    return list(catalog.folder_rows(folder, captions, overrides, previous, source=settings.source.kind, paths=listed))


def listing(scanned: Iterable[Outcome]) -> pa.Table:
    """Scanned files as rows to select from."""
    rows = [
        {
            "source": outcome.data["source"],
            "identifier": outcome.data["identifier"],
            "sha256": outcome.data["sha256"],
            "licence": OWN_LICENCE if outcome.data["source"] == "samples" else "",
            "file_type": outcome.data["file_type"],
            "bytes": json.loads(outcome.data["stamp"])[outcome.data["identifier"]][0],
            "captions": json.dumps(outcome.data["captions"]) if outcome.data["captions"] else None,
        }
        for outcome in scanned
        if outcome.data is not None
    ]
    kinds = {"bytes": pa.int64(), "score": pa.float64()}
    names = ("source", "identifier", "sha256", "licence", "file_type", "bytes", "score", "captions")
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, kinds.get(name, pa.string())) for name in names]))


def admitted(row: Mapping[str, Any], own: Mapping[str, Any] | None, settings: Settings) -> Outcome:
    """The catalog row of an object that takes part.

    Args:
        row: as the selection gives it.
        own: what a scan found of the file; None for one that is elsewhere.
        settings: seed and split.
    """
    data = {
        "source": row["source"],
        "identifier": row["identifier"],
        "sha256": row["sha256"],
        "version": row["sha256"],
        "file_type": row["file_type"],
        "fetch_group": row["fetch_group"],
        "licence": row["licence"],
        "aesthetic_score": row["score"],
        "captions": catalog.parse_captions(row["captions"]),
        "cluster": row["cluster"],
        "split": catalog.split_of(row["cluster"], settings.catalog),
        "rank": row["rank"],
        "pinned_yaw": None,
        "up_axis": None,
        "stamp": "",
    }
    return Outcome(stage=STAGE, key=row["key"], data={**data, **(own or {}), "captions": data["captions"]})


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Bring the whole catalog up to date."""
    started = time.monotonic()
    store = open_store(settings)
    store.save_settings(STAGE, fingerprints.settings_digest(settings.catalog), settings.catalog.model_dump(mode="json"))
    # One commit a shard: its rows are made in a moment, and half a catalog is of no use.
    compute = settings.compute.model_copy(update={"flush_rows": 1 << 30, "flush_s": 1e9})
    with ExitStack() as stack:
        writers = {
            shard: stack.enter_context(store.writer(STAGE, shard, CATALOG, compute, settings.limits))
            for shard in store.shards
        }
        scratch = TemporaryFolder(store.folder, "selection")
        stack.callback(scratch.remove)
        selection = Selection(settings.catalog, scratch.path, settings.source.described_by)
        stack.callback(selection.close)
        scanned: dict[str, Outcome] = {}
        if settings.source.kind in NETWORKED:
            tables = annotation_tables(settings.source)
            log.info("selecting from %s", ", ".join(map(str, tables)))
            selection.take_files(tables)
        else:
            scanned = unique(scan(settings, previous_rows(store)))
            selection.take_table(listing(scanned.values()))
        failed: dict[str, list[Outcome]] = {shard: [] for shard in store.shards}
        for outcome in scanned.values():
            if outcome.status is not Status.OK:
                failed[fingerprints.shard_of(outcome.key, len(store.shards))].append(outcome)
        left = {store.shards[number]: found for number, found in selection.left_out().items()}
        changed = [s for s in store.shards if left.get(s, ("", {}))[0] != writers[s].left_digest]
        files = selection.write_left_out([store.shards.index(shard) for shard in changed])
        reports = []
        for number, taken in progress(selection.admitted(), desc=STAGE, unit="shard", total=len(store.shards)):
            shard = store.shards[number]
            rows = (admitted(row, own_data(scanned, row["key"]), settings) for row in taken.to_pylist())
            digest, counts = left.get(shard, ("", {}))
            if shard in changed:
                writers[shard].leave_out(files[number], digest, counts)
            reports.append(fill(shard, writers[shard], [*failed[shard], *rows], sum(counts.values()), settings))
        takedown.note_denials(store, selection.denials)
        if idle := selection.idle_denials():
            log.warning(
                "%d of %d lines of the deny-list name nothing that is listed, e.g. %s: a typing error denies nothing",
                *(len(idle), len(selection.denials), idle[0]),
            )
        funnel = selection.funnel()
        hashes = "SELECT sha256 FROM described WHERE regexp_full_match(sha256, '[0-9a-f]{64}') ORDER BY sha256"
        describe(store, [row[0] for row in selection.run(hashes).fetchall()])
        write_atomically(store.folder / "funnel.json", json.dumps(funnel, indent=1).encode())
    for report in reports:
        report.prove()
    return Report(shards=tuple(reports), wall_s=time.monotonic() - started, funnel=tuple(funnel))


def unique(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """Outcomes by key.

    Raises:
        RuntimeError: two objects have the same key.
    """
    found: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.key in found:
            raise RuntimeError(f"two objects have the key {outcome.key}")
        found[outcome.key] = outcome
    return found


def own_data(scanned: Mapping[str, Outcome], key: str) -> Mapping[str, Any] | None:
    """What a scan found of an object."""
    return scanned[key].data if key in scanned else None


def fill(shard: str, writer: ShardWriter, outcomes: Sequence[Outcome], left: int, settings: Settings) -> ShardReport:
    """Write the rows of a shard that changed, and commit it."""
    version = fingerprints.code_version(STAGE)
    added = 0
    for outcome in outcomes:
        inputs = {"row": fingerprints.digest_of([outcome.status, outcome.reason, outcome.data]), "code": version}
        known = writer.rows.get(outcome.key)
        if known is None or known.needs(inputs, settings.limits):
            writer.add(outcome, inputs)
            added += 1
    held = writer.finish({outcome.key for outcome in outcomes})
    return ShardReport(
        stage=STAGE,
        shard=shard,
        expected=len(outcomes) + left,
        found=held.count,
        computed=added,
        by_status=held.by_status(),
        digest=held.digest,
    )


def previous_rows(store: Store) -> dict[str, dict[str, Any]]:
    """The catalog as it is committed, by object_id."""
    found: dict[str, dict[str, Any]] = {}
    for shard in store.shards:
        found |= store.read(store.manifest(STAGE, shard))
    return found


if __name__ == "__main__":
    stage_main(STAGE, __doc__, run, sharded=False)
