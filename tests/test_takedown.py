"""A deny-list: what it names is gone from everything after the next run and gc, and a report proves it."""

import csv

import pyarrow.parquet as pq
import pytest
from folders import run_line, small, write_objects

from gap3d.catalog import object_id_of
from gap3d.parts import read_rows
from gap3d.takedown import denied, rewrite, traces
from pipelines import gc, previews
from pipelines.command import open_store
from pipelines.export import export


def deny(path, *lines):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("object", "licence", "reason"))
        table.writerows(lines)
    return path


@pytest.fixture
def made(tmp_path):
    """(settings before, settings with the deny-list, object_id) of a finished line with reports and an export."""
    write_objects(tmp_path / "objects")
    before = small(tmp_path / "store", tmp_path / "objects")
    run_line(before)
    store = open_store(before)
    previews.write_reports(store, before)
    export(store, tmp_path / "exported")
    path = deny(tmp_path / "denied.csv", ("painted.obj", "", "asked by its author"))
    after = small(tmp_path / "store", tmp_path / "objects", catalog={"denied": path, "shards": 2})
    return before, after, object_id_of("folder", "painted.obj")


def everything(folder):
    """Every byte below a folder, less the catalog's own record of denials."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_denied_object_is_gone_from_every_byte_of_the_store_and_its_exports(made, tmp_path):
    before, after, key = made
    store = open_store(before)
    png = next(
        row["png"]
        for shard in store.shards
        for row in store.read(store.manifest("renders", shard)).values()
        if row["object_id"] == key
    )
    material = (tmp_path / "objects" / "paint.mtl").read_bytes()
    assert any(png in content for content in everything(store.folder).values())
    run_line(after)
    assert denied(store) == {key: "denied: asked by its author"}
    assert traces(store, denied(store)), "a run alone leaves the bytes in parts that others live in"
    lines = gc.erase(store, after)
    assert lines[-1] == "takedown: every part, table, page and export was read: nothing of 1 objects is left"
    kept = everything(store.root)
    left = {store.shard("catalog", s) / part for s in store.shards for part in store.manifest("catalog", s).left_out}
    assert [path for path, content in kept.items() if png in content or material in content] == []
    assert {path for path, content in kept.items() if key.encode() in content} <= left
    assert not (tmp_path / "exported" / key).exists()
    assert sum(1 for _ in (tmp_path / "exported").iterdir()) == 3


def test_what_others_hold_is_untouched_and_a_later_run_finds_nothing_to_do(made):
    _, after, key = made
    run_line(after)
    store = open_store(after)
    rows = {shard: store.manifest("targets", shard) for shard in store.shards}
    values = {s: read_all(store, held) for s, held in rows.items()}
    gc.erase(store, after)
    assert {s: read_all(store, store.manifest("targets", s)) for s in store.shards} == values
    again = run_line(after)
    assert {stage: again.count("computed", stage) for stage in again.stages()} == dict.fromkeys(again.stages(), 0)
    index = store.read(store.manifest("dataset", "all"))
    assert {row["object_id"] for row in index.values()} == {k.partition("/")[0] for v in values.values() for k in v}
    for row in index.values():
        part = store.shard("targets", row["target_shard"]) / row["target_part"]
        assert read_rows(part, [row["target_row"]], ["key"])["key"][0].as_py() == row["key"]
    assert gc.erase(store, after)[-1].startswith("takedown: every part")
    assert key not in (store.folder / "attribution.csv").read_text()


def test_a_takedown_that_was_killed_half_way_is_ended_by_the_next_gc(made):
    _, after, _ = made
    run_line(after)
    store = open_store(after)
    rewrite(store, denied(store), 0.0)  # and then nothing: the index still names the parts that are to go
    gc.erase(store, after)
    for row in store.read(store.manifest("dataset", "all")).values():
        assert (store.shard("targets", row["target_shard"]) / row["target_part"]).exists()
    again = run_line(after)
    assert {stage: again.count("computed", stage) for stage in again.stages()} == dict.fromkeys(again.stages(), 0)


def read_all(store, held):
    return {key: (row["cls"], row["patches"]) for key, row in store.read(held).items()}


def test_a_takedown_before_the_stages_ran_says_so_and_erases_nothing(made):
    from pipelines import catalog

    _, after, _ = made
    catalog.run(after)
    store = open_store(after)
    with pytest.raises(ValueError, match=r"still has 1 denied objects, .*: run `python -m pipelines.line`"):
        gc.erase(store, after)


def test_bytes_that_another_object_has_too_stay(tmp_path):
    write_objects(tmp_path / "objects")
    copy = tmp_path / "objects" / "copy.obj"
    copy.write_bytes((tmp_path / "objects" / "a.obj").read_bytes())
    path = deny(tmp_path / "denied.csv", ("a.obj", "", ""))
    settings = small(tmp_path / "store", tmp_path / "objects", catalog={"denied": path, "shards": 2})
    run_line(small(tmp_path / "store", tmp_path / "objects"))
    run_line(settings)
    store = open_store(settings)
    gc.erase(store, settings)
    names = {row["main"] for s in store.shards for row in store.read(store.manifest("downloads", s)).values()}
    assert "copy.obj" in names and "a.obj" not in names
    held = [store.manifest("downloads", s) for s in store.shards]
    for file in (f for h in held for row in store.read(h).values() for f in row["files"]):
        assert store.blobs.path(file["sha256"]).exists()
    assert all(pq.read_metadata(path).num_rows for path in store.folder.glob("downloads/*/*.parquet"))
