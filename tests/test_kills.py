"""Finished work survives: runs killed with signal 9 at named points and at random ones, then run again."""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from folders import digests
from killed import Point
from remains import STAGES, attempts, committed, leftovers, manifests, new_run, orphans, run_again, settings_of, struck

from gap3d.catalog import object_id_of
from pipelines.command import open_store
from pipelines.report import Report
from pipelines.targets import AHEAD

BROKEN = f"Renderer {object_id_of('folder', 'broken.glb')}"
"""A failure is held back until a success shows that the engine works: it may be in flight beside another object."""


@pytest.fixture(scope="module")
def reference(unkilled):
    """A run that nobody killed: its store, its digests and its duration."""
    assert len(committed(unkilled.run)) == 5 * 6
    return SimpleNamespace(root=unkilled.root, digests=digests(settings_of(unkilled.run)), seconds=unkilled.seconds)


@pytest.fixture
def place(tmp_path, reference):
    """A run over the reference's objects in a place of its own, where ``prepare`` leaves the stages up to the last.

    With ``later`` those that come after the next one stand too, as they do where an earlier stage is made anew.
    """
    run = new_run(tmp_path, reference.root / "objects")

    def prepare(last, later=False):
        kept = {*STAGES[: STAGES.index(last) + 1]} if last else set()
        kept |= {*STAGES[STAGES.index(NEXT[last]) + 1 :]} if later else set()
        if not kept:
            return run
        gone = {*STAGES} - kept | (set() if "downloads" in kept else {"blobs"})
        shutil.copytree(reference.root / "store", run.store, ignore=lambda _, names: gone & set(names))
        return run

    return prepare


def started(*runs):
    """How often the work on each row began."""
    files = [Path(f"{run.log}.started") for run in runs]
    return Counter(line for file in files if file.exists() for line in file.read_text().splitlines())


NEXT = {"": "catalog", "catalog": "downloads", "downloads": "renders", "renders": "targets", "targets": "dataset"}
"""What is computed after a stage; views in the same breath as renders."""
PART, MANIFEST = "gap3d.parts:PartWriter.close", "gap3d.manifest:write"
SYNC, RENAME, REMOVE = "gap3d.parts:fsync_path", "pathlib:Path.replace", "pathlib:Path.unlink"
FINISH, SEND = "gap3d.shard_writer:ShardWriter.finish", "render.channel:Channel.send"

POINTS = {
    # What is there before, then where it dies.
    "catalog: leases held, nothing written": ("", Point("gap3d.shard_writer:ShardWriter.__init__", "after", call=2)),
    "catalog: part written, not named": ("", Point(SYNC, "after", r"catalog/\w/\.part", 2)),
    "catalog: part named, not in the manifest": ("", Point(PART, "after", "/catalog/", 2)),
    "catalog: new manifest written, old one in place": ("", Point(RENAME, "before", "catalog/.*manifest", 2)),
    "catalog: one shard complete, the next not": ("", Point(FINISH, "after", "/catalog/")),
    "downloads: copy written, not named": ("catalog", Point(RENAME, "before", "/blobs/", 2)),
    "downloads: file stored, its row not": ("catalog", Point("gap3d.blobs:Blobs.add", "after", call=3)),
    "downloads: manifest replaced, folder not synced": ("catalog", Point(SYNC, "before", r"downloads/\w$", 4)),
    "views: object unpacked": ("downloads", Point("gap3d.blobs:Blobs.unpack", "after", call=2)),
    "views: Blender starting": ("downloads", Point("render.process:Child.__init__", "after")),
    "views: Blender importing": ("downloads", Point(SEND, "after", "'op': 'load'", 2)),
    "views: view chosen, nothing rendered": ("downloads", Point("pipelines.attempt:Attempt.choose", "after", call=2)),
    "renders: Blender in mid-render": ("downloads", Point(SEND, "after", "'op': 'render'", 2, pause=0.02)),
    "renders: manifest of views written, of renders not": (
        "downloads",
        Point(MANIFEST, "after", r"/views/\w Manifest", 2),
    ),
    "renders: part named, not in the manifest": ("downloads", Point(PART, "after", "/renders/", 3)),
    "targets: before the encoder": ("renders", Point("gap3d.features.encoders:Encoder.encode", "before", call=2)),
    "targets: after the encoder": ("renders", Point("gap3d.features.encoders:Encoder.encode", "after", call=2)),
    "targets: part written, not named": ("renders", Point(SYNC, "after", r"targets/\w/\.part", 2)),
    "targets: part named, not in the manifest": ("renders", Point(PART, "after", "/targets/", 2)),
    "targets: shard complete, leases held": ("renders", Point(FINISH, "after", "/targets/")),
    "dataset: part named, not in the manifest": ("targets", Point(PART, "after", "/dataset/")),
    "dataset: new manifest written, old one in place": ("targets", Point(RENAME, "before", "dataset/.*manifest", 2)),
}
LATER = {
    "catalog: leases held, nothing written",
    "catalog: part named, not in the manifest",
    "catalog: one shard complete, the next not",
    "views: object unpacked",
    "views: Blender starting",
    "views: view chosen, nothing rendered",
    "renders: part named, not in the manifest",
    "targets: before the encoder",
    "targets: part written, not named",
    "dataset: part named, not in the manifest",
}
"""The slow tests have these: for each, another stage is killed at such a point, or this one at a point beside it."""
GC_POINTS = {
    "compacted part named, not in the manifest": Point(PART, "after", call=2),
    "manifest with the compacted part written, old one in place": Point(RENAME, "before", "manifest", 2),
    "one shard compacted": Point("gap3d.gc:rewrite", "after"),
    "old part removed, still listed": Point(REMOVE, "after", r"/[0-9a-f]{32}\.parquet$"),
    "blob removed": Point(REMOVE, "after", "/blobs/"),
}


