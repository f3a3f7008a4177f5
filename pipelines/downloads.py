"""downloads: bytes and companions of every object, checked and stored once by content. Key: object_id."""

import errno
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d import fingerprints
from gap3d.blobs import Blobs
from gap3d.manifest import Manifest
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.references import closure
from gap3d.schemas import DOWNLOADS
from gap3d.settings import Limits, Settings
from pipelines import catalog
from pipelines.cluster import Resources
from pipelines.command import open_store, stage_main
from pipelines.job import Item, Job, Row, passed_on, require_complete
from pipelines.job import run as run_job
from pipelines.report import Report

STAGE = "downloads"
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # the machine's, not the object's
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Copier:
    """The worker: copies an object's files from a folder into content-addressed storage."""

    root: Path
    blobs: Path
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
        main = payload["identifier"]
        found = closure(self.root, main)
        sizes = sum((self.root / path).stat().st_size for path in found.files)
        if sizes > self.limits.object_bytes:
            raise Failure(
                Status.TOO_LARGE, f"{sizes} bytes with companions, at most {self.limits.object_bytes} are taken"
            )
        with (self.root / main).open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise Failure(
                    Status.LFS_POINTER, "a git-lfs pointer, not the model: run `git lfs pull` in its repository"
                )
        blobs = Blobs(self.blobs)
        files = []
        for path in found.files:
            sha256, size = blobs.add(self.root / path)
            files.append({"path": path, "sha256": sha256, "bytes": size})
        if files[0]["sha256"] != payload["sha256"]:
            raise Failure(Status.HASH_MISMATCH, "the file changed since the catalog was made: run the catalog again")
        pairs = [[file["path"], file["sha256"]] for file in files]
        return {
            "bundle": fingerprints.digest_of([payload["file_type"], *pairs]),
            "file_type": payload["file_type"],
            "main": main,
            "files": files,
            "missing": list(found.missing),
            "bytes": sizes,
        }

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
            files = present.get(key, {}).get("files", [])
            # What a source could not give a moment ago it may give now: asked for again by every run.
            failed = recent.get(key)
            absent = (
                failed is not None and not failed.origin and failed.status in (Status.MISSING, Status.HASH_MISMATCH)
            )
            stands = not absent and all(store.blobs.path(file["sha256"]).exists() for file in files)
            made.append(Row(stage=STAGE, key=key, inputs=inputs, stands=stands, payload={"key": key, **data[key]}))
        return made

    def items(shard: str, todo: list[Row], _held: Mapping[str, Manifest]) -> list[Item]:
        return [Item(shard=shard, rows=(row,), payload=row.payload) for row in todo]

    return Job(
        stages=(STAGE,),
        schema={STAGE: DOWNLOADS},
        rows=rows,
        items=items,
        factory=partial(Copier, catalog.source_folder(settings), store.blobs.root, settings.limits),
        resources=Resources(settings.compute.workers),
    )


def run(settings: Settings, shards: Sequence[str]) -> Report:
    """Bring these shards up to date."""
    store = open_store(settings)
    store.blobs.sweep()
    return run_job(make_job(settings), store, settings, shards)


if __name__ == "__main__":
    stage_main(STAGE, __doc__, run)
