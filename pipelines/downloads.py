"""downloads: bytes and companions of every object, checked and stored once by content. Key: object_id."""

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints, temporary
from gap3d.bundles import bundle
from gap3d.manifest import Manifest
from gap3d.network.politeness import Turns
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.references import closure
from gap3d.remote import blobs_at
from gap3d.schemas import DOWNLOADS
from gap3d.settings import Limits, Origin, Settings
from pipelines import catalog
from pipelines.cluster import Resources, Shared, Worker
from pipelines.command import open_store, stage_main
from pipelines.fetcher import CONDITIONS, KIND, SCRATCH, Fetcher
from pipelines.job import Item, Job, Row, passed_on, require_complete
from pipelines.job import run as run_job
from pipelines.report import Report

log = logging.getLogger(__name__)

STAGE = "downloads"
HOSTS = len(get_args(Origin))  # that objects lie at, more or less: one for each source
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # the machine's, not the object's
OTHERWISE = "the file changed since the catalog was made: run the catalog again"
FOLDERS = ("samples", "folder")  # kinds of source that are on this machine


@dataclass(frozen=True)
class Copier:
    """The worker: copies an object's files from a folder into content-addressed storage."""

    root: Path
    blobs: str
    limits: Limits

    def process(self, payload: Mapping[str, Any]) -> list[Outcome]:
        """One object."""
        started = time.monotonic()
        outcome = Outcome(stage=STAGE, key=payload["key"], data={})
        try:
            data = self.fetch(payload)
        except Failure as failure:
            return [fail(outcome, failure, time.monotonic() - started)]
        except OSError as error:
            if error.errno in DISK_FAULTS or not str(error.filename or "").startswith(str(self.root)):
                raise
            fault = Failure(
                Status.MISSING, f"{error.strerror}: check that the file can be read, then run the catalog again"
            )
            return [fail(outcome, fault, time.monotonic() - started)]
        return [Outcome(stage=STAGE, key=payload["key"], data=data, seconds=time.monotonic() - started)]

    def fetch(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Copy and check; the row's columns."""
        found = closure(self.root, payload["identifier"])
        return bundle(self.root, found, payload, blobs_at(self.blobs), self.limits, OTHERWISE)

    def probe(self) -> None:
        """The source folder is there."""
        if not self.root.is_dir():
            raise SystemicFault(f"{self.root} is gone")

    def close(self) -> None:
        """Nothing is held."""


def fail(outcome: Outcome, failure: Failure, seconds: float) -> Outcome:
    """The row of a known fault."""
    return Outcome(
        stage=outcome.stage,
        key=outcome.key,
        status=failure.status,
        reason=failure.reason,
        seconds=seconds,
        inputs=outcome.inputs,
    )


def make_job(settings: Settings) -> Job:
    """What this stage computes, over any shards."""
    store = open_store(settings)
    version = fingerprints.code_version(STAGE)
    local = settings.source.kind in FOLDERS

    def rows(shard: str) -> list[Row]:
        held = require_complete(store, catalog.STAGE, shard, "catalog")
        data = store.read(held)
        mine = store.manifest(STAGE, shard)
        recent, present = mine.rows, store.read(mine, ["files"])
        made = []
        for key, row in held.rows.items():
            if row.status is not Status.OK:
                made.append(passed_on(STAGE, key, catalog.STAGE, row))
                continue
            inputs = {
                "source": data[key]["source"],
                "identifier": data[key]["identifier"],
                "version": data[key]["version"],
                "code": version,
            }
            payload = {"key": key, **data[key], "inputs": inputs}
            files = present.get(key, {}).get("files", [])
            known = recent.get(key)
            conditions = {name: state() for name, state in CONDITIONS.items() if known and name in known.inputs}
            # What a folder could not give a moment ago it may give now: asked for again by every run.
            absent = (
                local
                and known is not None
                and not known.origin
                and known.status in (Status.MISSING, Status.HASH_MISMATCH)
            )
            stands = not absent and all(store.blobs.holds(file["sha256"]) for file in files)
            made.append(Row(stage=STAGE, key=key, inputs=inputs | conditions, stands=stands, payload=payload))
        return made

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        if local:
            return [Item(shard=shard, rows=(row,), payload=row.payload) for row in todo]
        return fetch_items(shard, todo)

    network, workers = settings.network, settings.compute.workers
    if local:
        factory: Callable[[], Worker] = partial(
            Copier, catalog.source_folder(settings), store.blobs.place, settings.limits
        )
    else:
        workers = min(workers, network.per_host * HOSTS)  # more of them would only stand in line
        factory = partial(fetcher, settings, store.root, store.blobs.place, os.environ.get("HF_ENDPOINT", ""))
    return Job(
        stages=(STAGE,),
        schema={STAGE: DOWNLOADS},
        rows=rows,
        items=items,
        factory=factory,
        resources=Resources(workers),
        bytes_of=lambda outcome: (outcome.data or {}).get("bytes", 0),
        # Of those that stand in line, each waits for at most all the others at its host.
        deadline_s=None if local else 2 * HOSTS * max(network.repository_s, network.object_s) + 300,
    )


def fetcher(settings: Settings, store: Path, blobs: str, endpoint: str) -> Worker:
    """A worker for the network, in the process that it will work in."""
    desk: Any = Shared(Turns) if settings.compute.workers else Turns()
    return Fetcher(settings, store, blobs, endpoint, desk)


def fetch_items(shard: str, todo: list[Row]) -> list[Item]:
    """One item a fetch group: large ones first, as they take longest; the sources in turn, as each has its hosts."""
    groups: dict[str, list[Row]] = {}
    for row in todo:
        groups.setdefault(row.payload["fetch_group"], []).append(row)
    ordered = sorted(groups.values(), key=len, reverse=True)
    largest = ", ".join(f"{rows[0].payload['fetch_group']} {len(rows)}" for rows in ordered[:3])
    log.info("shard %s: %d objects to fetch in %d groups, the largest: %s", shard, len(todo), len(groups), largest)
    by_source: dict[str, list[list[Row]]] = {}
    for rows in ordered:
        by_source.setdefault(rows[0].payload["source"].lower(), []).append(rows)
    in_turn = (rows for some in zip_longest(*by_source.values()) for rows in some if rows)
    return [Item(shard=shard, rows=tuple(rows), payload=[row.payload for row in rows]) for rows in in_turn]


def run(settings: Settings, shards: Sequence[str]) -> Report:
    """Bring these shards up to date."""
    store = open_store(settings)
    store.blobs.sweep()
    leftovers = store.root / SCRATCH, f"{KIND}-*"
    temporary.sweep(*leftovers)
    try:
        return run_job(make_job(settings), store, settings, shards)
    finally:
        temporary.sweep(*leftovers)  # of a worker that was killed in this run, after which no other came


if __name__ == "__main__":
    stage_main(STAGE, __doc__, run)
