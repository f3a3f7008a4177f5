"""A deny-list: what it names is gone from everything after the next run and gc, and a report proves it."""

import csv
import json
import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from folders import run_line, small, write_objects
from webdataset_tars import read_back

from gap3d import gc as collect
from gap3d.blobs import sha256_of
from gap3d.catalog import object_id_of
from gap3d.exports.pieces import records
from gap3d.exports.webdataset import Pictures
from gap3d.parts import read_rows
from gap3d.takedown import denied, rewrite, traces
from gap3d.training import broken
from gap3d.training.batches import Batch
from gap3d.training.step import Draws
from pipelines import catalog, downloads, gc, previews
from pipelines.command import open_store
from pipelines.export import export, export_datasets, export_trellis, export_webdataset

JPG = Pictures()
CAPTIONS = "path,captions\na.obj,a cube\nb.obj,a tall box\ndeep/er/c.obj,a tower\npainted.obj,a red box\n"
WAYS = ("exported", "trellis", "tars", "hub")


def deny(path, *lines):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("object", "licence", "reason"))
        table.writerows(lines)
    return path


@pytest.fixture(scope="module")
def finished(walked, tmp_path_factory):
    """A folder of objects and the store of a finished line with reports; to be copied."""
    root = tmp_path_factory.mktemp("takedown") / "finished"
    shutil.copytree(walked[0], root)
    (root / "objects" / "captions.csv").write_text(CAPTIONS)
    settings = small(root / "store", root / "objects")
    run_line(settings)
    previews.write_reports(open_store(settings), settings)
    return root


@pytest.fixture
def made(finished, tmp_path):
    """(settings before, settings with the deny-list, object_id) of a finished line with reports and an export."""
    for name in ("objects", "store"):
        shutil.copytree(finished / name, tmp_path / name)
    before = small(tmp_path / "store", tmp_path / "objects")
    store = open_store(before)
    export(store, tmp_path / "exported")
    export_trellis(store, tmp_path / "trellis", "renders_cond")
    export_webdataset(store, tmp_path / "tars", JPG)
    export_datasets(store, tmp_path / "hub", images=True, tokens=True)
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


def test_a_denied_object_is_gone_from_every_way_out_and_a_new_export_has_all_others(made, tmp_path):
    before, after, key = made
    store = open_store(before)
    row = next(
        row
        for shard in store.shards
        for row in store.read(store.manifest("renders", shard)).values()
        if row["object_id"] == key
    )
    sha256 = sha256_of(tmp_path / "objects" / "painted.obj")
    tokens = next(
        found["patches"]
        for shard in store.shards
        for found in store.read(store.manifest("targets", shard)).values()
        if found["object_id"] == key
    )
    needles = {
        "trellis": (row["png"], key.encode(), sha256.encode(), b"painted.obj"),
        "tars": (JPG.encode(row["png"]), key.encode(), b"a red box", b"painted.obj"),
        "hub": (row["png"], bytes(tokens), key.encode(), b"a red box", b"painted.obj"),
    }
    for way, wanted in needles.items():
        for needle in wanted:
            assert any(needle in content for content in everything(tmp_path / way).values()), (way, needle[:20])
    run_line(after)
    assert {str(path).removeprefix(f"{tmp_path}/").partition("/")[0] for path in traces(store, denied(store))} >= {
        *WAYS
    }
    shared = {
        str(tmp_path / way)
        for way in WAYS
        for record in records(tmp_path / way)
        for piece in record.pieces.values()
        if {key} < set(piece.objects)
    }
    lines = gc.erase(store, after)
    told = {line.strip().partition(":")[0] for line in lines if line.endswith("as before to have them again")}
    assert told == shared and shared
    for way, wanted in needles.items():
        for path, content in everything(tmp_path / way).items():
            assert not any(needle in content or needle.decode("latin-1") in str(path) for needle in wanted), path
    assert len(list((tmp_path / "trellis" / "renders_cond").iterdir())) == 3
    export_webdataset(store, tmp_path / "tars", JPG)
    export_datasets(store, tmp_path / "hub", images=True, tokens=True)
    others = {object_id_of("folder", name) for name in ("a.obj", "b.obj", "deep/er/c.obj")}
    assert {key.partition("_")[0] for key in read_back((tmp_path / "tars").glob("*/*.tar"))} == others
    tables = [pq.read_table(path) for path in (tmp_path / "hub" / "data").glob("*.parquet")]
    assert {key for table in tables for key in table["object_id"].to_pylist()} == others