@pytest.mark.parametrize(
    ("last", "point"),
    [pytest.param(*of, id=name, marks=[pytest.mark.slow] * (name in LATER)) for name, of in POINTS.items()],
)
def test_a_killed_run_loses_what_was_in_flight_and_nothing_else(nursery, reference, place, last, point):
    run = replace(place(last, later=point.call > 1), point=asdict(point))
    assert nursery.run(run) == -signal.SIGKILL, Path(run.log).read_text()
    assert struck(point) in Path(run.log).read_text()
    assert not orphans(run)
    before = committed(run)
    again, report = run_again(nursery, run)
    assert digests(settings_of(run)) == reference.digests
    assert before <= committed(run)
    for stage in STAGES:
        done = sum(of == stage for of, *_ in before)
        assert report.count("expected", stage) == report.count("found", stage) == 5
        assert report.count("computed", stage) + report.count("decided", stage) == 5 - done
    twice = Counter(row.split()[0] for row, count in started(run, again).items() if count > 1 and row != BROKEN)
    assert sum(twice.values()) <= (AHEAD if "Featurizer" in twice else 1)
    assert leftovers(run) == []


@pytest.mark.parametrize("point", GC_POINTS.values(), ids=GC_POINTS)
def test_a_killed_gc_loses_nothing_and_the_next_one_ends_its_work(nursery, reference, place, point):
    run = replace(place("dataset"), work="gc", point=asdict(point))
    stray = Path(run.store) / "blobs" / "00" / ("0" * 64)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"of no object")
    before = committed(run)
    assert nursery.run(run) == -signal.SIGKILL, Path(run.log).read_text()
    assert struck(point) in Path(run.log).read_text()
    assert committed(run) == before
    assert nursery.run(replace(run, point=None)) == 0, Path(run.log).read_text()
    assert digests(settings_of(run)) == reference.digests
    assert leftovers(run) == []
    store = open_store(settings_of(run))
    assert all(len(held.parts) == 1 for held in manifests(store) if held.rows)
    assert all(
        (store.shard(held.stage, held.shard) / part).exists() for held in manifests(store) for part in held.retired
    )
    report = run_again(nursery, run)[1]
    # The index says where targets lie; nothing else has to follow a compaction.
    assert {stage: report.count("computed", stage) for stage in STAGES} == {**dict.fromkeys(STAGES, 0), "dataset": 4}
    assert digests(settings_of(run)) == reference.digests


