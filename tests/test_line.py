"""The whole line on a small folder: one row each, nothing twice, and only what changed."""

import shutil

import pytest
from folders import counters, digests, run_line, small, write_box, write_objects

from gap3d.catalog import object_id_of
from gap3d.records import Status, SystemicFault
from pipelines import downloads, rendering
from pipelines.command import open_store

NOTHING = {"catalog": 0, "downloads": 0, "views": 0, "renders": 0, "targets": 0, "dataset": 0}


@pytest.fixture
def line(walked, tmp_path):
    """A copy of the finished line to change; times of files are kept."""
    shutil.copytree(walked[0], tmp_path / "line")
    return tmp_path / "line", small(tmp_path / "line" / "store", tmp_path / "line" / "objects")


def rows(settings, stage):
    store = open_store(settings)
    shards = ["all"] if stage == "dataset" else store.shards
    return {key: row for shard in shards for key, row in store.manifest(stage, shard).rows.items()}


def object_id(path):
    return object_id_of("folder", path)


def test_every_file_has_one_row_at_every_stage_with_a_true_status(walked):
    report = walked[1]
    for stage in NOTHING:
        assert report.count("expected", stage) == report.count("found", stage) == 5
    assert report.by_status("catalog") == report.by_status("downloads") == {"ok": 5}
    for stage in ("views", "renders", "targets", "dataset"):
        assert report.by_status(stage) == {"import_error": 1, "ok": 4}


def test_a_failure_keeps_its_reason_and_its_origin_down_the_line(line):
    broken = object_id("broken.glb")
    first = rows(line[1], "views")[broken]
    assert first.status is Status.IMPORT_ERROR
    assert first.origin == ""
    assert "glTF" in first.reason
    for stage in ("renders", "targets", "dataset"):
        row = rows(line[1], stage)[f"{broken}/000"]
        assert (row.status, row.origin, row.reason) == (Status.IMPORT_ERROR, "views", first.reason)


def test_a_second_run_computes_nothing_and_writes_nothing(line):
    root, settings = line
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    report = run_line(settings)
    assert counters(report) == NOTHING
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")} == before


def test_one_object_added_recomputes_that_object_only(line):
    root, settings = line
    write_box(root / "objects" / "new.obj", 5.0)
    before = {stage: rows(settings, stage) for stage in NOTHING}
    assert counters(run_line(settings)) == dict.fromkeys(NOTHING, 1)
    for stage, known in before.items():
        now = rows(settings, stage)
        assert {key: now[key].digest for key in known} == {key: row.digest for key, row in known.items()}


def test_one_object_removed_leaves_no_row(line):
    root, settings = line
    (root / "objects" / "a.obj").unlink()
    report = run_line(settings)
    assert counters(report) == NOTHING
    assert all(object_id("a.obj") not in key for stage in NOTHING for key in rows(settings, stage))


def test_an_edited_material_recomputes_its_object(line):
    root, settings = line
    (root / "objects" / "paint.mtl").write_text("newmtl paint\nKd 0.1 0.2 0.9\n")
    old = rows(settings, "renders")[f"{object_id('painted.obj')}/000"].digest
    report = run_line(settings)
    assert counters(report) == dict.fromkeys(NOTHING, 1)
    assert rows(settings, "renders")[f"{object_id('painted.obj')}/000"].digest != old


def test_a_touched_file_is_read_again_and_stops_the_wave_there(line):
    root, settings = line
    (root / "objects" / "a.obj").touch()
    report = run_line(settings)
    assert counters(report) == {**NOTHING, "catalog": 1}
    assert counters(run_line(settings)) == NOTHING


def test_an_edited_caption_rewrites_no_tokens(line):
    root, settings = line
    (root / "objects" / "captions.csv").write_text("path,captions\na.obj,a very plain grey cube\nb.obj,a tall box\n")
    assert counters(run_line(settings)) == {**NOTHING, "catalog": 1, "dataset": 1}
    store = open_store(settings)
    entry = store.read(store.manifest("dataset", "all"))[f"{object_id('a.obj')}/000"]
    assert entry["captions"] == ["a very plain grey cube"]


