"""watch_source: the catalog is made when the source changed and has come to rest, and at no other time."""

import os
import time
from importlib import import_module

import dagster as dg
import pytest
from code_location import environment, load, write_toys
from folders import write_box

CHANGED, REQUESTED, SAME = "It changed: waits for a tick without a change", "requested", "Nothing changed"


class Watch:
    """The sensor over a folder, and its cursor."""

    def __init__(self, root, monkeypatch, **settings):
        self.root = root
        self.defs = load(monkeypatch, environment(root / "store", root / "objects", **settings))
        self.cursor = None

    def tick(self) -> str:
        """What one tick said."""
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance=instance, cursor=self.cursor, definitions=self.defs)
            result = import_module("assets_defs.watch").watch_source.evaluate_tick(context)
        self.cursor = result.cursor or self.cursor
        if not result.run_requests:
            return result.skip_message
        (request,) = result.run_requests
        assert request.asset_selection == [dg.AssetKey("catalog")]
        return REQUESTED

    def rest(self) -> "Watch":
        """The source as it is now was requested."""
        assert [self.tick() for _ in range(3)] == [CHANGED, REQUESTED, SAME]
        return self


@pytest.fixture
def folder(tmp_path):
    write_toys(tmp_path / "objects")
    return tmp_path


@pytest.fixture
def watch(folder, monkeypatch):
    return Watch(folder, monkeypatch).rest()


def append(path):
    with path.open("a") as file:
        file.write("# more\n")


def touch(path):
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))


EDITS = {
    "a new file": lambda objects: write_box(objects / "new" / "box.obj"),
    "a removed file": lambda objects: (objects / "cube.obj").unlink(),
    "a renamed file": lambda objects: (objects / "cube.obj").rename(objects / "dice.obj"),
    "a longer file": lambda objects: append(objects / "cube.obj"),
    "another time": lambda objects: touch(objects / "cube.obj"),
    "a companion": lambda objects: (objects / "paint.mtl").write_text("newmtl paint\n"),
    "captions beside the files": lambda objects: (objects / "captions.csv").write_text("path,captions\n"),
    "a link to nowhere": lambda objects: (objects / "link.obj").symlink_to("nowhere.obj"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_changed_folder_is_requested_once_when_it_stayed_so_for_a_tick(watch, edit):
    EDITS[edit](watch.root / "objects")
    assert [watch.tick() for _ in range(4)] == [CHANGED, REQUESTED, SAME, SAME]


def test_a_copy_in_progress_is_waited_for(watch):
    growing = watch.root / "objects" / "large.obj"
    for _ in range(4):
        growing.touch()
        append(growing)
        assert watch.tick() == CHANGED
    assert [watch.tick() for _ in range(2)] == [REQUESTED, SAME]


def test_a_change_that_was_taken_back_requests_nothing(watch):
    cube = watch.root / "objects" / "cube.obj"
    before = cube.stat()
    cube.rename(watch.root / "cube.obj")
    assert watch.tick() == CHANGED
    (watch.root / "cube.obj").rename(cube)
    assert cube.stat().st_mtime_ns == before.st_mtime_ns
    assert [watch.tick() for _ in range(2)] == [SAME, SAME]


def test_the_same_change_made_twice_is_requested_twice(watch):
    cube, away = watch.root / "objects" / "cube.obj", watch.root / "cube.obj"
    for source, target in ((cube, away), (away, cube), (cube, away)):
        source.rename(target)
        assert [watch.tick() for _ in range(3)] == [CHANGED, REQUESTED, SAME]


def test_a_folder_that_is_not_mounted_requests_nothing_and_nothing_when_it_is_back(watch):
    objects = watch.root / "objects"
    objects.rename(watch.root / "elsewhere")
    assert [watch.tick() for _ in range(2)] == [f"Not there: {objects}"] * 2
    (watch.root / "elsewhere").rename(objects)
    assert watch.tick() == SAME


@pytest.mark.parametrize("name", ["SOURCE__CAPTIONS", "SOURCE__OVERRIDES", "CATALOG__DENIED"])
def test_a_table_beside_the_folder_is_watched(folder, monkeypatch, name):
    table = folder / "table.csv"
    table.write_text("path,captions\n")
    watch = Watch(folder, monkeypatch, **{name: str(table)}).rest()
    append(table)
    assert [watch.tick() for _ in range(3)] == [CHANGED, REQUESTED, SAME]


@pytest.mark.parametrize("name", ["SOURCE__TABLES", "SOURCE__DESCRIBED_BY", "CATALOG__HELD_OUT"])
def test_a_table_of_a_list_of_objects_is_watched(folder, monkeypatch, name):
    tables = {key: folder / f"{key}.csv" for key in ("SOURCE__TABLES", "SOURCE__DESCRIBED_BY", "CATALOG__HELD_OUT")}
    for table in tables.values():
        table.write_text("sha256\n")
    given = {key: f'["{table}"]' for key, table in tables.items()}
    watch = Watch(folder, monkeypatch, SOURCE__KIND="tables", **given).rest()
    write_box(folder / "objects" / "nobody_looks_here.obj")
    assert watch.tick() == SAME
    append(tables[name])
    assert [watch.tick() for _ in range(3)] == [CHANGED, REQUESTED, SAME]


def test_the_bundled_objects_never_change(tmp_path, monkeypatch):
    watch = Watch(tmp_path, monkeypatch, SOURCE__KIND="samples")
    assert watch.tick() == "A source of kind 'samples' never changes by itself"


def test_whatever_starts_by_itself_is_off_until_a_person_switches_it_on(folder, monkeypatch):
    defs = load(monkeypatch, environment(folder / "store", folder / "objects"))
    repository = defs.get_repository_def()
    on = {sensor.name for sensor in repository.sensor_defs if sensor.default_status is dg.DefaultSensorStatus.RUNNING}
    assert on == {"lost_runs"}  # which starts nothing
    assert {sensor.name for sensor in repository.sensor_defs} >= {"on_change", "left_behind", "watch_source"}
    (nightly,) = [each for each in repository.schedule_defs if each.name == "nightly_catalog"]
    assert nightly.default_status is dg.DefaultScheduleStatus.STOPPED


def test_the_schedule_makes_the_catalog_once_a_night(folder, monkeypatch):
    defs = load(monkeypatch, environment(folder / "store", folder / "objects"))
    (nightly,) = [each for each in defs.get_repository_def().schedule_defs if each.name == "nightly_catalog"]
    assert nightly.cron_schedule == "0 2 * * *"
    job = defs.resolve_job_def(nightly.job_name)
    assert set(job.asset_layer.selected_asset_keys) == {dg.AssetKey("catalog")}
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance).success
        assert instance.get_latest_materialization_event(dg.AssetKey("catalog")) is not None
