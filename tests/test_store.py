"""The store: immutable parts, a manifest replaced last, readers that are never pulled from under, and gc."""

import json
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gap3d import fingerprints, gc, manifest
from gap3d.lease import LeaseHeld, lease
from gap3d.manifest import LedgerRow, Manifest
from gap3d.parts import PartWriter, read_rows
from gap3d.records import Outcome, Status
from gap3d.schemas import CATALOG, DATASET, DOWNLOADS, VIEWS, StageSchema, targets
from gap3d.settings import ComputeSettings, Limits
from gap3d.store import Store
from gap3d.temporary import TemporaryFolder, hold, sweep, temporary_file

PLAIN = StageSchema(
    pa.schema([pa.field("key", pa.string(), nullable=False), ("value", pa.string()), ("place", pa.string())]),
    exempt=("place",),
)
ONE_BY_ONE = ComputeSettings(flush_rows=1, lease_wait_s=0)
TOGETHER = ComputeSettings(flush_rows=1000, lease_wait_s=0)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", "test", 1)


def write(store, content, compute=ONE_BY_ONE, stage="plain", schema=PLAIN):
    """Commit rows; a value of None is a failed row. The manifest."""
    with store.writer(stage, "0", schema, compute, Limits()) as writer:
        for key, value in content.items():
            data = value if isinstance(value, dict) or value is None else {"value": value, "place": ""}
            status = Status.OK if data else Status.IMPORT_ERROR
            writer.add(Outcome(stage=stage, key=key, status=status, data=data), {"code": "1", "value": str(value)})
        return writer.finish(set(content))


def values(store, held):
    return {key: row["value"] for key, row in store.read(held).items()}


def only_part(store, held):
    (part,) = held.parts
    return store.shard(held.stage, held.shard) / part


keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


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


rows = st.builds(
    LedgerRow,
    key=keys,
    status=st.sampled_from(Status),
    reason=st.text(max_size=20),
    digest=st.text("0123456789abcdef", min_size=1, max_size=32),
    fingerprint=st.just("f"),
    inputs=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    limits=st.dictionaries(st.sampled_from(["timeout_s"]), st.floats(1, 1e6), max_size=1),
    part=st.one_of(st.none(), st.just("p.parquet")),
    part_row=st.one_of(st.none(), st.integers(0, 1000)),
    seconds=st.floats(0, 1e6),
    costs=st.dictionaries(st.sampled_from(["import", "render"]), st.floats(0, 1e6), max_size=2),
)


@settings(max_examples=25, deadline=None)
@given(table=st.lists(rows, max_size=6, unique_by=lambda row: row.key), complete=st.booleans())
def test_a_manifest_is_read_as_it_was_written(tmp_path_factory, table, complete):
    folder = tmp_path_factory.mktemp("manifest")
    written = Manifest(
        stage="s",
        shard="0",
        rows={row.key: row for row in table},
        complete=complete,
        sequence=3,
        retired={"old.parquet": "2026-01-01T00:00:00Z"},
    )
    manifest.write(folder, written)
    assert manifest.read(folder, "s", "0") == written


def test_a_damaged_manifest_is_named_and_says_what_to_do(store):
    write(store, {"a": "1"})
    path = store.shard("plain", "0") / manifest.NAME
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", flipped(content, len(content) // 8)):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"manifest\.parquet is damaged .*: remove its folder and run the stage again"
        ):
            store.manifest("plain", "0")


def test_no_flipped_byte_of_a_manifest_changes_what_is_read(store):
    held = write(store, {"a": "1", "b": None})
    path = store.shard("plain", "0") / manifest.NAME
    content = path.read_bytes()
    found = 0
    for position in range(0, len(content), 7):
        path.write_bytes(flipped(content, position))
        try:
            assert store.manifest("plain", "0") == held
        except ValueError:
            found += 1
    assert found > len(content) // 7 // 4


