"""Manifests: there and back, damage, versions."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import PLAIN, flipped, write

from gap3d import manifest
from gap3d.manifest import LedgerRow, Manifest
from gap3d.records import Status
from gap3d.schemas import SCHEMAS
from gap3d.store import Store

keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
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


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", "test", 1)


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
    with pytest.raises(ValueError, match="schema version 99, this program reads"):
        store.manifest("plain", "0")


@pytest.mark.parametrize(("stage", "kept"), [("downloads", True), ("renders", False)])
def test_a_manifest_of_version_1_is_read_or_its_rows_are_made_again(store, monkeypatch, stage, kept):
    monkeypatch.setattr(manifest, "SCHEMA_VERSION", 1)
    monkeypatch.setattr(manifest, "LEDGER", manifest.LEDGER.remove(manifest.LEDGER.get_field_index("sandboxed")))
    held = write(store, {"a": "1"}, stage=stage, schema=replace(SCHEMAS[stage], columns=PLAIN.columns))
    monkeypatch.undo()
    now = store.manifest(stage, "0")
    if kept:
        assert now.rows == held.rows and now.rows["a"].sandboxed is None
    else:
        assert (dict(now.rows), now.complete) == ({}, False)
        assert set(now.retired) == held.parts  # gc will remove them