def test_a_blender_killed_in_mid_render_costs_a_second_try(nursery, reference, place):
    point = Point(SEND, "after", "'op': 'render'", 2, whom="blender")
    run = replace(place("downloads"), point=asdict(point))
    assert nursery.run(run) == 0, Path(run.log).read_text()
    assert struck(point) in Path(run.log).read_text()
    assert digests(settings_of(run)) == reference.digests
    assert attempts(run, "renders") == [1, 1, 1, 1, 2]
    assert leftovers(run) == []
    assert not orphans(run)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_digest_and_lose_no_row(nursery, reference, tmp_path):
    moments = random.Random(20)
    kills = ends = 0
    run, before = None, set()
    while kills < 20 or before:
        if run is None:
            run = new_run(tmp_path / str(ends), reference.root / "objects")
            Path(run.store).parent.mkdir()
        pid = nursery.start(run)
        if kills < 20:
            time.sleep(moments.uniform(0, reference.seconds))
            os.kill(pid, signal.SIGKILL)  # until it is waited for, its id is no other's
        code = nursery.wait(pid)
        assert code in (0, -signal.SIGKILL), Path(run.log).read_text()
        now = committed(run)
        assert before <= now
        assert not orphans(run)
        before = now
        kills += code != 0
        if code == 0:
            assert digests(settings_of(run)) == reference.digests
            assert leftovers(run) == []
            run, before, ends = None, set(), ends + 1
    assert kills == 20
    assert ends


def flags_of(run, wait_s):
    values = settings_of(run).model_dump(mode="json")
    values["compute"]["lease_wait_s"] = wait_s
    Path(f"{run.log}.json").write_text(json.dumps(values))
    return ["--preset", f"{run.log}.json", "--report", f"{run.log}.report"]


@pytest.fixture
def holder(nursery, place):
    """A run that stands still in the middle of a shard, and one that comes second."""
    run = place("downloads")
    first = replace(run, point=asdict(Point(SEND, "after", "'op': 'render'", 2, signal=signal.SIGSTOP)))
    pid = nursery.start(first)
    deadline = time.monotonic() + 60
    while not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].startswith(" T"):
        assert time.monotonic() < deadline, Path(run.log).read_text()
        time.sleep(0.05)
    second = replace(run, work="pipelines.rendering", log=f"{run.log}.second")
    yield SimpleNamespace(pid=pid, second=second)


def test_a_second_run_on_a_shard_refuses_and_names_the_holder(nursery, reference, holder):
    run = replace(holder.second, flags=flags_of(holder.second, 0))
    assert nursery.run(run) == 1
    said = Path(run.log).read_text()
    assert f"is being written by process {holder.pid} on " in said
    assert "Traceback" not in said
    os.kill(holder.pid, signal.SIGKILL)
    assert nursery.wait(holder.pid) == -signal.SIGKILL
    assert nursery.run(run) == 0, Path(run.log).read_text()  # the lease was free at once
    run_again(nursery, run)
    assert digests(settings_of(run)) == reference.digests
    assert leftovers(run) == []


def test_a_second_run_that_waits_finds_nothing_left_to_compute(nursery, reference, holder):
    run = replace(holder.second, flags=flags_of(holder.second, 60))
    second = nursery.start(run)
    time.sleep(1)
    os.kill(holder.pid, signal.SIGCONT)
    assert nursery.wait(holder.pid) == 0
    assert nursery.wait(second) == 0, Path(run.log).read_text()
    report = Report.load(Path(f"{run.log}.report"))
    assert {stage: report.count("computed", stage) for stage in report.stages()} == {"views": 0, "renders": 0}
    assert digests(settings_of(run)) == reference.digests
    assert leftovers(run) == []


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(Point(SYNC, "before", r"targets/\w/\.part", 2, signal.SIGINT), id="while a part is published"),
        pytest.param(
            Point(PART, "after", "/targets/", 2, signal.SIGINT),
            id="between a part and its manifest",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Point(RENAME, "before", "targets/.*manifest", 2, signal.SIGINT),
            id="while a manifest is replaced",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Point("gap3d.parts:PartWriter.add", "after", "/targets/", 2, signal.SIGINT), id="while a row is added"
        ),
    ],
)
def test_a_stopped_run_keeps_what_it_has_finished(nursery, reference, place, point):
    run = replace(place("renders"), point=asdict(point))
    assert nursery.run(run) == 1
    said = Path(run.log).read_text()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert struck(point) in said
    done = {(of, key) for of, key, _ in committed(run) if of == "targets"}
    again, report = run_again(nursery, run)
    assert report.count("computed", "targets") + report.count("decided", "targets") == 5 - len(done)
    twice = [row for row, count in started(run, again).items() if count > 1]
    assert len(twice) < AHEAD  # begun, and not finished
    assert digests(settings_of(run)) == reference.digests
    assert leftovers(run) == []
