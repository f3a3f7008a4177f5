"""on_change: a tick requests exactly what changed, whatever happens between two ticks."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from code_location import OBJECTS, environment, metadata, write_toys
from dagster_site import Site
from folders import write_box
from processes import wait_for
from ticks import SHARDED, Automation, bump, every, history

from gap3d import fingerprints
from gap3d.catalog import object_id_of
from pipelines.command import load_settings, open_store

SIXTEEN = {"CATALOG__SHARDS": "16"}


def home(name: str) -> str:
    """The shard, of sixteen, of an object."""
    return fingerprints.shard_of(object_id_of("folder", name), 16)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Sixteen shards, made by nothing but the catalog and the ticks after it; never changed by a test."""
    root = tmp_path_factory.mktemp("automation")
    write_toys(root / "objects")
    with pytest.MonkeyPatch.context() as patch, history(root / "site") as instance:
        automation = Automation(patch, instance, root, **SIXTEEN)
        before = automation.tick()
        automation.make("catalog")
        ticks = automation.settle(empty=set(automation.shards) - {home(name) for name in OBJECTS})
    return SimpleNamespace(root=root, before=before, ticks=ticks, cursor=automation.cursor)


@pytest.fixture
def whole(first, tmp_path, monkeypatch):
    """A copy of it to change."""
    shutil.copytree(first.root, tmp_path / "place")
    with history(tmp_path / "place" / "site") as instance:
        automation = Automation(monkeypatch, instance, tmp_path / "place", **SIXTEEN)
        automation.cursor = first.cursor
        yield automation


@pytest.fixture
def events(tmp_path, monkeypatch):
    """Four shards whose runs are told, not run; all is up to date."""
    with dg.DagsterInstance.ephemeral() as instance:
        automation = Automation(monkeypatch, instance, tmp_path)
        automation.finish_all()
        yield automation


def test_the_first_catalog_brings_every_shard_through_every_stage_then_the_dataset_once(first):
    assert first.before == set()
    assert first.ticks == [every(SHARDED, fingerprints.shard_keys(16)), {("dataset", None)}]


def test_two_changed_shards_of_sixteen_flow_to_the_end_and_no_others_and_the_same_catalog_again_moves_nothing(whole):
    changed = ["cube.obj", "pole.obj"]
    for name in changed:
        write_box(whole.root / "objects" / name, 7.0)
    whole.make("catalog")
    assert whole.settle() == [every(SHARDED, {home(name) for name in changed}), {("dataset", None)}]
    for stage in SHARDED:
        for name in changed:
            assert metadata(whole.instance, stage, home(name))["computed"] == 1, stage
    assert metadata(whole.instance, "dataset")["computed"] == 2
    whole.make("catalog")
    assert whole.settle() == []


def test_an_object_withdrawn_from_the_source_disappears_from_the_dataset(whole):
    (whole.root / "objects" / "slab.obj").unlink()
    whole.make("catalog")
    assert whole.settle() == [every(SHARDED, {home("slab.obj")}), {("dataset", None)}]
    store = open_store(load_settings())
    rows = store.read(store.manifest("dataset", "all"))
    assert {row["identifier"] for row in rows.values()} == set(OBJECTS) - {"slab.obj"}
    assert metadata(whole.instance, "dataset")["computed"] == 0


def test_a_new_caption_reaches_the_dataset_and_computes_nothing_on_its_way(whole):
    (whole.root / "objects" / "captions.csv").write_text("path,captions\ncube.obj,a cube\n")
    whole.make("catalog")
    assert whole.settle() == [every(SHARDED, {home("cube.obj")}), {("dataset", None)}]
    assert [metadata(whole.instance, stage, home("cube.obj"))["computed"] for stage in SHARDED] == [0, 0, 0, 0]
    store = open_store(load_settings())
    found = {row["identifier"]: row["captions"] for row in store.read(store.manifest("dataset", "all")).values()}
    assert found["cube.obj"] == ["a cube"]