def test_a_denied_object_is_not_exported_before_the_line_ran(made, tmp_path):
    _, after, _ = made
    catalog.run(after)
    with pytest.raises(ValueError, match=r"still has 1 denied objects: run `python -m pipelines.line` first"):
        export_webdataset(open_store(after), tmp_path / "again", JPG)


def test_what_a_killed_takedown_left_in_an_export_is_found(made, tmp_path):
    before, _, key = made
    kinds = {"trellis": "transforms.json", "tars": ".tar", "hub": ".parquet"}
    for record in (path for way in kinds for path in (tmp_path / way / ".gap3d").glob("*-*.json")):
        # As if nothing had been removed but the records' own entries.
        record.write_text(json.dumps({**json.loads(record.read_text()), "pieces": {}}))
    found = traces(open_store(before), {key: ""})
    for way, kind in kinds.items():
        assert any(trace.startswith(f"{tmp_path / way}/") and trace.endswith(f"{kind}: {key}") for trace in found)


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
    rewrite(store, denied(store), after.compute)  # and then nothing: the index still names the parts that are to go
    gc.erase(store, after)
    for row in store.read(store.manifest("dataset", "all")).values():
        assert (store.shard("targets", row["target_shard"]) / row["target_part"]).exists()
    again = run_line(after)
    assert {stage: again.count("computed", stage) for stage in again.stages()} == dict.fromkeys(again.stages(), 0)


def read_all(store, held):
    return {key: (row["cls"], row["patches"]) for key, row in store.read(held).items()}


def test_a_takedown_before_the_stages_ran_says_so_and_erases_nothing(made):
    _, after, _ = made
    catalog.run(after)
    store = open_store(after)
    with pytest.raises(ValueError, match=r"still has 1 denied objects, .*: run `python -m pipelines.line`"):
        gc.erase(store, after)


def test_bytes_that_another_object_has_too_stay(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
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


def test_what_its_source_does_not_list_any_more_is_erased_all_the_same(made, tmp_path):
    _, after, key = made
    material = (tmp_path / "objects" / "paint.mtl").read_bytes()
    (tmp_path / "objects" / "painted.obj").unlink()  # as the README asks of one's own folders
    run_line(after)
    store = open_store(after)
    assert denied(store) == {key: "denied: asked by its author"}
    gc.erase(store, after)
    kept = everything(store.root)
    assert [path for path, content in kept.items() if material in content or key.encode() in content] == []
    assert not (tmp_path / "exported" / key).exists()
    assert denied(store) == {}


def test_what_only_exports_still_hold_is_erased_there(made, tmp_path):
    before, after, key = made
    (tmp_path / "objects" / "painted.obj").unlink()
    run_line(before)
    store = open_store(before)
    collect.compact(store, before.compute, dry_run=False)
    collect.collect(store, 0.0, 0.0, dry_run=False)
    run_line(after)
    assert denied(store) == {key: "denied: asked by its author"}
    gc.erase(store, after)
    for way in WAYS:
        assert [path for path, content in everything(tmp_path / way).items() if key.encode() in content] == []
        assert [path for path in (tmp_path / way).rglob("*") if key in str(path)] == []
    assert denied(store) == {}


def test_an_object_that_cannot_be_read_any_more_is_no_hindrance(made, tmp_path):
    _, after, key = made
    painted = tmp_path / "objects" / "painted.obj"
    painted.unlink()
    painted.symlink_to("/etc/hostname")  # a row of the catalog, and no object
    run_line(after)
    store = open_store(after)
    gc.erase(store, after)
    assert [
        path for path in store.folder.rglob("*.parquet") if path.name != "manifest.parquet" and holds(path, key)
    ] == []


def holds(path, key):
    return key in {name.partition("/")[0] for name in pq.read_table(path, columns=["key"])["key"].to_pylist()}


@pytest.mark.parametrize("name", [str.upper, str.lower])
def test_hashes_are_written_in_large_or_small_letters(made, tmp_path, name):
    before, after, key = made
    shard = next(s for s in open_store(before).shards if key in open_store(before).manifest("catalog", s).rows)
    sha256 = open_store(before).read(open_store(before).manifest("catalog", shard))[key]["sha256"]
    for word in (key, sha256):
        deny(tmp_path / "denied.csv", (name(word), "", "asked by its author"))
        catalog.run(after)
        assert denied(open_store(after)) == {key: "denied: asked by its author"}


def test_a_line_that_denies_nothing_is_told(made, tmp_path, caplog):
    _, after, _ = made
    deny(tmp_path / "denied.csv", ("painted.obj", "", ""), ("painted.abj", "", ""), ("", "MIT*", ""))
    catalog.run(after)
    assert "2 of 3 lines of the deny-list name nothing that is listed, e.g. painted.abj" in caplog.text


def test_what_a_killed_run_left_of_it_is_erased_too(made, tmp_path):
    _, after, _ = made
    run_line(after)
    store = open_store(after)
    gc.erase(store, after)
    blob, _ = store.blobs.add(tmp_path / "objects" / "painted.obj")  # and no row was written any more
    for folder, pattern in gc.leftovers(store):
        (folder / pattern.replace("*", "left")).mkdir(parents=True)
        (folder / pattern.replace("*", "left") / "painted.obj").write_bytes(b"mtllib paint.mtl")
    gc.erase(store, after)
    assert not store.blobs.holds(blob)
    assert [path for path, content in everything(store.root).items() if b"mtllib paint.mtl" in content] == []


def test_a_takedown_that_was_killed_before_the_last_file_went_is_ended_by_the_next_gc(made, tmp_path, monkeypatch):
    _, after, _ = made
    run_line(after)
    store = open_store(after)
    material = (tmp_path / "objects" / "paint.mtl").read_bytes()

    unlink = Path.unlink

    def killed(path, missing_ok=False):
        unlink(path, missing_ok=missing_ok)
        if path.suffix == ".parquet" and path.parent.parent.name == "downloads":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)  # the part is gone that says which files the object has
        gc.erase(store, after)
    gc.erase(store, after)
    assert [path for path, content in everything(store.root).items() if material in content] == []


