"""gc and compaction: what is referred to stays, what is not goes after its grace, and no digest changes."""

import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import ONE_BY_ONE, PLAIN, TOGETHER, only_part, target_row, values, write, write_targets

from gap3d import gc
from gap3d.parts import read_rows
from gap3d.records import Outcome
from gap3d.schemas import DATASET, DOWNLOADS, SCHEMAS, clouds, generated, targets
from gap3d.settings import ComputeSettings, Limits
from gap3d.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", "test", 1)


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
    assert gc.compact(store, ONE_BY_ONE, dry_run=True) == [("plain", "0", 9)]
    assert files_of(store) == before
    assert {removal.place for removal in gc.collect(store, 0, 0, dry_run=False)} == {removal.place for removal in told}
    assert len(told) == 10


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
    assert Path(gone.place).name == old.rows["2/000"].part
    folder = store.shard("targets", "0")
    for number in range(2):
        row = old.rows[f"{number}/000"]
        assert read_rows(folder / row.part, [row.part_row], ["key"]).column("key").to_pylist() == [row.key]
    write_index(store, store.manifest("targets", "0"), range(10, 13))
    freed = {Path(removal.place).name for removal in gc.collect(store, 0, 0, dry_run=False)}
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
    assert [removal.place for removal in gc.collect(store, 0, 0, dry_run=False)] == [str(nobodys)]
    assert mine.exists() and theirs.exists() and part.exists()


def test_a_file_that_is_stored_again_gets_its_grace_again(store, tmp_path):
    (tmp_path / "source").write_bytes(b"of a run that has not committed its row yet")
    blob = store.blobs.path(store.blobs.add(tmp_path / "source")[0])
    os.utime(blob, (0, 0))
    assert [removal.place for removal in gc.collect(store, 60, 0, dry_run=True)] == [str(blob)]
    store.blobs.add(tmp_path / "source")
    assert gc.collect(store, 60, 0, dry_run=True) == []


def test_compaction_makes_fewer_files_and_changes_no_digest(store):
    content = {f"{index:02d}": "x" * 100 for index in range(20)}
    before = write(store, content)
    assert len(before.parts) == 20
    assert gc.compact(store, ONE_BY_ONE, dry_run=False) == [("plain", "0", 20)]
    after = store.manifest("plain", "0")
    assert len(after.parts) == 1
    assert after.digest == before.digest
    assert after.complete
    assert values(store, after) == content == values(store, before)
    assert set(after.retired) == before.parts
    assert gc.compact(store, ONE_BY_ONE, dry_run=False) == []


def test_compaction_of_targets_keeps_every_byte(store):
    before = write_targets(store, range(20))
    gc.compact(store, ONE_BY_ONE, dry_run=False)
    after = store.manifest("targets", "0")
    folder = store.shard("targets", "0")
    for key, row in before.rows.items():
        now = after.rows[key]
        old, new = read_rows(folder / row.part, [row.part_row]), read_rows(folder / now.part, [now.part_row])
        assert old.equals(new)
    assert after.digest == before.digest


def test_compaction_cuts_at_the_size_of_a_part_that_the_settings_say_and_is_done_then(store):
    compute = ONE_BY_ONE.model_copy(update={"part_bytes": 24_000})
    content = {f"{index:02d}": "x" * 1000 for index in range(52)}
    before = write(store, content, compute)
    assert gc.compact(store, compute, dry_run=False) == [("plain", "0", 52)]
    after = store.manifest("plain", "0")
    assert sorted(Counter(row.part for row in after.rows.values()).values()) == [4, 24, 24]  # of 1000 bytes
    assert after.digest == before.digest
    assert values(store, after) == content
    assert gc.compact(store, compute, dry_run=False) == []


def test_mostly_dead_parts_are_rewritten(store):
    write(store, {f"{index}": "old" for index in range(10)}, TOGETHER)
    with store.writer("plain", "0", PLAIN, TOGETHER, Limits()) as writer:
        for index in range(6):
            writer.add(Outcome(stage="plain", key=f"{index}", data={"value": "new", "place": ""}), {"code": "2"})
        writer.finish({f"{index}" for index in range(10)})
    assert [count for *_, count in gc.compact(store, ONE_BY_ONE, dry_run=False)] == [1]
    held = store.manifest("plain", "0")
    assert values(store, held) == {f"{index}": "new" if index < 6 else "old" for index in range(10)}


def cell(kind, draw):
    """Any value of an Arrow type."""
    if pa.types.is_struct(kind):
        return {field.name: cell(field.type, draw) for field in kind}
    if pa.types.is_list(kind):
        return [cell(kind.value_type, draw) for _ in range(draw.randrange(4))]
    if pa.types.is_fixed_size_binary(kind):
        return draw.randbytes(kind.byte_width)
    if pa.types.is_binary(kind):
        return draw.choice([None, draw.randbytes(5)])
    if pa.types.is_boolean(kind):
        return draw.random() < 0.5
    if pa.types.is_floating(kind):
        return draw.choice([None, float(np.float32(draw.random()))])
    return draw.choice([None, draw.randrange(99)]) if pa.types.is_integer(kind) else draw.choice(["", "a", "b" * 50])


