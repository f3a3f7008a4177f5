"""The catalog of objects that are listed in tables: what is committed, and what a second run finds to do."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_selection import annotations, sha, trellis, write_csv

from gap3d.annotations import annotation_tables
from gap3d.settings import Settings, SourceSettings
from pipelines import catalog
from pipelines.command import open_store


def settings_of(tmp_path, tables, described=(), **values):
    return Settings(
        store=tmp_path / "store",
        collection="listed",
        source={"kind": "tables", "tables": tables, "described_by": described},
        catalog={"shards": 4, "count": 60, **values},
    )


@pytest.fixture
def listed(tmp_path):
    """(settings, the listed rows)."""
    rows = annotations(400)
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    return settings_of(tmp_path, [table], [write_csv(tmp_path / "told.csv", trellis(rows))]), rows


def files(settings):
    """Every file of the catalog with its time."""
    return {path: path.stat().st_mtime_ns for path in (settings.store / "listed" / "catalog").rglob("*.parquet")}


def test_every_listed_row_is_one_row_and_only_the_admitted_have_rows_in_later_stages(listed):
    settings, rows = listed
    report = catalog.run(settings)
    store = open_store(settings)
    held = [store.manifest("catalog", shard) for shard in store.shards]
    assert sum(each.count for each in held) == len(rows) == report.count("found")
    assert sum(len(each.rows) for each in held) == 60 == report.by_status("catalog")["ok"]
    assert sum(len(store.left_out(each)) for each in held) == len(rows) - 60
    saved = json.loads((settings.store / "listed" / "funnel.json").read_text())
    assert saved == list(report.funnel) and saved[0]["rows"] == len(rows) and saved[-1]["rows"] == 60


def test_a_second_run_writes_nothing_and_another_order_of_the_table_changes_nothing(listed):
    settings, rows = listed
    first = catalog.run(settings)
    before = files(settings)
    second = catalog.run(settings)
    assert second.count("computed") == 0 and files(settings) == before
    pq.write_table(pa.Table.from_pylist(rows[::-1]), settings.source.tables[0])
    third = catalog.run(settings)
    assert third.count("computed") == 0 and files(settings) == before
    assert [s.digest for s in first.shards] == [s.digest for s in third.shards]


def test_rows_that_are_left_out_change_no_digest_of_a_shard(listed):
    settings, rows = listed
    first = catalog.run(settings)
    bad = {**rows[0], "fileIdentifier": "https://sketchfab.com/3d-models/bad", "fileType": "rar"}
    pq.write_table(pa.Table.from_pylist([*rows, bad]), settings.source.tables[0])
    second = catalog.run(settings)
    assert second.count("found") == first.count("found") + 1
    assert [s.digest for s in first.shards] == [s.digest for s in second.shards]


def test_a_lost_part_of_the_rows_left_out_is_made_again(listed):
    settings, _ = listed
    report = catalog.run(settings)
    store = open_store(settings)
    held = store.manifest("catalog", "0")
    (store.shard("catalog", "0") / held.left_out[0]).unlink()
    assert not store.manifest("catalog", "0").complete
    again = catalog.run(settings)
    assert again.count("found") == report.count("found")
    assert store.manifest("catalog", "0").left_digest == held.left_digest
    assert len(store.left_out(store.manifest("catalog", "0"))) == sum(held.left_counts.values())


def test_a_damaged_part_of_the_rows_left_out_is_found(listed):
    settings, _ = listed
    catalog.run(settings)
    store = open_store(settings)
    held = store.manifest("catalog", "0")
    assert store.verify(held) == []
    path = store.shard("catalog", "0") / held.left_out[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert len(store.verify(held)) >= 1


def test_repositories_are_never_on_both_sides_of_the_split(listed):
    settings, _ = listed
    catalog.run(
        settings.model_copy(
            update={"catalog": settings.catalog.model_copy(update={"validation_share": 0.4, "count": None})}
        )
    )
    store = open_store(settings)
    sides = {}
    for shard in store.shards:
        for row in store.read(store.manifest("catalog", shard)).values():
            cluster = (
                "/".join(row["identifier"].lower().split("/")[:5]) if row["source"] == "github" else row["cluster"]
            )
            sides.setdefault(cluster, set()).add(row["split"])
    assert all(len(each) == 1 for each in sides.values())
    assert {"train", "validation"} == set().union(*sides.values())


def test_objaverse_annotations_lie_where_the_objaverse_package_looks_for_them(tmp_path):
    from objaverse.xl import downloaders

    rows = [row for row in annotations(20) if row["fileIdentifier"]]
    for origin in downloaders:
        (tmp_path / origin).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / origin / f"{origin}.parquet")
    ours = annotation_tables(SourceSettings(kind="objaverse", annotations=tmp_path))
    for path, downloader in zip(ours, [downloaders[name] for name in SourceSettings().origins], strict=True):
        theirs = downloader.get_annotations(download_dir=str(tmp_path))
        assert theirs["fileIdentifier"].tolist() == pq.read_table(path)["fileIdentifier"].to_pylist()


def test_absent_annotations_without_a_network_are_a_sentence(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="copy them there, or run again with a network"):
        annotation_tables(SourceSettings(kind="objaverse", annotations=tmp_path))


def test_captions_and_scores_of_a_folder_come_by_the_bytes(tmp_path):
    from folders import write_box

    write_box(tmp_path / "objects" / "a.obj", 1.0)
    digest = sha((tmp_path / "objects" / "a.obj").read_text())
    told = [
        {"sha256": digest, "file_identifier": "giraffe/a.blend", "aesthetic_score": "4.75", "captions": '["a box"]'}
    ]
    settings = Settings(
        store=tmp_path / "store",
        collection="toys4k",
        source={"kind": "folder", "path": tmp_path / "objects", "described_by": [write_csv(tmp_path / "t.csv", told)]},
        catalog={"shards": 1, "captioned": True, "least_score": 4.5},
    )
    assert catalog.run(settings).by_status("catalog") == {"ok": 1}
    store = open_store(settings)
    (row,) = store.read(store.manifest("catalog", "0")).values()
    assert row["captions"] == ["a box"] and row["aesthetic_score"] == 4.75


def test_objects_of_an_archive_have_the_names_that_they_have_in_the_folder(tmp_path):
    import shutil

    from folders import write_box

    for name in ("giraffe/giraffe_001.obj", "horse/horse_002.obj"):
        write_box(tmp_path / "toys4k_blend_files" / name, 1.0)
    archive = shutil.make_archive(str(tmp_path / "toys4k"), "zip", tmp_path, "toys4k_blend_files")
    found = []
    for path in (tmp_path / "toys4k_blend_files", archive):
        source = {"kind": "folder", "path": path}
        settings = Settings(store=tmp_path / "store", collection=f"c{len(found)}", source=source, catalog={"shards": 1})
        catalog.run(settings)
        store = open_store(settings)
        held = store.manifest("catalog", "0")
        found.append({key: (row["identifier"], row["sha256"]) for key, row in store.read(held).items()})
    assert found[0] == found[1] and len(found[0]) == 2