def test_a_new_version_of_the_renders_makes_them_again_and_equal_pictures_stop_the_wave(whole, monkeypatch):
    shard = home("cube.obj")
    bump(monkeypatch, "renders")
    whole.load(**SIXTEEN)
    assert whole.tick() == every(["renders", "targets"], whole.shards)
    whole.make("renders", "targets", shard=shard)
    assert metadata(whole.instance, "renders", shard)["why_computed"] == {"changed: code": 1}
    assert metadata(whole.instance, "targets", shard)["computed"] == 0


@pytest.mark.parametrize("stage", [*SHARDED, "dataset", "catalog"])
def test_a_new_version_of_a_stage_requests_it_and_what_follows_and_nothing_before(events, monkeypatch, stage):
    bump(monkeypatch, stage)
    events.load()
    if stage in SHARDED:
        assert events.tick() == every(SHARDED[SHARDED.index(stage) :], events.shards)
    else:
        assert events.tick() == {(stage, None)}
    assert events.tick() == set()


def test_a_shard_that_came_out_as_it_was_wakes_nobody(events):
    events.came("downloads", "views", "renders", shard="2")
    assert events.tick() == set()
    events.came("renders", shard="2", version="1")
    assert events.tick() == {("targets", "2")}


def test_a_shard_that_changes_twice_in_consecutive_ticks_is_served_twice(events):
    events.came("shard_manifest", shard="2", version="1")
    assert events.tick() == every(SHARDED, "2")
    events.came("shard_manifest", shard="2", version="2")
    assert events.tick() == every(SHARDED, "2")
    assert events.tick() == set()


def test_a_shard_that_changes_while_its_run_has_come_half_way_is_served_after_it(events):
    events.came("shard_manifest", shard="2", version="1")
    assert events.tick() == every(SHARDED, "2")
    events.start(*SHARDED, shard="2")
    events.came("downloads", shard="2", version="1")
    events.came("shard_manifest", shard="2", version="2")
    assert events.tick() == set()  # the run renders what it downloaded before
    assert events.tick() == set()
    events.came("views", "renders", "targets", shard="2", version="1")
    events.end("2")
    assert events.tick() == every(SHARDED, "2")


@pytest.mark.parametrize("ticks_in_between", [0, 1])
def test_a_shard_that_is_made_while_the_dataset_runs_is_in_the_next_dataset(events, ticks_in_between):
    events.came("targets", shard="2", version="1")
    assert events.tick() == {("dataset", None)}
    events.start("dataset")
    events.came("targets", shard="3", version="1")
    for _ in range(ticks_in_between):
        assert events.tick() == set()
    events.came("dataset", version="1")
    events.end()
    assert events.tick() == {("dataset", None)}
    assert events.tick() == set()


def test_the_dataset_waits_for_shards_that_are_about_to_run_and_for_those_that_run(events):
    events.came("shard_manifest", shard="1", version="1")
    events.came("targets", shard="2", version="1")
    assert events.tick() == every(SHARDED, "1")
    events.start(*SHARDED, shard="1")
    assert events.tick() == set()
    events.came(*SHARDED, shard="1", version="1")
    events.end("1")
    assert events.tick() == {("dataset", None)}