def test_a_manifest_of_another_schema_version_is_refused(store, monkeypatch):
    monkeypatch.setattr(manifest, "SCHEMA_VERSION", 99)
    write(store, {"a": "1"})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="schema version 99, this program reads 1"):
        store.manifest("plain", "0")


def flipped(content, position):
    changed = bytearray(content)
    changed[position] ^= 0x10
    return bytes(changed)


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


def test_a_reader_of_an_old_manifest_still_reads_after_new_commits_and_until_gc_is_past_its_grace(store):
    old = write(store, {"a": "1", "b": "2"})
    new = write(store, {"a": "one", "b": "two"})
    assert values(store, old) == {"a": "1", "b": "2"}
    assert values(store, new) == {"a": "one", "b": "two"}
    assert gc.collect(store, 3600, 0, dry_run=False) == []
    assert values(store, old) == {"a": "1", "b": "2"}
    assert len(gc.collect(store, 0, 0, dry_run=False)) == 2
    with pytest.raises(FileNotFoundError):
        values(store, old)
    assert values(store, store.manifest("plain", "0")) == {"a": "one", "b": "two"}
    assert store.manifest("plain", "0").retired == {}


def files_of(store):
    return {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}


def test_a_dry_gc_tells_and_touches_nothing(store):
    write(store, {f"{index}": "old" for index in range(9)})
    write(store, {f"{index}": "new" for index in range(9)})
    (store.shard("plain", "0") / ".part.x.tmp").write_bytes(b"left by a killed run")
    before = files_of(store)
    told = gc.collect(store, 0, 0, dry_run=True)
    assert gc.compact(store, 0, dry_run=True) == [("plain", "0", 9)]
    assert files_of(store) == before
    assert {removal.path for removal in gc.collect(store, 0, 0, dry_run=False)} == {removal.path for removal in told}
    assert len(told) == 10


def target_row(number):
    return {
        "object_id": f"{number}",
        "view": 0,
        "cls": np.full(8, number, np.float32),
        "registers": np.full((2, 8), number, np.float16).view(np.uint16),
        "patches": np.full((4, 8), number, np.float16).view(np.uint16),
    }


def write_targets(store, numbers, compute=ONE_BY_ONE):
    return write(store, {f"{n}/000": target_row(n) for n in numbers}, compute, "targets", targets(2, 4, 8))


def write_index(store, held, numbers):
    """A dataset index that refers to the target rows of a manifest."""
    blank = dict.fromkeys(DATASET.columns.names[1:], "")
    with store.writer("dataset", "all", DATASET, TOGETHER, Limits()) as writer:
        for number in numbers:
            row = held.rows[f"{number}/000"]
            data = {
                **blank,
                "captions": [],
                "view": 0,
                "rank": number,
                "target_shard": "0",
                "target_part": row.part,
                "target_row": row.part_row,
            }
            writer.add(Outcome(stage="dataset", key=row.key, data=data), {"target": row.digest, "part": str(row.part)})
        writer.finish({f"{number}/000" for number in numbers})


def test_gc_keeps_the_parts_that_the_dataset_index_refers_to(store):
    old = write_targets(store, range(3))
    write_index(store, old, range(2))
    write_targets(store, range(10, 13))
    (gone,) = gc.collect(store, 0, 0, dry_run=False)
    assert gone.path.name == old.rows["2/000"].part
    folder = store.shard("targets", "0")
    for number in range(2):
        row = old.rows[f"{number}/000"]
        assert read_rows(folder / row.part, [row.part_row], ["key"]).column("key").to_pylist() == [row.key]
    write_index(store, store.manifest("targets", "0"), range(10, 13))
    freed = {removal.path.name for removal in gc.collect(store, 0, 0, dry_run=False)}
    assert {old.rows[f"{number}/000"].part for number in range(2)} <= freed


