"""The true objects from all around: the rows of their own collection, rendered by Blender, nothing fetched twice."""

import csv
import hashlib
import random

import numpy as np
import pytest
from balls import WEIGHTS, balls, commit, views_of, whole
from folders import small, write_box, write_objects

from gap3d.evaluation.objects import objects_of
from gap3d.evaluation.views import AROUND
from gap3d.records import SystemicFault
from gap3d.store import Store
from gap3d.takedown import RECORD
from pipelines import around, catalog
from pipelines.command import open_store
from pipelines.evaluation import clouds, pictured
from pipelines.evaluation.objects import from_all_around

FIRST = {**WEIGHTS, "count": 1, "resolution": 32, "samples": 1, "points": 400, "presample": None}


FEW = {"flush_rows": 15}  # so that the renders of an object are in two parts


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """One of four boxes from all around: settings, report."""
    root = tmp_path_factory.mktemp("around")
    write_objects(root / "objects")
    settings = small(root / "store", root / "objects", evaluation=FIRST, compute=FEW)
    return settings, around.run(settings)


def test_the_first_captioned_object_of_the_protocols_shuffle_is_rendered_with_every_camera(rendered):
    settings, report = rendered
    parent, store = open_store(settings), open_store(around.true_settings(settings))
    rows = {}
    for shard in parent.shards:
        rows |= parent.read(parent.manifest("catalog", shard))
    order = sorted(rows, key=lambda key: rows[key]["sha256"])
    random.Random(42).shuffle(order)
    (chosen,) = [key for key in order if rows[key]["captions"]][:1]
    assert objects_of(parent, 1, 42) == [chosen]
    assert report.by_status("renders") == {"ok": 24}
    for count in (4, 8, 20, 24):
        (views,) = views_of(store, count).values()
        assert {view.object_id for view in whole(views)} == {chosen}
    assert [view.camera for view in views] == list(AROUND)


def test_its_rows_are_those_of_its_own_collection_and_nothing_is_made_twice(rendered):
    settings, _ = rendered
    parent, store = open_store(settings), open_store(around.true_settings(settings))
    for stage in ("catalog", "downloads"):
        theirs = {key: row.digest for shard in parent.shards for key, row in parent.manifest(stage, shard).rows.items()}
        ours = {key: row.digest for shard in store.shards for key, row in store.manifest(stage, shard).rows.items()}
        assert ours and set(ours.items()) <= set(theirs.items())
    (parent.folder / RECORD).write_text("[]")
    again = around.run(settings)
    assert (store.folder / RECORD).read_text() == "[]"
    assert again.count("computed") == again.count("decided") == 0
    there = {key for shard in store.shards for key in store.manifest("catalog", shard).rows}
    # A smaller count, or another shuffle, forgets no renders.
    assert {key for shard in parent.shards for key in around.rendered_of(parent, store, shard, ())} == there != set()


def test_a_disk_that_cannot_hold_the_pictures_refuses_them(tmp_path):
    store = commit(tmp_path, {"a/000": None})
    settings = small(tmp_path, tmp_path, evaluation={**FIRST, "resolution": 10**7})
    with pytest.raises(SystemicFault, match=r"refused: 1 objects from 24 sides need .* GB"):
        around.require_room(store, around.settings_of(settings))


def test_a_cloud_of_the_rendered_box_lies_on_its_faces(rendered):
    settings, _ = rendered
    store = open_store(around.true_settings(settings))
    clouds.run(settings, pictured.rendered(store), true=True)
    (cloud,) = [
        np.frombuffer(row["points"], np.float32).reshape(-1, 3)
        for shard in store.shards
        for row in store.read(store.manifest("clouds", shard)).values()
    ]
    low, high = cloud.min(0), cloud.max(0)
    low[2] = -9  # no camera sees its ground
    assert np.minimum(np.abs(cloud - low), np.abs(cloud - high)).min(1).max() < 2e-3
    assert high[0] - low[0] == pytest.approx(high[1] - low[1], abs=0.05)


def test_what_is_another_collection_is_not_written_over(tmp_path):
    write_box(tmp_path / "objects" / "a.obj")
    settings = small(tmp_path / "store", tmp_path / "objects", evaluation=FIRST)
    with pytest.raises(ValueError, match="no object of collection test has a caption"):
        around.run(settings)
    catalog.run(small(tmp_path / "store", tmp_path / "objects", collection="test-around"))
    with pytest.raises(ValueError, match=r"--evaluation\.true test-around"):
        around.run(settings)


def test_a_named_collection_is_taken_as_it_is(tmp_path):
    commit(tmp_path, balls(["a"]))
    settings = small(tmp_path, tmp_path, evaluation={**FIRST, "true": "balls-around"})
    assert around.run(settings).shards == ()
    assert set(pictured.true_objects(settings).views("0", 20)) == {"a"}
    images = small(tmp_path, tmp_path, images={"kind": "folder", "path": tmp_path}, evaluation=FIRST)
    with pytest.raises(ValueError, match="no objects that can be rendered"):
        around.run(images)


def test_a_named_collection_that_was_derived_and_interrupted_or_has_too_few_objects_is_continued(rendered):
    settings, _ = rendered

    def named(count):
        section = settings.evaluation.model_copy(update={"true": "test-around", "count": count})
        own = settings.model_copy(update={"evaluation": section})
        return from_all_around(own, Store.open(own.store, "test-around", own.blobs))

    store = open_store(around.true_settings(settings))
    rows, shard = next((held, each) for each in store.shards if (held := store.manifest("renders", each).rows))
    lost = min(row.part for row in rows.values())
    (store.shard("renders", shard) / lost).unlink()
    source, report = named(1)
    assert source.store.folder == store.folder
    assert report.count("computed", "renders") == sum(row.part == lost for row in rows.values()) < 24
    assert named(1)[1].shards == ()
    assert named(2)[1].count("computed", "renders") == 24
    assert not (settings.store / "test-around-around").exists()


def test_what_is_shuffled_are_all_files_that_the_table_describes(tmp_path):
    hashes = {}
    for number in range(12):
        write_box(tmp_path / "objects" / f"{number}.obj", 1.0 + number)
        hashes[f"{number}.obj"] = hashlib.sha256((tmp_path / "objects" / f"{number}.obj").read_bytes()).hexdigest()
    (tmp_path / "objects" / "captions.csv").write_text("path,captions\n11.obj,nobody's but ours\n")
    described = {each: f"box {name}" if int(name[:-4]) % 3 else "" for name, each in list(hashes.items())[:10]}
    described |= {hashlib.sha256(bytes([number])).hexdigest(): "is not here" for number in range(6)}
    with (tmp_path / "told.csv").open("w") as file:
        csv.writer(file).writerows([("sha256", "captions"), *described.items()])
    order = sorted(described)
    random.Random(42).shuffle(order)
    names = {each: name for name, each in hashes.items()}
    wanted = [names[each] for each in order if described[each] and each in names]

    def found(told, captioned):
        settings = small(
            tmp_path / "store",
            tmp_path / "objects",
            source={"described_by": told},
            catalog={"captioned": captioned},
        )
        catalog.run(settings)
        store, rows = open_store(settings), {}
        for shard in store.shards:
            rows |= store.read(store.manifest("catalog", shard), ["identifier"])
        return [rows[key]["identifier"] for key in objects_of(store, None, 42)]

    assert found([tmp_path / "told.csv"], True) == [*wanted, "11.obj"]  # what the table does not know comes last
    assert found([tmp_path / "told.csv"], False) == [*wanted, "11.obj"]
    assert found([], False) == ["11.obj"]