def test_a_sensor_switched_on_after_the_catalog_requests_what_was_never_made(tmp_path, monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        late = Automation(monkeypatch, instance, tmp_path)
        late.came("catalog")
        for shard in late.shards:
            late.came("shard_manifest", shard=shard)
        late.came("downloads", shard="0")
        late.came(*SHARDED, shard="1")
        expected = every(SHARDED, "23") | every(["views", "renders", "targets"], "0")
        assert late.tick() == expected
        assert late.tick() == set()


def test_a_sensor_switched_on_when_only_the_dataset_is_missing_requests_it(tmp_path, monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        late = Automation(monkeypatch, instance, tmp_path)
        late.came("catalog")
        for shard in late.shards:
            late.came("shard_manifest", *SHARDED, shard=shard)
        assert late.tick() == {("dataset", None)}


def test_more_shards_than_dagster_looks_at_one_by_one_are_served_when_they_change_twice(tmp_path, monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        many = Automation(monkeypatch, instance, tmp_path, CATALOG__SHARDS="128")
        many.finish_all()
        for version in ("1", "2"):
            for shard in many.shards:
                many.came("shard_manifest", shard=shard, version=version)
            assert many.tick() == every(SHARDED, many.shards)
        assert many.tick() == set()


START = """mutation ($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) {
  __typename ... on PythonError { message } } }"""
TICKS = """query ($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) { ... on Sensor { sensorState {
  ticks(limit: 100, statuses: [SUCCESS, SKIPPED, FAILURE]) { status error { message } } } } } }"""
RUNS = """{ runsOrError { ... on Runs { results { runId status tags { key value } assetSelection { path } } } } }"""


def selector(sensor: str) -> dict[str, str]:
    return {"repositoryLocationName": "gap3d", "repositoryName": "__repository__", "sensorName": sensor}


def switch_on(site: Site, sensor: str) -> None:
    assert site.ask(START, sensor=selector(sensor))["startSensor"]["__typename"] == "Sensor"


def ticked(site: Site) -> int:
    """Ticks of on_change so far."""
    ticks = site.ask(TICKS, sensor=selector("on_change"))["sensorOrError"]["sensorState"]["ticks"]
    assert not [tick for tick in ticks if tick["status"] == "FAILURE"], ticks
    return len(ticks)


def all_runs(site: Site) -> dict[str, tuple[str, frozenset[str], str | None]]:
    """(status, assets, shard) of every run."""
    return {
        run["runId"]: (
            run["status"],
            frozenset(key["path"][-1] for key in run["assetSelection"] or ()),
            {tag["key"]: tag["value"] for tag in run["tags"]}.get("dagster/partition"),
        )
        for run in site.ask(RUNS)["runsOrError"]["results"]
    }


@pytest.mark.slow
def test_the_live_daemon_sees_two_changed_files_and_runs_their_two_shards_of_sixteen_then_the_dataset_once_then_nothing(
    first, tmp_path
):
    place = tmp_path / "place"
    shutil.copytree(first.root, place)
    with Site(place / "site", environment(place / "store", Path("../objects"), **SIXTEEN)) as site:
        before = set(all_runs(site))
        switch_on(site, "on_change")
        wait_for(lambda: ticked(site) >= 1, 60, "a first tick")
        for name in ("cube.obj", "pole.obj"):
            write_box(place / "objects" / name, 7.0)
        switch_on(site, "watch_source")

        def new(*assets: str) -> list[str]:
            """Status of every new run of exactly these."""
            runs = [run for key, run in all_runs(site).items() if key not in before]
            return [status for status, made, _ in runs if made == set(assets)]

        wait_for(lambda: new("dataset") == ["SUCCESS"], 300, "a run of the dataset")
        assert new("catalog") == ["SUCCESS"]  # by watch_source, when it had seen the same twice
        assert site.wait(site.launch("catalog")) == "SUCCESS"
        count = ticked(site)
        wait_for(lambda: ticked(site) >= count + 2, 60, "two ticks after the same catalog")
        assert new("catalog") == ["SUCCESS", "SUCCESS"]
        found = {key: run for key, run in all_runs(site).items() if key not in before and run[1] != {"catalog"}}
    shards = {home("cube.obj"), home("pole.obj")}
    assert sorted(found.values(), key=str) == sorted(
        [("SUCCESS", frozenset(SHARDED), shard) for shard in shards] + [("SUCCESS", frozenset({"dataset"}), None)],
        key=str,
    )
