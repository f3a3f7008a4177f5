"""The store: immutable parts, a manifest replaced last, readers that are never pulled from under, and gc."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stores import ONE_BY_ONE, PLAIN, TOGETHER, flipped, only_part, values, write, write_targets

from gap3d import fingerprints
from gap3d.blobs import Blobs
from gap3d.lease import LeaseHeld, lease
from gap3d.parts import PartWriter, read_rows
from gap3d.records import Outcome
from gap3d.schemas import CATALOG, DATASET, VIEWS
from gap3d.settings import ComputeSettings, Limits
from gap3d.store import Store
from gap3d.temporary import TemporaryFolder, hold, sweep, temporary_file
from pipelines.command import load_settings

keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", "test", 1)


@settings(max_examples=25, deadline=None)
@given(content=st.dictionaries(keys, st.one_of(st.none(), st.text(max_size=20)), max_size=12))
def test_what_is_committed_is_what_is_read_however_it_is_split_into_parts(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("split")
    split = write(Store(root / "a", "test", 1), content, ONE_BY_ONE)
    whole = write(Store(root / "b", "test", 1), content, TOGETHER)
    assert values(Store(root / "a", "test", 1), split) == {
        key: value for key, value in content.items() if value is not None
    }
    assert split.digest == whole.digest
    assert len(whole.parts) <= 1
    assert {key: row.status for key, row in split.rows.items()} == {key: row.status for key, row in whole.rows.items()}


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_a_flipped_byte_of_a_part_is_found(store, share):
    held = write(store, {f"{index:03d}": "text " * 200 for index in range(50)}, TOGETHER)
    path = only_part(store, held)
    assert store.verify(held) == []
    content = path.read_bytes()
    path.write_bytes(flipped(content, int(len(content) * share)))
    (fault,) = store.verify(held)
    assert path.name in fault


def test_a_lost_part_is_found(store):
    held = write(store, {"a": "1"})
    only_part(store, held).unlink()
    (fault,) = store.verify(held)
    assert "plain/0/" in fault


def test_parts_are_named_by_what_they_hold_and_not_by_when(store, tmp_path):
    other = Store(tmp_path / "other", "test", 1)
    content = {"a": {"value": "1", "place": "x"}, "b": {"value": "2", "place": "y"}}
    first, second = write(store, content, TOGETHER), write(other, content, TOGETHER)
    assert first.parts == second.parts
    moved = write(Store(tmp_path / "third", "test", 1), {**content, "b": {"value": "2", "place": "z"}}, TOGETHER)
    assert moved.parts != first.parts  # what a digest leaves out is in the bytes, so it is in the name
    assert moved.digest == first.digest


def test_target_parts_are_laid_out_for_readers_of_single_rows(store):
    held = write_targets(store, range(20), TOGETHER)
    file = pq.ParquetFile(only_part(store, held))
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [8, 8, 4]
    schema = file.schema_arrow
    assert schema.field("cls").type == pa.list_(pa.float32())
    assert (schema.field("registers").type, schema.field("patches").type) == (
        pa.binary(2 * 8 * 2),
        pa.binary(4 * 8 * 2),
    )
    for index in range(file.metadata.num_columns):
        column = file.metadata.row_group(0).column(index)
        assert column.compression == "UNCOMPRESSED"
        assert not column.has_dictionary_page
    content = only_part(store, held).read_bytes()
    at = content.index(np.full((4, 8), 3, np.float16).tobytes())
    only_part(store, held).write_bytes(flipped(content, at))
    with pytest.raises(OSError, match=r"(?i)checksum|crc"):
        read_rows(only_part(store, held), [3])


def test_rows_are_read_in_the_order_asked_for(store):
    held = write_targets(store, range(20), TOGETHER)
    asked = [19, 0, 8, 7, 8]
    assert read_rows(only_part(store, held), asked, ["object_id"]).column("object_id").to_pylist() == [
        str(n) for n in asked
    ]


def test_a_row_without_an_outcome_is_a_fault_of_the_program(store):
    with (
        pytest.raises(RuntimeError, match=r"no outcome for 1 rows, e\.g\. \['b'\]"),
        store.writer("plain", "0", PLAIN, TOGETHER, Limits()) as writer,
    ):
        writer.add(Outcome(stage="plain", key="a", data={"value": "1", "place": ""}), {})
        writer.finish({"a", "b"})
    assert set(store.manifest("plain", "0").rows) == {"a"}
    assert not store.manifest("plain", "0").complete


def test_a_writer_commits_what_is_due_before_the_end(store):
    with store.writer("plain", "0", PLAIN, ComputeSettings(flush_rows=2), Limits()) as writer:
        for index in range(5):
            writer.add(Outcome(stage="plain", key=f"{index}", data={"value": "1", "place": ""}), {})
            assert len(store.manifest("plain", "0").rows) == (index + 1) // 2 * 2
    assert len(store.manifest("plain", "0").rows) == 5


def test_leftovers_are_removed_under_the_lease_and_not_without_it(store):
    write(store, {"a": "1"})
    left = [store.shard("plain", "0") / name for name in (".part.0.tmp", "0123.parquet", ".manifest.parquet.0.tmp")]
    for path in left:
        path.write_bytes(b"")
    with lease(store.shard("plain", "0"), 0), pytest.raises(LeaseHeld, match="is being written by process"):
        write(store, {"a": "1"})
    assert all(path.exists() for path in left)
    write(store, {"a": "1"})
    assert not any(path.exists() for path in left)


def test_a_digest_of_a_row_depends_on_its_content_and_its_kind():
    row = {"a": b"x", "b": 1, "c": np.zeros(2, np.float16)}
    assert fingerprints.row_digest("ok", row) == fingerprints.row_digest("ok", dict(reversed(row.items())))
    others = [
        {**row, "a": b"y"},
        {**row, "a": "x"},
        {**row, "c": np.zeros(2, np.float32)},
        {**row, "c": np.zeros((1, 2), np.float16)},
    ]
    assert len({fingerprints.row_digest("ok", other) for other in [row, *others]}) == 5


@pytest.mark.parametrize("schema", [CATALOG, DATASET, VIEWS])
def test_exempt_columns_are_columns_and_the_key_comes_first(schema):
    assert schema.columns.names[0] == "key"
    assert set(schema.exempt) < set(schema.columns.names)


def test_what_nobody_holds_is_swept_and_what_somebody_holds_is_not(tmp_path):
    with temporary_file(tmp_path, ".copy") as mine:
        (tmp_path / ".copy.of-a-killed-run.tmp").touch()
        (tmp_path / "copy.txt").touch()
        sweep(tmp_path, ".copy*.tmp")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, "copy.txt"])
    assert not mine.exists()


def test_a_folder_of_a_killed_run_is_removed_by_the_next_one(tmp_path):
    (tmp_path / "kind-of-a-killed-run").mkdir()
    (tmp_path / "kind-of-a-killed-run" / "file").touch()
    (tmp_path / "kind-link").symlink_to(tmp_path)
    first = TemporaryFolder(tmp_path, "kind")
    second = TemporaryFolder(tmp_path, "kind")
    assert first.path.exists() and second.path.exists()
    assert not (tmp_path / "kind-of-a-killed-run").exists()
    assert (tmp_path / "kind-link").is_symlink()
    assert hold(first.path) is None
    first.remove()
    second.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["kind-link"]


def test_the_name_of_a_part_that_is_published_twice_is_told_twice(tmp_path):
    writer = PartWriter(tmp_path, PLAIN, {})
    writer.add("a", "digest", {"value": "1", "place": ""})
    assert writer.close() == writer.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_settings_saved_beside_the_outputs_are_read_back(store):
    store.save_settings("views", "d1", {"points": 5})
    assert store.settings("views", "d1") == {"points": 5}
    assert store.settings("views", "none") == {}
    assert json.loads((store.folder / "collection.json").read_text())["shards"] == 1


def test_the_number_of_shards_is_free_until_something_is_made(tmp_path):
    Store(tmp_path, "looked_at", shards=4)
    assert len(Store(tmp_path, "looked_at", shards=64).shards) == 64
    Store(tmp_path, "looked_at", shards=64).save_settings("catalog", "d1", {"seed": 0})
    with pytest.raises(ValueError, match="has 64 shards, the settings ask for 4: set"):
        Store(tmp_path, "looked_at", shards=4)
    (tmp_path / "looked_at" / "settings.json").write_text("{}")  # as the line leaves it
    with pytest.raises(ValueError, match=r"take its settings \(--preset .*/looked_at/settings\.json"):
        Store(tmp_path, "looked_at", shards=4)


def test_a_collection_that_is_there_is_opened_whatever_its_shards_and_none_is_made_by_looking(tmp_path):
    made = Store(tmp_path, "made", 4, str(tmp_path / "elsewhere"))
    found = Store.open(tmp_path, "made", str(tmp_path / "elsewhere"))
    assert (found.folder, found.shards, found.blobs.place) == (made.folder, made.shards, made.blobs.place)
    near = Store(tmp_path, "near", 1).other("made")
    assert (near.shards, near.blobs.place) == (made.shards, str(tmp_path / "blobs"))
    with pytest.raises(ValueError, match=r"there is no collection mdae in .*\(there are: made, near\)"):
        Store.open(tmp_path, "mdae")
    assert Store.exists(tmp_path, "made") and not Store.exists(tmp_path, "mdae")
    assert Store.collections(tmp_path) == ["made", "near"] == sorted(path.name for path in tmp_path.iterdir())
    (made.folder / "collection.json").write_text("{}")
    with pytest.raises(ValueError, match=r"collection\.json is damaged: write"):
        Store.open(tmp_path, "made")


@pytest.mark.parametrize("path", ["../out.obj", "l/../../out.obj", "/tmp/out.obj"])
def test_an_objects_files_are_laid_out_in_its_own_tree_only(tmp_path, path):
    (tmp_path / "a.obj").write_bytes(b"v 0 0 0\n")
    blobs = Blobs(tmp_path / "blobs")
    sha256, _ = blobs.add(tmp_path / "a.obj")
    with pytest.raises(ValueError, match="leads out of the tree"):
        blobs.unpack({path: sha256}, tmp_path / "object" / "tree")
    assert not (tmp_path / "object" / "out.obj").exists()


@pytest.mark.parametrize("name", ["blobs", "samples"])
def test_no_collection_takes_the_name_of_a_folder_of_the_store(name):
    with pytest.raises(ValidationError, match="choose another name"):
        load_settings("demo", collection=name)