def layout(path):
    """How a part is written: columns with all metadata, rows of each group, compression of each column."""
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        columns = file.schema_arrow
        fields = [(field.name, field.type, field.nullable, field.metadata) for field in columns]
        packed = {group.column(index).compression for group in groups for index in range(group.num_columns)}
        return fields, columns.metadata, [group.num_rows for group in groups], packed


WRITTEN = {
    **SCHEMAS,
    "targets": targets(2, 4, 8, "int8", "zstd"),
    "generated": generated(2, 4, 8),
    "clouds": clouds(5),
}


@pytest.mark.parametrize("stage", {schema: stage for stage, schema in WRITTEN.items()}.values())  # of equals, one
def test_compaction_leaves_of_every_stage_what_its_writer_would_have_written_at_once(tmp_path, stage):
    schema, draw = WRITTEN[stage], random.Random(stage)
    rows = schema.row_group_rows + 8
    content = {
        f"{number:04d}/000": {field.name: cell(field.type, draw) for field in list(schema.columns)[1:]}
        for number in range(rows)
    }
    held = []
    for name, flush_rows in (("at once", rows + 1), ("in eight", rows // 8)):
        store = Store(tmp_path, name, 1)
        compute = ComputeSettings(flush_rows=flush_rows, lease_wait_s=0)
        with store.writer(stage, "0", schema, compute, Limits(), {"model": "some"}) as writer:
            for key, data in content.items():
                writer.add(Outcome(stage=stage, key=key, data=data), {"code": "1"})
            held.append(writer.finish(set(content)))
    assert [len(each.parts) for each in held] == [1, 8]
    assert gc.compact(store, ONE_BY_ONE, dry_run=False) == [(stage, "0", 8)]
    now = store.manifest(stage, "0")
    whole = Store(tmp_path, "at once", 1)
    assert layout(only_part(store, now)) == layout(only_part(whole, held[0]))
    assert store.verify(now) == [] and now.digest == held[0].digest
    assert store.read(now) == whole.read(held[0])


def test_parts_that_say_different_things_of_themselves_never_become_one(store):
    """Between two formats of the same width, a run that was cut short leaves parts of both."""
    for kind in ("float16", "bfloat16"):
        with store.writer("targets", "0", targets(2, 4, 8), ONE_BY_ONE, Limits(), {"kind": kind}) as writer:
            for number in range(8):
                writer.add(Outcome(stage="targets", key=f"{kind}/{number}", data=target_row(number)), {"kind": kind})
    assert gc.compact(store, ONE_BY_ONE, dry_run=False) == [("targets", "0", 16)]
    held = store.manifest("targets", "0")
    assert len(held.parts) == 2 and store.verify(held) == []
    for key, row in held.rows.items():
        said = json.loads(pq.read_schema(store.shard("targets", "0") / row.part).metadata[b"gap3d"])
        assert said["kind"] == key.partition("/")[0]
    few = dict(list(held.rows.items())[4:])
    assert {row.part for row in few.values()} == held.parts
    assert gc.compact(store, ONE_BY_ONE, dry_run=False) == []


def test_a_stage_that_is_not_known_is_not_written_and_what_it_wrote_is_left_as_it_is(store, caplog):
    with pytest.raises(ValueError, match="newer is no stage that this version knows"):
        write(store, {"a": "1"}, stage="newer")
    with pytest.raises(ValueError, match="plain is known to write other row groups"):
        write(store, {"a": "1"}, schema=replace(PLAIN, row_group_rows=4))
    write(store, {f"{index}": "1" for index in range(9)})
    (store.folder / "plain").rename(store.folder / "newer")
    before = files_of(store)
    assert gc.compact(store, ONE_BY_ONE, dry_run=False) == []
    assert files_of(store) == before
    assert "newer is no stage that this version knows" in caplog.text


def test_what_is_no_blob_is_left_alone_in_a_folder_that_is_the_users(tmp_path):
    raw = tmp_path / "raw"
    (raw / "tv").mkdir(parents=True)
    (raw / "tv" / "tv.mp4").write_bytes(b"the user's own")
    (tmp_path / "a.obj").write_bytes(b"v 0 0 0\n")
    for place in (str(raw), f"file://{raw}"):
        store = Store(tmp_path / "store", "test", 1, place)
        sha256, _ = store.blobs.add(tmp_path / "a.obj")
        assert [Path(removal.place).name for removal in gc.collect(store, 0, 0, dry_run=False)] == [sha256]
        assert (raw / "tv" / "tv.mp4").exists()
