"""Views and renders by protocol, through the real stages: rows, cameras, gates, and only what changed."""

import json
import shutil

import numpy as np
import pytest
from folders import counters, run_line, small, write_box
from test_line import object_id, rows

from gap3d.cameras import Camera
from gap3d.depth import decode_depth
from gap3d.features.images import decode_png
from gap3d.records import Status
from pipelines import catalog, downloads, rendering
from pipelines.command import open_store
from pipelines.export import export

FOUR = {"protocol": "fixed"}
CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])


def images(settings):
    """(rendered rows by key, what the run computed)."""
    shards = open_store(settings).shards
    catalog.run(settings)
    downloads.run(settings, shards)
    report = rendering.run(settings, shards)
    store = open_store(settings)
    found = {}
    for shard in shards:
        found |= store.read(store.manifest("renders", shard))
    return found, counters(report)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Three boxes and a broken file, four views each, with depth."""
    root = tmp_path_factory.mktemp("four")
    for index, name in enumerate(("a", "b", "c")):
        write_box(root / "objects" / f"{name}.obj", 1.0 + index)
    (root / "objects" / "broken.glb").write_bytes(b"not a model")
    settings = small(root / "store", root / "objects", views=FOUR, renders={"depth": True})
    return root, settings, images(settings)


@pytest.fixture
def copy(four, tmp_path):
    """A copy of it, and its settings with changes."""
    shutil.copytree(four[0], tmp_path / "copy")
    root = tmp_path / "copy"

    def changed(**values):
        values = {"views": FOUR, "renders": {"depth": True}, **values}
        return small(root / "store", root / "objects", **values)

    return changed


def test_every_view_of_every_object_has_one_row(four):
    _, settings, (found, computed) = four
    assert computed == {"views": 4, "renders": 12}
    held = rows(settings, "renders")
    assert set(held) == {
        f"{object_id(path)}/{number:03d}" for path in ("a.obj", "b.obj", "c.obj", "broken.glb") for number in range(4)
    }
    broken = [held[f"{object_id('broken.glb')}/{number:03d}"] for number in range(4)]
    assert {(row.status, row.origin) for row in broken} == {(Status.IMPORT_ERROR, "views")}
    assert sorted(row["yaw"] for row in found.values()) == sorted([0.0, 90.0, 180.0, 270.0] * 3)


def test_an_object_is_imported_once_for_its_views_and_all_its_images(four):
    held = {**rows(four[1], "views"), **rows(four[1], "renders")}
    for path in ("a.obj", "b.obj", "c.obj"):
        key = object_id(path)
        imports = [name for name, row in held.items() if name.startswith(key) and "import" in row.costs]
        assert imports == [key]


def test_all_that_opened_a_file_was_confined_and_says_where_it_ran(four):
    for stage in ("views", "renders"):
        for row in rows(four[1], stage).values():
            if not row.origin:
                assert row.sandboxed is True
                assert row.device == "CPU"
    assert {row.sandboxed for row in rows(four[1], "downloads").values()} == {None}


def test_depth_and_camera_give_the_surface_back(four):
    found = four[2][0]
    for path, height in (("a.obj", 1.0), ("b.obj", 2.0), ("c.obj", 3.0)):
        half = np.array([1.0, height, 1.0]) / 2 / max(1.0, height)  # OBJ is Y up: the file's Z is Blender's -Y
        for number in range(4):
            row = found[f"{object_id(path)}/{number:03d}"]
            depth = decode_depth(row["depth"], row["depth_min"], row["depth_max"])
            alpha = decode_png(row["png"], 10**6)[..., 3]
            assert np.isinf(depth[alpha == 0]).all() and np.isfinite(depth[alpha == 255]).all()
            # A pixel and its planar depth are a point on one of the box's faces.
            y, x = np.nonzero(alpha == 255)
            z = depth[y, x].astype(np.float64)
            across = np.tan(row["camera_angle_x"] / 2) * z
            side = len(depth) / 2
            local = np.stack([((x + 0.5) / side - 1) * across, (1 - (y + 0.5) / side) * across, -z, np.ones_like(z)])
            points = (np.array(row["transform_matrix"]).reshape(4, 4) @ local)[:3].T
            assert (np.abs(points) < half + 0.03).all()
            assert (np.abs(np.abs(points) - half).min(axis=1) < 0.03).mean() > 0.98


def test_transforms_json_holds_the_cameras_that_took_the_pictures(four, tmp_path):
    _, settings, (found, _) = four
    assert export(open_store(settings), tmp_path) == (3, 12)
    for path in ("a.obj", "b.obj", "c.obj"):
        folder = tmp_path / object_id(path)
        content = json.loads((folder / "transforms.json").read_text())
        assert content["aabb"] == [[-0.5] * 3, [0.5] * 3]
        assert [frame["file_path"] for frame in content["frames"]] == ["000.png", "001.png", "002.png", "003.png"]
        for number, frame in enumerate(content["frames"]):
            row = found[f"{object_id(path)}/{number:03d}"]
            assert (folder / frame["file_path"]).read_bytes() == row["png"]
            assert (folder / frame["depth_path"]).read_bytes() == row["depth"]
            camera = Camera(90.0 * number, 30.0, 2.0, 40.0)
            np.testing.assert_allclose(frame["transform_matrix"], camera.camera_to_world, atol=1e-12)
            assert frame["camera_angle_x"] == pytest.approx(np.radians(40.0))
            assert frame["depth"] == {"min": pytest.approx(2 - 3**0.5 / 2), "max": pytest.approx(2 + 3**0.5 / 2)}
        # The normalisation takes the box of the file to the unit cube: longest side 1, centre at the origin.
        height = {"a.obj": 1.0, "b.obj": 2.0, "c.obj": 3.0}[path]
        assert content["scale"] == pytest.approx(1 / max(1.0, height))


def test_another_set_of_yaws_renders_only_the_cameras_that_are_new(copy):
    before = rows(copy(), "renders")
    settings = copy(views={"protocol": "fixed", "yaws": (0.0, 90.0, 45.0)})
    found, computed = images(settings)
    assert computed == {"views": 4, "renders": 3}  # the third camera of three objects
    now = rows(settings, "renders")
    assert len(now) == 12  # three views of four objects, the fourth views are gone
    for key, row in now.items():
        if row.status is Status.OK:
            same = (row.digest, row.finished_at) == (before[key].digest, before[key].finished_at)
            assert same == (not key.endswith("/002"))
    assert sorted({row["yaw"] for row in found.values()}) == [0.0, 45.0, 90.0]


def test_a_changed_threshold_passes_the_pictures_anew_without_rendering_them(copy):
    before = rows(copy(), "renders")
    settings = copy(quality={"covered": (0.9, 1.0)})
    found, computed = images(settings)
    assert computed == {"views": 0, "renders": 12}
    for key, row in found.items():
        assert "coverage" in row["flags"]
        ledger = rows(settings, "renders")[key]
        assert "render" in before[key].costs and ledger.costs == {}
        assert (ledger.device, ledger.sandboxed) == ("CPU", True)
    assert images(settings)[1] == {"views": 0, "renders": 0}


def test_a_gate_that_drops_makes_a_rejected_row_that_later_stages_pass_on(copy):
    settings = copy(quality={"covered": (0.9, 1.0), "coverage": "drop"})
    report = run_line(settings)
    assert report.by_status("renders") == {"import_error": 4, "rejected": 12}
    assert report.by_status("targets") == {"import_error": 4, "rejected": 12}
    row = rows(settings, "renders")[f"{object_id('a.obj')}/001"]
    assert row.reason.startswith("quality gates: ") and "coverage" in row.reason
    assert set(counters(run_line(settings)).values()) == {0}


def test_a_gate_that_retries_gives_a_second_try_in_a_fresh_blender_and_then_rejects(copy):
    settings = copy(quality={"covered": (0.9, 1.0), "coverage": "retry"})
    found, _ = images(settings)
    assert found == {}
    held = rows(settings, "renders")
    assert {row.status for key, row in held.items() if not row.origin} == {Status.REJECTED}
    assert {row.attempts for key, row in held.items() if not row.origin} == {settings.limits.attempts}


TWICE = {"protocol": "fixed", "yaws": (0.0, 0.0, 90.0, 90.0)}


@pytest.mark.parametrize(("action", "expected"), [("flag", "ok"), ("drop", "rejected"), ("retry", "rejected")])
def test_the_same_picture_twice_is_seen_whatever_is_done_about_it(tmp_path, action, expected):
    write_box(tmp_path / "objects" / "a.obj", 1.0)
    settings = small(tmp_path / "store", tmp_path / "objects", views=TWICE, quality={"duplicate_view": action})
    found, _ = images(settings)
    held = rows(settings, "renders")
    assert [row.status.value for _, row in sorted(held.items())] == ["ok", expected, "ok", expected]
    flagged = {key[-3:] for key, row in found.items() if "duplicate_view" in row["flags"]}
    assert flagged == ({"001", "003"} if action == "flag" else set())


def test_flags_do_not_depend_on_what_was_rendered_before(tmp_path):
    write_box(tmp_path / "objects" / "a.obj", 1.0)
    before = small(tmp_path / "grown", tmp_path / "objects", views={"protocol": "fixed", "yaws": (0.0, 90.0)})
    images(before)
    after = {"protocol": "fixed", "yaws": (90.0, 90.0)}
    grown, computed = images(small(tmp_path / "grown", tmp_path / "objects", views=after))
    fresh, _ = images(small(tmp_path / "fresh", tmp_path / "objects", views=after))
    assert computed == {"views": 1, "renders": 2}  # one is rendered, the other is compared anew
    assert grown == fresh
    second = rows(small(tmp_path / "grown", tmp_path / "objects", views=after), "renders")
    assert [sorted(row.costs) == [] for _, row in sorted(second.items())] == [False, True]


@pytest.mark.parametrize(("protocol", "count"), [("sphere", 5), ("condition", 4)])
def test_drawn_protocols_render_the_cameras_that_they_name(tmp_path, protocol, count):
    write_box(tmp_path / "objects" / "a.obj", 1.0)
    settings = small(tmp_path / "store", tmp_path / "objects", views={"protocol": protocol, "count": count})
    found, computed = images(settings)
    assert computed == {"views": 1, "renders": count}
    assert len({row["picture"] for row in found.values()}) == count
    for row in found.values():
        # The silhouette of a cube is the hull of its projected corners: its bounding box, to the pixel.
        alpha = decode_png(row["png"], 10**6)[..., 3] > 0
        camera = Camera(row["yaw"], row["pitch"], row["radius"], np.degrees(row["camera_angle_x"]))
        xy, _ = camera.project(CORNERS, len(alpha))
        low, high = np.clip(xy.min(axis=0), 0, len(alpha)), np.clip(xy.max(axis=0), 0, len(alpha))
        y, x = np.nonzero(alpha)
        np.testing.assert_allclose([x.min(), y.min()], low, atol=1.5)
        np.testing.assert_allclose([x.max() + 1, y.max() + 1], high, atol=1.5)


def test_an_export_leaves_nothing_of_an_earlier_one(four, tmp_path):
    _, settings, _ = four
    export(open_store(settings), tmp_path / "out")
    folder = tmp_path / "out" / object_id("a.obj")
    (folder / "007.png").write_bytes(b"of eight views")
    (folder / "notes.txt").write_text("the user's")
    export(open_store(settings), tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{n:03d}{end}" for n in range(4) for end in (".png", "_depth.png")), "notes.txt", "transforms.json"]
    )