def test_a_moved_store_changes_no_digest_and_computes_nothing(line, tmp_path):
    root, settings = line
    before = digests(settings)
    shutil.move(root / "store", tmp_path / "elsewhere")
    moved = small(tmp_path / "elsewhere", root / "objects")
    assert counters(run_line(moved)) == NOTHING
    assert digests(moved) == before


def test_a_fresh_store_gives_equal_digests(walked, tmp_path):
    root = walked[0]
    again = small(tmp_path / "store", root / "objects")
    run_line(again)
    assert digests(again) == digests(small(root / "store", root / "objects"))


def test_changed_render_settings_keep_the_views(line):
    root, _ = line
    settings = small(root / "store", root / "objects", renders={"resolution": 48})
    report = run_line(settings)
    assert counters(report) == {**NOTHING, "renders": 4, "targets": 4, "dataset": 4}


def test_new_scores_of_an_unchanged_camera_render_nothing(line):
    root, _ = line
    table = root / "overrides.csv"
    table.write_text(
        "path,yaw\n" + "".join(f"{name},90\n" for name in ("a.obj", "b.obj", "deep/er/c.obj", "painted.obj"))
    )
    pinned = {"source": {"overrides": table}}
    run_line(small(root / "store", root / "objects", **pinned))
    changed = small(root / "store", root / "objects", **pinned, views={"points": 400})
    assert counters(run_line(changed)) == {**NOTHING, "views": 5}


def test_a_raised_time_limit_retries_timeouts_and_nothing_else(tmp_path):
    write_box(tmp_path / "objects" / "a.obj")
    (tmp_path / "objects" / "broken.glb").write_bytes(b"not a model")
    # Far too short for any import: every object of Blender's times out, and the broken file too.
    short = small(tmp_path / "store", tmp_path / "objects", limits={"timeout_s": 0.001})
    report = run_line(short)
    assert report.by_status("views") == {"timeout": 2}
    assert counters(run_line(short)) == NOTHING
    more_memory = small(
        tmp_path / "store", tmp_path / "objects", limits={"timeout_s": 0.001, "memory_bytes": 9 * 1024**3}
    )
    assert counters(run_line(more_memory)) == NOTHING
    longer = small(tmp_path / "store", tmp_path / "objects")
    report = run_line(longer)
    assert report.count("computed", "views") == 2
    assert report.by_status("views") == {"import_error": 1, "ok": 1}
    assert counters(run_line(small(tmp_path / "store", tmp_path / "objects", limits={"timeout_s": 90.0}))) == NOTHING


def test_overrides_exclude_pin_turn_and_caption(line):
    root, _ = line
    table = root / "overrides.csv"
    table.write_text(
        "path,exclude,yaw,up_axis,captions\na.obj,true,,,\nb.obj,,180,,\ndeep/er/c.obj,,,x,\n"
        'painted.obj,,,,"[""red box""]"\n'
    )
    standing = render_of(line[1], "deep/er/c.obj")
    settings = small(root / "store", root / "objects", source={"overrides": table})
    report = run_line(settings)
    assert report.by_status("catalog") == {"excluded": 1, "ok": 4}
    assert rows(settings, "dataset")[f"{object_id('a.obj')}/000"].status is Status.EXCLUDED
    store = open_store(settings)
    views = {key: row for shard in store.shards for key, row in store.read(store.manifest("views", shard)).items()}
    pinned = views[object_id("b.obj")]
    assert [camera["yaw"] for camera in pinned["cameras"]] == [180.0]
    assert (pinned["pinned"], pinned["chosen"]) == (True, 2)
    assert len(pinned["counts"]) == 4
    index = store.read(store.manifest("dataset", "all"))
    assert index[f"{object_id('painted.obj')}/000"]["captions"] == ["red box"]
    # The box of height 3 lies down: its longest side no longer stands upright.
    assert render_of(settings, "deep/er/c.obj") != standing


def store_shard(store, path):
    return next(shard for shard in store.shards if object_id(path) in store.manifest("catalog", shard).rows)


def render_of(settings, path):
    store = open_store(settings)
    return store.read(store.manifest("renders", store_shard(store, path)))[f"{object_id(path)}/000"]["png"]


