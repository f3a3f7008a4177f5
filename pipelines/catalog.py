"""catalog: which objects, with captions, split, rank and shard. Key: object_id."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import catalog, fingerprints
from gap3d.records import Outcome
from gap3d.references import FILE_TYPES
from gap3d.schemas import CATALOG
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.command import open_store, stage_main
from pipelines.progress import progress
from pipelines.report import Report, ShardReport

STAGE = "catalog"


def source_folder(settings: Settings) -> Path:
    """The folder that objects are read from; the bundled ones are written into the store first."""
    if settings.source.kind == "samples":
        from gap3d.samples import write_samples  # trimesh takes a while, and only the bundled objects need it

        folder = (settings.store / "samples").expanduser().absolute()
        write_samples(folder)
        return folder
    folder = (settings.source.path or Path()).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(f"source.path = {folder} is no folder: name the folder with the 3D files")
    return folder


def rows(settings: Settings, previous: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Outcome]]:
    """(shard, outcome) of every object of the source."""
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
    yield from catalog.folder_rows(
        folder, captions, overrides, settings.catalog, previous, source=settings.source.kind, paths=listed
    )


def run(settings: Settings, _shards: Sequence[str] = ()) -> Report:
    """Bring the whole catalog up to date; unchanged files are not read again."""
    started = time.monotonic()
    store = open_store(settings)
    store.save_settings(STAGE, fingerprints.settings_digest(settings.catalog), settings.catalog.model_dump(mode="json"))
    version = fingerprints.code_version(STAGE)
    with ExitStack() as leases:
        writers = {
            shard: leases.enter_context(store.writer(STAGE, shard, CATALOG, settings.compute, settings.limits))
            for shard in store.shards
        }
        previous = previous_rows(store)
        seen: dict[str, set[str]] = {shard: set() for shard in store.shards}
        added = dict.fromkeys(store.shards, 0)
        for shard, outcome in rows(settings, previous):
            if outcome.key in seen[shard]:
                raise RuntimeError(f"two objects have the key {outcome.key}")
            seen[shard].add(outcome.key)
            inputs = {"row": fingerprints.digest_of([outcome.status, outcome.reason, outcome.data]), "code": version}
            known = writers[shard].rows.get(outcome.key)
            if known is None or known.needs(inputs, settings.limits):
                writers[shard].add(outcome, inputs)
                added[shard] += 1
        reports = []
        for shard, writer in writers.items():
            held = writer.finish(seen[shard])
            reports.append(
                ShardReport(
                    stage=STAGE,
                    shard=shard,
                    expected=len(seen[shard]),
                    found=len(held.rows),
                    computed=added[shard],
                    by_status=held.by_status(),
                    digest=held.digest,
                )
            )
    for report in reports:
        report.prove()
    return Report(shards=tuple(reports), wall_s=time.monotonic() - started)


def previous_rows(store: Store) -> dict[str, dict[str, Any]]:
    """The catalog as it is committed, by object_id."""
    found: dict[str, dict[str, Any]] = {}
    for shard in store.shards:
        found |= store.read(store.manifest(STAGE, shard))
    return found


if __name__ == "__main__":
    stage_main(STAGE, __doc__, run, sharded=False)
