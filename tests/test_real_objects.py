"""The line on real files: 147 objects of twelve types, and 58 malformed or hostile ones."""

import csv
from pathlib import Path

import pytest
from folders import counters, run_line, small

from pipelines.command import open_store

DATA = Path(__file__).parents[1].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real objects (../shared/data) are not on this machine")
STAGES = ("catalog", "downloads", "views", "renders", "targets", "dataset")


def settings_of(store, name, timeout_s):
    return small(
        store,
        DATA / name,
        collection=name,
        catalog={"shards": 4},
        views={"points": 5000},
        limits={"timeout_s": timeout_s, "memory_bytes": 4 * 1024**3},
        compute={"workers": 2},
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


@pytest.mark.timeout(600)
def test_every_hostile_file_has_its_true_status_at_every_stage_and_stops_nothing(tmp_path):
    settings = settings_of(tmp_path, "bad", 20.0)
    report = run_line(settings)
    assert all(report.count("found", stage) == report.count("expected", stage) == 58 for stage in STAGES)
    found = outcomes(settings)
    with (Path(__file__).parent / "bad_statuses.csv").open() as file:
        expected = {row["path"]: row for row in csv.DictReader(file)}
    assert set(found) == set(expected)
    wrong = {}
    for path, row in expected.items():
        status, _, reason = found[path]["renders"]
        if status not in row["status"].split("|") or (status != "ok" and not reason):
            wrong[path] = (status, reason, row["status"])
        first = next((stage for stage in STAGES[:-1] if found[path][stage][0] != "ok"), "renders")
        if first != row["stage"]:
            wrong[path] = (first, row["stage"])
        for later in STAGES[STAGES.index(first) + 1 : -1]:
            if status != "ok" and found[path][later][:2] != (status, first):
                wrong[path] = (later, found[path][later])
    assert not wrong
    assert set(counters(run_line(settings)).values()) == {0}


@pytest.mark.timeout(900)
def test_the_real_objects_of_all_twelve_types_become_targets(tmp_path):
    settings = settings_of(tmp_path, "objects", 60.0)
    report = run_line(settings)
    found = outcomes(settings)
    with (DATA / "objects.csv").open() as file:
        listed = {row["path"].removeprefix("objects/"): row for row in csv.DictReader(file)}
    assert len(listed) == 147
    assert set(listed) <= set(found)  # and layers that other objects refer to, which are files of their own
    assert all(report.count("found", stage) == report.count("expected", stage) == len(found) for stage in STAGES)
    wrong = {}
    for path, row in listed.items():
        status, _, reason = found[path]["views"]
        good = row["loads_in_bpy"] == "yes" and int(row["bpy_triangles"] or 0) > 0
        if (status == "ok") != good or status not in ("ok", "no_geometry", "unsupported"):
            wrong[path] = (status, reason)
        # A plane that stands edge-on to the chosen camera is seen by every ray and by no pixel.
        if good and found[path]["renders"][0] not in ("ok", "empty_render"):
            wrong[path] = found[path]["renders"]
    assert not wrong
    types = {Path(path).suffix.lower() for path in listed if found[path]["targets"][0] == "ok"}
    assert len(types) == 12
    assert sum(found[path]["renders"][0] == "empty_render" for path in listed) <= 2