def test_views_and_renders_can_be_made_one_after_the_other_with_equal_digests(line, tmp_path):
    root, settings = line
    alone = small(tmp_path / "alone", root / "objects")
    shards = open_store(alone).shards
    from pipelines import catalog

    catalog.run(alone)
    downloads.run(alone, shards)
    rendering.run(alone, shards, ("views",))
    report = rendering.run(alone, shards, ("renders",))
    assert counters(report) == {"renders": 4}
    both, single = digests(settings), digests(alone)
    assert all(single[place] == both[place] for place in single)


def test_the_dataset_takes_the_first_good_rows_by_rank(line):
    root, _ = line
    settings = small(root / "store", root / "objects", dataset={"count": 2})
    report = run_line(settings)
    assert report.by_status("dataset") == {"import_error": 1, "not_admitted": 2, "ok": 2}
    store = open_store(settings)
    ranks = {
        key: row["rank"] for shard in store.shards for key, row in store.read(store.manifest("catalog", shard)).items()
    }
    taken = {row["object_id"] for row in store.read(store.manifest("dataset", "all")).values()}
    good = [key for key in ranks if key != object_id("broken.glb")]
    assert taken == set(sorted(good, key=ranks.__getitem__)[:2])


def test_a_stage_says_what_to_run_first(tmp_path):
    from pipelines.job import NotReady

    write_objects(tmp_path / "objects")
    settings = small(tmp_path / "store", tmp_path / "objects")
    with pytest.raises(NotReady, match=r"python -m pipelines\.catalog"):
        downloads.run(settings, ["0"])


def test_another_number_of_shards_is_refused(line):
    root, _ = line
    with pytest.raises(ValueError, match="has 2 shards"):
        open_store(small(root / "store", root / "objects", catalog={"shards": 4}))


def test_a_lost_part_is_made_again_with_its_rows_and_nothing_else(line):
    _, settings = line
    before = digests(settings)
    store = open_store(settings)
    for stage in ("views", "targets"):
        shard = store_shard(store, "a.obj")
        held = store.manifest(stage, shard)
        gone = next(row.part for row in held.rows.values() if row.part)
        lost = sum(row.part == gone for row in held.rows.values())
        (store.shard(stage, shard) / gone).unlink()
        assert counters(run_line(settings)) == {**NOTHING, stage: lost}
        assert digests(settings) == before


def test_a_lost_source_file_is_fetched_again(line):
    root, settings = line
    blob = next(path for path in (root / "store" / "blobs").glob("??/*"))
    blob.unlink()
    report = run_line(settings)
    assert counters(report) == {**NOTHING, "downloads": 1}
    assert blob.exists()


def test_a_companion_added_later_recomputes_its_object(line):
    root, settings = line
    write_box(root / "objects" / "late" / "late.obj", 2.0, material="late")
    library = root / "objects" / "late" / "late.mtl"
    content = library.read_text()
    library.unlink()
    run_line(settings)
    library.write_text(content)
    assert counters(run_line(settings)) == dict.fromkeys(NOTHING, 1)


def test_a_damaged_source_file_is_found_and_fetched_again(line):
    root, _ = line
    settings = small(root / "store", root / "objects", renders={"samples": 2})
    before = {path: path.read_bytes() for path in (root / "store" / "blobs").glob("??/*")}
    damaged = next(path for path, content in before.items() if b"o cube" in content)
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * len(before[damaged]))
    with pytest.raises(SystemicFault, match="run downloads again"):
        run_line(settings)
    assert run_line(settings).by_status("renders") == {"import_error": 1, "ok": 4}
    assert damaged.read_bytes() == before[damaged]


def test_what_a_source_could_not_give_is_asked_for_again(line):
    root, settings = line
    source = root / "objects" / "a.obj"
    content = source.read_text()
    write_box(source, 9.0)
    from pipelines import catalog

    catalog.run(settings)
    source.write_text(content)
    assert downloads.run(settings, open_store(settings).shards).by_status("downloads") == {"hash_mismatch": 1, "ok": 4}
    write_box(source, 9.0)
    assert downloads.run(settings, open_store(settings).shards).by_status("downloads") == {"ok": 5}