def add_file(store, tmp_path, content):
    """A file in the blobs that a collection's downloads list."""
    source = tmp_path / "source"
    source.write_bytes(content)
    sha256, size = store.blobs.add(source)
    data = {
        "bundle": sha256,
        "file_type": "obj",
        "main": "a.obj",
        "files": [{"path": "a.obj", "sha256": sha256, "bytes": size}],
        "missing": [],
        "bytes": size,
    }
    write(store, {sha256: data}, TOGETHER, "downloads", DOWNLOADS)
    return store.blobs.path(sha256)


def test_gc_never_touches_another_collections_files(store, tmp_path):
    other = Store(store.root, "other", 4)
    mine, theirs = add_file(store, tmp_path, b"mine"), add_file(other, tmp_path, b"theirs")
    part = only_part(other, other.manifest("downloads", "0"))
    stray = store.blobs.path(store.blobs.add(tmp_path / "source")[0])
    assert stray == theirs
    (tmp_path / "source").write_bytes(b"nobody's")
    nobodys = store.blobs.path(store.blobs.add(tmp_path / "source")[0])
    assert [removal.path for removal in gc.collect(store, 0, 0, dry_run=False)] == [nobodys]
    assert mine.exists() and theirs.exists() and part.exists()


def test_a_file_that_is_stored_again_gets_its_grace_again(store, tmp_path):
    (tmp_path / "source").write_bytes(b"of a run that has not committed its row yet")
    blob = store.blobs.path(store.blobs.add(tmp_path / "source")[0])
    os.utime(blob, (0, 0))
    assert [removal.path for removal in gc.collect(store, 60, 0, dry_run=True)] == [blob]
    store.blobs.add(tmp_path / "source")
    assert gc.collect(store, 60, 0, dry_run=True) == []


def test_compaction_makes_fewer_files_and_changes_no_digest(store):
    content = {f"{index:02d}": "x" * 100 for index in range(20)}
    before = write(store, content)
    assert len(before.parts) == 20
    assert gc.compact(store, 0, dry_run=False) == [("plain", "0", 20)]
    after = store.manifest("plain", "0")
    assert len(after.parts) == 1
    assert after.digest == before.digest
    assert after.complete
    assert values(store, after) == content == values(store, before)
    assert set(after.retired) == before.parts
    assert gc.compact(store, 0, dry_run=False) == []


def test_compaction_of_targets_keeps_every_byte(store):
    before = write_targets(store, range(20))
    gc.compact(store, 0, dry_run=False)
    after = store.manifest("targets", "0")
    folder = store.shard("targets", "0")
    for key, row in before.rows.items():
        now = after.rows[key]
        old, new = read_rows(folder / row.part, [row.part_row]), read_rows(folder / now.part, [now.part_row])
        assert old.equals(new)
    assert after.digest == before.digest


def test_compaction_cuts_at_the_size_of_a_part(store, monkeypatch):
    monkeypatch.setattr(gc, "PART_BYTES", 1000)
    content = {f"{index:02d}": "x" * 100 for index in range(40)}
    before = write(store, content, schema=replace(PLAIN, row_group_rows=4))
    monkeypatch.setitem(gc.SCHEMAS, "plain", replace(PLAIN, row_group_rows=4))
    gc.compact(store, 0, dry_run=False)
    after = store.manifest("plain", "0")
    assert 3 <= len(after.parts) <= 6
    assert after.digest == before.digest
    assert values(store, after) == content


def test_mostly_dead_parts_are_rewritten(store):
    write(store, {f"{index}": "old" for index in range(10)}, TOGETHER)
    with store.writer("plain", "0", PLAIN, TOGETHER, Limits()) as writer:
        for index in range(6):
            writer.add(Outcome(stage="plain", key=f"{index}", data={"value": "new", "place": ""}), {"code": "2"})
        writer.finish({f"{index}" for index in range(10)})
    assert [count for *_, count in gc.compact(store, 0, dry_run=False)] == [1]
    held = store.manifest("plain", "0")
    assert values(store, held) == {f"{index}": "new" if index < 6 else "old" for index in range(10)}


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
