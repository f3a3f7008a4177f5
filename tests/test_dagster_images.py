"""Dagster on a collection of images: an asset of images in the place of all that is rendered, and its automation."""

import os
import time
from importlib import import_module
from types import SimpleNamespace

import dagster as dg
import pytest
from code_location import digests, environment, load, materialize, metadata
from pictures import pairs, run_images, write_tar
from ticks import Automation, every

from gap3d import fingerprints
from pipelines.command import load_settings

EVALUATION = ("alignment_metrics", "retrieval_metrics", "evaluation_report")  # there are no objects to compare
ASSETS = {"images", "targets", "dataset", "pretrained_aligner", "finetuned_aligner", *EVALUATION}
SHARDS = ("0", "1", "2", "3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every shard of every asset, materialised by Dagster one after the other."""
    root = tmp_path_factory.mktemp("dagster")
    for number in range(6):
        write_tar(root / "tars" / f"{number}.tar", pairs(10 * number, 2))
    values = {"IMAGES__KIND": "tars", "IMAGES__PATH": str(root / "tars")}
    settings = environment(root / "store", root / "tars", **values)
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        defs = load(patch, settings)
        for shard in SHARDS:
            assert materialize(defs, instance, "images", "targets", shard=shard).success
        assert materialize(defs, instance, "dataset").success
        yield SimpleNamespace(root=root, settings=settings, defs=defs, instance=instance)


def test_there_are_images_in_the_place_of_all_that_is_rendered(finished):
    graph = finished.defs.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == ASSETS
    assert graph.get(dg.AssetKey("targets")).parent_keys == {dg.AssetKey("images")}
    dg.Definitions.validate_loadable(finished.defs)


def test_its_store_is_the_stages_own(finished, tmp_path, monkeypatch):
    settings = {**finished.settings, "GAP3D_STORE": str(tmp_path / "store")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    report = run_images(load_settings())
    assert report.by_status("dataset") == {"ok": 12}
    assert digests(settings) == digests(finished.settings)


def test_a_materialisation_of_targets_shows_pictures_and_how_busy_the_encoder_was(finished):
    shown = [metadata(finished.instance, "targets", shard) for shard in SHARDS]
    assert sum(each["rows_ok"] for each in shown if "rows_ok" in each) == 12
    full = [each for each in shown if each["computed"]]
    assert full
    for each in full:
        assert each["contact_sheet"].startswith("![contact sheet](data:image/jpeg;base64,")
        shares = [each[name] for name in ("encoder_busy", "encoder_waits_for_decoding", "encoder_waits_for_work")]
        assert sum(shares) == pytest.approx(1.0, abs=2e-4)
        assert {"forward", "decode", "write", "commit"} <= set(each["seconds_by_work"])


class Watch:
    """A sensor, and its cursor."""

    def __init__(self, place, module, name):
        self.place, self.sensor, self.cursor = place, getattr(import_module(f"assets_defs.{module}"), name), None

    def look(self):
        """(asset, shard) that one tick requests."""
        context = dg.build_sensor_context(self.place.instance, self.cursor, definitions=self.place.defs)
        result = self.sensor.evaluate_tick(context)
        self.cursor = result.cursor or self.cursor
        keys = [(key, each.partition_key) for each in result.run_requests for key in each.asset_selection]
        return {(key.to_user_string(), shard) for key, shard in keys}


def test_a_changed_tar_is_requested_once_when_it_stayed_so_for_a_tick(finished):
    watch = Watch(finished, "watch", "watch_images")
    assert watch.look() == set()
    assert watch.look() == {("images", shard) for shard in SHARDS}
    assert watch.look() == set()
    path = finished.root / "tars" / "0.tar"
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))
    assert watch.look() == set()
    ((asset, shard),) = watch.look()
    assert asset == "images"
    assert materialize(finished.defs, finished.instance, "images", "targets", shard=shard).success
    assert materialize(finished.defs, finished.instance, "dataset").success
    assert metadata(finished.instance, "images", shard)["rows_ok"] >= 2
    assert watch.look() == set()


def test_what_is_left_behind_is_tried_again(finished):
    watch = Watch(finished, "left_behind", "left_behind")
    watch.look()
    assert watch.look() == set()
    finished.instance.report_runless_asset_event(dg.AssetMaterialization("images", partition="2"))
    watch.look()
    assert watch.look() == {("targets", "2")}
    assert materialize(finished.defs, finished.instance, "targets", shard="2").success


def test_switched_on_it_makes_everything_once_and_then_what_changed(tmp_path, monkeypatch):
    for number in range(6):
        write_tar(tmp_path / "tars" / f"{number}.tar", pairs(10 * number, 2))
    values = {"IMAGES__KIND": "tars", "IMAGES__PATH": str(tmp_path / "tars")}
    with dg.DagsterInstance.ephemeral() as instance:
        automation = Automation(monkeypatch, instance, tmp_path, **values)
        first, *rest = automation.settle()
        assert first == every(["images", "targets"], SHARDS)
        assert rest == [{("dataset", None)}]
        members = [(name, b"new" if name == "0000.txt" else content) for name, content in pairs(0, 2)]
        write_tar(tmp_path / "tars" / "0.tar", members)
        for shard in SHARDS:
            assert automation.make("images", shard=shard).success
        shard = fingerprints.shard_of("0.tar", len(SHARDS))
        assert automation.settle() == [{("targets", shard)}, {("dataset", None)}]
