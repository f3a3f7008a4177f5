"""Real files: 147 objects of twelve types, and 58 malformed or hostile ones, each with the status it should have.

The tables object_statuses.csv and bad_statuses.csv say what is expected, and why where it is no ok.
"""

import csv
from pathlib import Path

import pytest
from folders import counters, run_line, small
from shared_data import DATA, needs_data

from gap3d.catalog import object_id_of, walk
from pipelines import catalog, downloads, rendering
from pipelines.command import open_store

TESTS = Path(__file__).parent
pytestmark = needs_data
STAGES = ("catalog", "downloads", "views", "renders", "targets", "dataset")
BOMBS = ("timeout", "out_of_memory", "crashed")
EVERY = {".obj", ".glb", ".gltf", ".usdz", ".usd", ".usda", ".fbx", ".stl", ".dae", ".ply", ".abc", ".blend"}


def table(name):
    with (TESTS / f"{name}.csv").open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def settings_of(store, name, timeout_s, **values):
    return small(
        store,
        DATA / name,
        collection=name,
        catalog={"shards": 4},
        views={"points": 5000},
        limits={"timeout_s": timeout_s, "memory_bytes": 4 * 1024**3},
        compute={"workers": 2},
        **values,
    )


def outcomes(settings):
    """By path: {stage: (status, origin, reason)}."""
    store = open_store(settings)
    found = {}
    for shard in store.shards:
        held = store.manifest("catalog", shard)
        data = store.read(held, ["identifier"])
        names = {
            key: data[key]["identifier"] if key in data else row.reason.split(" refers to")[0]
            for key, row in held.rows.items()
        }
        for stage in STAGES[:-1]:
            for key, row in store.manifest(stage, shard).rows.items():
                found.setdefault(names[key.partition("/")[0]], {})[stage] = (row.status.value, row.origin, row.reason)
    return found


def wrong(found, expected):
    """Paths whose status at renders, or the stage that gave it, is not the table's."""
    faults = {}
    for path, row in expected.items():
        status, _, reason = found[path]["renders"]
        if status not in row["status"].split("|") or (status != "ok" and not reason):
            faults[path] = (status, reason, row["status"])
        first = next((stage for stage in STAGES[:4] if found[path][stage][0] != "ok"), "renders")
        if row.get("stage", first) != first:
            faults[path] = (first, row["stage"])
    return faults


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_hostile_file_has_its_true_status_at_every_stage_and_stops_nothing(tmp_path):
    settings = settings_of(tmp_path, "bad", 20.0)
    report = run_line(settings)
    assert all(report.count("found", stage) == report.count("expected", stage) == 58 for stage in STAGES)
    found, expected = outcomes(settings), table("bad_statuses")
    assert set(found) == set(expected)
    assert not wrong(found, expected)
    for stages in found.values():
        status, _, _ = stages["renders"]
        first = next((stage for stage in STAGES[:-1] if stages[stage][0] != "ok"), "")
        for later in STAGES[STAGES.index(first) + 1 : -1] if first else ():
            assert stages[later][:2] == (status, first)
    assert set(counters(run_line(settings)).values()) == {0}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_objects_of_all_twelve_types_become_targets(tmp_path):
    settings = settings_of(tmp_path, "objects", 60.0)
    report = run_line(settings)
    found, expected = outcomes(settings), table("object_statuses")
    with (DATA / "objects.csv").open() as file:
        listed = {row["path"].removeprefix("objects/"): row for row in csv.DictReader(file)}
    assert set(listed) == set(expected) <= set(found)  # and layers of other objects, which are files of their own
    assert len(expected) == 147
    assert all(report.count("found", stage) == report.count("expected", stage) == len(found) for stage in STAGES)
    assert not wrong(found, expected)
    # Whoever made the data set saw the same files load in another program around the same Blender.
    for path, row in listed.items():
        good = row["loads_in_bpy"] == "yes" and int(row["bpy_triangles"] or 0) > 0
        assert (found[path]["views"][0] == "ok") == good
    assert {Path(path).suffix.lower() for path in expected if found[path]["targets"][0] == "ok"} == EVERY
    assert set(counters(run_line(settings)).values()) == {0}


def run_some(tmp_path, name, paths):
    """Views and renders of some files of a folder; the others are excluded by the user's table."""
    excluded = tmp_path / "overrides.csv"
    with excluded.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "exclude"])
        writer.writerows([path, "true"] for path in walk(DATA / name) if path not in paths)
    settings = settings_of(tmp_path, name, 60.0, source={"overrides": excluded})
    catalog.run(settings)
    store = open_store(settings)
    for stage in (downloads, rendering):
        stage.run(settings, store.shards)
    found = {}
    for stage in ("views", "renders"):
        for shard in store.shards:
            for key, row in store.manifest(stage, shard).rows.items():
                found.setdefault(key.partition("/")[0], {})[stage] = (row.status.value, row.origin, row.reason)
    return {path: found[object_id_of("folder", path)] for path in paths}


@pytest.mark.parametrize("name", ["objects", "bad"])
def test_a_quick_subset_of_the_real_and_the_hostile_files_has_its_true_statuses(tmp_path, name):
    expected = table({"objects": "object_statuses", "bad": "bad_statuses"}[name])
    by_size = sorted(expected, key=lambda path: (DATA / name / path).stat().st_size)
    if name == "objects":
        paths = {path for kind in EVERY for path in [p for p in by_size if p.lower().endswith(kind)][:2]}
        paths |= {path for path in by_size[:120] if expected[path]["status"] != "ok"}
    else:
        paths = {path for path in by_size if not set(expected[path]["status"].split("|")) & set(BOMBS)}
    found = run_some(tmp_path, name, paths)
    assert len(found) == len(paths) >= 24
    for path in paths:
        assert found[path]["renders"][0] in expected[path]["status"].split("|"), (path, found[path])