def test_what_was_unpacked_of_an_archive_is_erased_too(tmp_path):
    write_objects(tmp_path / "objects")
    shutil.make_archive(str(tmp_path / "toys"), "zip", tmp_path / "objects")
    path = deny(tmp_path / "denied.csv", ("painted.obj", "", ""))
    before = small(tmp_path / "store", tmp_path / "toys.zip")
    after = small(tmp_path / "store", tmp_path / "toys.zip", catalog={"denied": path, "shards": 2})
    store = open_store(after)
    for settings in (before, after):
        catalog.run(settings)
        downloads.run(settings, store.shards)
    assert any(file.name == "painted.obj" for file in everything(store.root / "unpacked"))
    gc.erase(store, after)
    assert not any(file.name in ("painted.obj", "paint.mtl") for file in everything(store.root / "unpacked"))
    assert any(file.name == "a.obj" for file in everything(store.root / "unpacked"))
    catalog.run(after)
    downloads.run(after, store.shards)
    assert gc.erase(store, after) == []


def test_another_collection_that_has_the_object_is_named_until_it_is_erased_there_too(made, tmp_path):
    before, after, _ = made
    catalog.run(before.model_copy(update={"collection": "other"}))
    downloads.run(before.model_copy(update={"collection": "other"}), open_store(before).shards)
    run_line(after)
    line = gc.erase(open_store(after), after)[-1]
    assert line.endswith(f"is left in test; other {gc.STILL}")
    other = after.model_copy(update={"collection": "other"})
    catalog.run(other)
    downloads.run(other, open_store(other).shards)
    assert gc.erase(open_store(other), other)[-1].endswith("nothing of 1 objects is left")
    assert gc.erase(open_store(after), after)[-1].endswith("nothing of 1 objects is left")
    assert [path for path, content in everything(after.store / "blobs").items() if b"mtllib paint.mtl" in content] == []


def test_a_batch_that_a_training_saved_is_erased_and_its_checkpoints_are_named(made, tmp_path):
    before, after, key = made
    store = open_store(before)
    runs = {}
    for name, keys in (("pretrain-a-b", [f"{key}/000"]), ("pretrain-c-d", ["another/000"])):
        folder = store.folder / "aligner" / name
        (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
        batch = Batch(keys, ["a red box"], keys, torch.zeros(1, 2, 3), {}, 0)
        draws = Draws(torch.ones(1, dtype=torch.int64), torch.zeros(1, 2, 3), torch.zeros(1, dtype=torch.bool))
        runs[folder] = broken.save(folder / "failed", 1, 0, [broken.Seen.of(batch, draws, math.nan)])
    run_line(after)
    lines = gc.erase(store, after)
    assert lines[-1].endswith("nothing of 1 objects is left")
    assert [saved.exists() for saved in runs.values()] == [False, True]
    for folder in runs:
        assert (folder / "checkpoints" / "step-00000001").is_dir()
        assert any(f"{folder.name} may have learned from them" in line for line in lines)
