"""Runs of the small line in processes of their own, and what they leave behind: rows, files, processes."""

import time
from dataclasses import replace
from pathlib import Path

from folders import small
from killed import Run
from processes import alive, mentioning

from gap3d.lease import NAME as LEASE
from gap3d.manifest import NAME as MANIFEST
from gap3d.store import Store
from pipelines.command import open_store
from pipelines.report import Report

STAGES = ("catalog", "downloads", "views", "renders", "targets", "dataset")
FINE = {"compute": {"flush_rows": 1, "batch_size": 1}}
"""Each row is committed at once, so that what is in flight is known: one object."""


def new_run(root, source, **values):
    return Run("line", str(root / "store"), str(source), str(root / "scratch"), str(root / "log"), {**FINE, **values})


def settings_of(run):
    return small(Path(run.store), Path(run.source), **run.values)


def manifests(store):
    """Everything that is committed; none of it is damaged."""
    found = []
    for stage, shard in store.committed_shards():
        held = store.manifest(stage, shard)
        assert store.verify(held) == []
        found.append(held)
    return found


def committed(run):
    """(stage, key, digest) of every committed row; before the store is made, none."""
    if not Store.exists(Path(run.store), "test"):
        return set()
    store = open_store(settings_of(run))
    return {(held.stage, key, row.digest) for held in manifests(store) for key, row in held.rows.items()}


def attempts(run, stage):
    """How often each row of a stage was tried."""
    store = open_store(settings_of(run))
    return sorted(row.attempts for held in manifests(store) if held.stage == stage for row in held.rows.values())


def leftovers(run):
    """Files that no manifest accounts for, and whatever stands in the place for temporary files."""
    store = open_store(settings_of(run))
    found = [*Path(run.scratch).iterdir(), *store.root.rglob("*.tmp"), *store.root.rglob("lease.json")]
    used = set()
    for held in manifests(store):
        folder = store.shard(held.stage, held.shard)
        known = held.parts | set(held.retired) | {MANIFEST, LEASE}
        found += [path for path in folder.iterdir() if path.name not in known]
        if held.stage == "downloads":
            used |= {file["sha256"] for row in store.read(held, ["files"]).values() for file in row["files"]}
    found += [path for path in store.blobs.all() if path.name not in used]
    return [str(path) for path in found]


def orphans(run, seconds=2.0):
    """Processes of a run that outlive it for so long."""
    deadline = time.monotonic() + seconds
    while (found := alive(mentioning(run.scratch))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def struck(point):
    """What a run prints when it comes to the point."""
    return f"struck {point.when} {point.where}"


def run_again(nursery, run, log="again"):
    """The next run after a killed one, to its end; its report."""
    again = replace(run, work="line", point=None, log=f"{run.log}.{log}")
    assert nursery.run(again) == 0, Path(again.log).read_text()
    return again, Report.load(Path(f"{again.log}.report"))
