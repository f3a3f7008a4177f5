"""left_behind: what failed is tried again, from where it failed; not for ever, and not while somebody works on it."""

import time
from importlib import import_module

import dagster as dg
import pytest
from code_location import write_toys
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from ticks import SHARDED, Automation, bump, every

FAILURE, CANCELED = "PIPELINE_FAILURE", "PIPELINE_CANCELED"


class Watcher:
    """The sensor, and its cursor."""

    def __init__(self, automation: Automation) -> None:
        self.automation = automation
        self.cursor = None
        self.said = ""

    def look(self) -> set[tuple[str, str | None]]:
        """(asset, shard) that one tick requests."""
        module = import_module("assets_defs.left_behind")
        context = dg.build_sensor_context(
            instance=self.automation.instance, cursor=self.cursor, definitions=self.automation.defs
        )
        result = module.left_behind.evaluate_tick(context)
        self.cursor = result.cursor or self.cursor
        self.said = result.skip_message or ""
        return {
            (asset.to_user_string(), request.partition_key)
            for request in result.run_requests
            for asset in request.asset_selection
        }


@pytest.fixture
def events(tmp_path, monkeypatch):
    """Four shards whose runs are told, not run; all is up to date."""
    with dg.DagsterInstance.ephemeral() as instance:
        automation = Automation(monkeypatch, instance, tmp_path)
        automation.finish_all()
        yield automation


@pytest.fixture
def watcher(events):
    found = Watcher(events)
    assert found.look() == set()
    return found


def fail(events, *assets, shard, how=FAILURE):
    events.start(*assets, shard=shard)
    events.end(shard, how)


def test_what_is_up_to_date_is_left_alone(watcher):
    assert watcher.look() == set()
    assert watcher.said == "0 behind, 0 of them given up: none"


def test_a_failed_shard_is_tried_again_from_where_it_failed_three_times_and_then_named(events, watcher):
    events.came("shard_manifest", "downloads", shard="2", version="1")
    fail(events, "views", "renders", "targets", shard="2")
    assert watcher.look() == set()  # on_change may be about to request it
    for _ in range(3):
        assert watcher.look() == every(["views", "renders", "targets"], "2")
        fail(events, "views", "renders", "targets", shard="2")
    for _ in range(3):
        assert watcher.look() == set()
    assert watcher.said == "1 behind, 1 of them given up: views/2"


def test_a_failed_shard_that_was_made_at_last_is_forgotten(events, watcher):
    fail(events, *SHARDED, shard="2")
    watcher.look()
    assert watcher.look() == every(SHARDED, "2")
    events.start(*SHARDED, shard="2")
    events.came(*SHARDED, shard="2", version="1")
    events.end("2")
    events.came("dataset", version="1")
    assert watcher.look() == set()
    assert watcher.cursor == "{}"


@pytest.mark.parametrize("change", ["inputs", "code"])
def test_new_inputs_and_new_code_are_tried_anew(events, watcher, change):
    fail(events, *SHARDED, shard="2")
    watcher.look()
    for _ in range(3):
        assert watcher.look() == every(SHARDED, "2")
        fail(events, *SHARDED, shard="2")
    assert watcher.look() == set()
    if change == "inputs":
        events.came("shard_manifest", shard="2", version="1")
    else:
        bump(events.monkeypatch, "downloads")
        events.load()
    assert watcher.look() == set()
    assert watcher.look() == every(SHARDED, "2")


def test_a_shard_is_not_requested_while_it_runs_and_its_tries_are_remembered(events, watcher):
    fail(events, *SHARDED, shard="2")
    watcher.look()
    assert watcher.look() == every(SHARDED, "2")
    events.start(*SHARDED, shard="2")
    for _ in range(3):
        assert watcher.look() == set()
    events.end("2", FAILURE)
    assert watcher.look() == every(SHARDED, "2")
    fail(events, *SHARDED, shard="2")
    assert watcher.look() == every(SHARDED, "2")
    assert watcher.look() == set()


def test_nothing_is_requested_while_a_backfill_is_under_way(events, watcher):
    fail(events, *SHARDED, shard="2")
    watcher.look()
    backfill = PartitionBackfill(
        backfill_id="all",
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=time.time(),
        asset_selection=[dg.AssetKey("downloads")],
    )
    events.instance.add_backfill(backfill)
    for _ in range(2):
        assert watcher.look() == set()
    events.instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS))
    assert watcher.look() == every(SHARDED, "2")


def test_nothing_is_requested_while_the_catalog_is_made(events, watcher):
    fail(events, *SHARDED, shard="2")
    watcher.look()
    events.start("catalog")
    assert watcher.look() == set()
    events.came("catalog", version="1")
    events.end()
    assert watcher.look() == every(SHARDED, "2")


def test_what_a_person_cancelled_is_left_alone(events, watcher):
    events.came("shard_manifest", shard="2", version="1")
    fail(events, *SHARDED, shard="2", how=CANCELED)
    for _ in range(3):
        assert watcher.look() == set()


def test_a_catalog_that_failed_is_tried_again_before_anything_else(events, watcher):
    fail(events, *SHARDED, shard="2")
    fail(events, "catalog", shard=None)
    watcher.look()
    for _ in range(3):
        assert watcher.look() == {("catalog", None)}
        fail(events, "catalog", shard=None)
    assert watcher.look() == set()
    assert "catalog/all" in watcher.said


def test_a_dataset_that_failed_or_is_older_than_a_shard_is_made_again(events, watcher):
    fail(events, "dataset", shard=None)
    watcher.look()
    assert watcher.look() == {("dataset", None)}
    events.came("dataset")
    events.came("targets", shard="3", version="1")
    assert watcher.look() == set()
    assert watcher.look() == {("dataset", None)}


def test_shards_that_changed_before_the_sensors_were_switched_on_are_found(tmp_path, monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        late = Automation(monkeypatch, instance, tmp_path)
        late.came("catalog")
        for shard in late.shards:
            late.came("shard_manifest", *SHARDED, shard=shard)
        late.came("shard_manifest", shard="1", version="1")
        late.came("dataset")
        assert late.tick() == set()
        watcher = Watcher(late)
        watcher.look()
        assert watcher.look() == every(SHARDED, "1")


def test_many_failed_shards_are_tried_in_turns(tmp_path, monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        many = Automation(monkeypatch, instance, tmp_path, CATALOG__SHARDS="64")
        for shard in many.shards:
            many.came("shard_manifest", shard=shard)
        watcher = Watcher(many)
        watcher.look()
        first, second = watcher.look(), watcher.look()
        assert len(first) == len(second) == 4 * 32
        assert first | second == every(SHARDED, many.shards)


def test_a_shard_that_failed_because_another_process_held_it_is_made_by_the_request(tmp_path, monkeypatch):
    from gap3d.lease import lease

    write_toys(tmp_path / "objects")
    monkeypatch.chdir(tmp_path / "objects")
    with dg.DagsterInstance.ephemeral() as instance:
        automation = Automation(monkeypatch, instance, tmp_path, COMPUTE__LEASE_WAIT_S="0.1")
        automation.make("catalog")
        for shard in automation.shards:
            if shard != "1":
                automation.came(*SHARDED, shard=shard)
        with lease(tmp_path / "store" / "toys" / "downloads" / "1", 0.0):
            assert not automation.make("downloads", shard="1", raise_on_error=False).success
        watcher = Watcher(automation)
        watcher.look()
        assert watcher.look() == every(SHARDED, "1")
        assert automation.make("downloads", shard="1").success
        watcher.look()
        assert "downloads/1" not in watcher.cursor
