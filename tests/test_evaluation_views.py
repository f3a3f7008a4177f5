"""Views all around: the same cameras in every protocol, told by their poses in renders and in strangers' folders."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from balls import balls, commit, row_of, views_of, whole
from PIL import Image

from gap3d.cameras import Camera
from gap3d.evaluation.picture_folders import objects_in, views_in
from gap3d.evaluation.pictured import contents
from gap3d.evaluation.views import AROUND, number_of, numbers_of
from gap3d.exports import folders
from gap3d.metrics.pointclouds import view_of
from gap3d.protocols import cameras
from gap3d.records import Status
from gap3d.settings import Limits
from gap3d.store import Store
from gap3d.trellis.turntable import PROTOCOLS
from pipelines import around
from pipelines.command import load_settings

PRESETS = {4: "four_views", 8: "eight_views", 20: "twenty_views", 24: "around"}


@pytest.mark.parametrize("count", PRESETS)
def test_the_protocols_of_renders_and_of_generated_objects_are_the_same_cameras(count):
    found = [AROUND[number] for number in numbers_of(count)]
    assert found == cameras(load_settings(f"paper,{PRESETS[count]}").views, "object")
    assert count == len(AROUND) or found == PROTOCOLS[count].cameras
    assert [number_of(camera.camera_to_world, camera.fov_radians) for camera in found] == list(numbers_of(count))


def test_the_derived_collection_is_rendered_as_the_preset_says():
    made, preset = around.settings_of(load_settings("paper")), load_settings("paper,around")
    assert made.views.model_dump(exclude={"points"}) == preset.views.model_dump(exclude={"points"})
    assert made.renders == preset.renders and made.collection == "objaverse-around"
    fewer = load_settings("paper", evaluation={"views": [4, 8], "resolution": 96, "samples": 4})
    assert around.settings_of(fewer).views.images == 8
    assert around.settings_of(fewer).renders == fewer.renders.model_copy(update={"resolution": 96, "samples": 4})


def test_a_camera_is_known_by_its_pose_and_lens_and_no_other_one_is():
    camera, rng = AROUND[7], np.random.default_rng(0)
    rounded = camera.camera_to_world + rng.uniform(-1e-4, 1e-4, (4, 4))
    assert number_of(rounded.ravel().tolist(), camera.fov_radians) == 7
    others = [Camera(camera.yaw + 2, 30, 2, 40), Camera(camera.yaw, 31, 2, 40), Camera(camera.yaw, 30, 2.1, 40)]
    assert [number_of(other.camera_to_world, other.fov_radians) for other in others] == [None] * 3
    assert number_of(camera.camera_to_world, Camera(0, 0, 2, 41).fov_radians) is None


def test_views_are_found_whatever_their_numbers(tmp_path):
    rows = balls(["a", "b"], AROUND[::-1])
    for count in PROTOCOLS:
        found = views_of(commit(tmp_path, rows), count)
        for name in ("a", "b"):
            assert [rows[view.key]["yaw"] for view in whole(found[name])] == [360 / count * n for n in range(count)]


def test_a_failed_render_is_the_view_that_it_would_have_been(tmp_path):
    rows = balls(["a", "b"])
    rows["a/006"] = None
    found = views_of(commit(tmp_path, rows), 4)
    assert whole(found["b"]) == found["b"]
    lost = found["a"][1]
    assert (lost.key, lost.status, lost.origin, lost.camera.yaw) == ("a/006", Status.IMPORT_ERROR, "renders", 90.0)
    assert whole([view for view in found["a"] if view is not lost])


def test_a_collection_without_the_cameras_says_so_and_one_without_fixed_ones_too(tmp_path):
    four = commit(tmp_path, balls(["a"], [AROUND[number] for number in numbers_of(4)]))
    assert len(views_of(four, 4)["a"]) == 4
    with pytest.raises(ValueError, match=r"4 of the 8 views .* no camera at yaw 45, 135, 225, 315 .*pipelines\.around"):
        views_of(four, 8)
    rows = {"a/000": row_of("a", 0, AROUND[0]), "b/000": row_of("b", 0, AROUND[6])}
    with pytest.raises(ValueError, match="not rendered from fixed cameras"):
        views_of(commit(tmp_path, rows, "occluded"), 4)
    with pytest.raises(ValueError, match="no good render"):
        views_of(Store(tmp_path, "nothing", 1), 4)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """One object's folder as an export lays it out, and its rows."""
    place = tmp_path_factory.mktemp("pictures") / "a"
    rows = [row_of("a", view, camera) for view, camera in enumerate(AROUND)]
    folders.write(place, rows, object_id="a")
    return place, rows


@pytest.fixture
def exported(export, tmp_path):
    """A copy of it."""
    return shutil.copytree(export[0], tmp_path / "pictures" / "a"), export[1]


def renamed(place):
    """A folder without cameras, its pictures of the 24 views named by a stranger."""
    (place / "transforms.json").unlink()
    for number in range(24):
        (place / f"{number:03d}.png").rename(place / f"view{number}.png")
        (place / f"{number:03d}_depth.png").rename(place / f"view{number}_depth.png")


@pytest.mark.parametrize("count", PROTOCOLS)
def test_a_folder_gives_what_its_rows_hold_with_and_without_its_cameras(exported, count):
    place, rows = exported
    for _ in range(2):
        views = whole(views_in(place, "a", count))
        assert [view.key for view in views] == [f"a/{number:03d}" for number in numbers_of(count)]
        for view, content in zip(views, contents(views, Limits(), depth=True), strict=True):
            row = rows[view.number]
            assert content["png"] == row["png"] and content["depth"] == row["depth"]
            assert content["transform_matrix"] == pytest.approx(row["transform_matrix"], abs=1e-12)
            assert np.array_equal(view_of(content).depth, view_of(row).depth)
        if (place / "transforms.json").exists():
            renamed(place)


def test_trellis_and_nerf_write_cameras_their_own_way(exported):
    place, rows = exported
    content = json.loads((place / "transforms.json").read_text())
    for frame in content["frames"]:
        for name in ("yaw", "pitch", "radius", "depth_path", "camera_angle_x"):
            del frame[name]
        frame["file_path"] = f"./{frame['file_path'].removesuffix('.png')}"
    (place / "transforms.json").write_text(json.dumps({**content, "camera_angle_x": rows[0]["camera_angle_x"]}))
    views = whole(views_in(place, "a", 20))
    assert [content["depth"] for content in contents(views, Limits(), depth=True)] == [
        rows[number]["depth"] for number in numbers_of(20)
    ]


def test_pictures_of_a_protocols_own_folder_come_first(exported):
    place, _ = exported
    (place / "views4").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(place / "views4" / f"{number}.jpg")
    assert {view.place.picture for view in views_in(place, "a", 4)} == {
        str(place / "views4" / f"{number}.jpg") for number in range(4)
    }
    assert [view.place.depth for view in views_in(place, "a", 4)] == [""] * 4
    (place / "views4" / "3.jpg").unlink()
    assert {view.status for view in views_in(place, "a", 4)} == {Status.MISSING}


def change(place, edit):
    path = place / "transforms.json"
    content = json.loads(path.read_text())
    edit(content["frames"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "statuses", "words"),
    [
        (lambda p: change(p, lambda f: f.pop(6)), ["ok", "missing", "ok", "ok"], "no picture from yaw 90"),
        (lambda p: (p / "006.png").unlink(), ["ok", "missing", "ok", "ok"], "006.png"),
        (lambda p: change(p, lambda f: f.append(f[6])), ["ok", "unsupported", "ok", "ok"], "006.png, 006.png"),
        (lambda p: (p / "transforms.json").write_text("{"), ["import_error"] * 4, "no JSON"),
        (lambda p: (p / "transforms.json").write_text('{"frames": 3}'), ["import_error"] * 4, "lists no frames"),
        (lambda p: change(p, lambda f: f[3].update(transform_matrix=[[1]])), ["import_error"] * 4, "camera of 1"),
        (lambda p: change(p, lambda f: f[3].update(file_path="../b.png")), ["forbidden_reference"] * 4, r"\.\./b"),
        (lambda p: change(p, lambda f: f[3].update(depth_path="/etc/x")), ["forbidden_reference"] * 4, "/etc/x"),
        (lambda p: (renamed(p), (p / "view7.png").unlink()), ["unsupported"] * 4, "23 pictures"),
        (lambda p: (renamed(p), Image.new("L", (1, 1)).save(p / "more.png")), ["unsupported"] * 4, "25 pictures"),
        (lambda p: [each.unlink() for each in p.iterdir()], ["missing"] * 4, "0 of 4 pictures"),
    ],
    ids=[
        "frame gone",
        "file gone",
        "twice",
        "no JSON",
        "no list",
        "pose",
        "elsewhere",
        "depth elsewhere",
        "23",
        "25",
        "0",
    ],
)
def test_missing_surplus_and_damaged_views_are_told_and_never_fewer(exported, spoil, statuses, words):
    place, _ = exported
    spoil(place)
    views = views_in(place, "a", 4)
    assert [view.status for view in views] == statuses
    first = next(view for view in views if view.status is not Status.OK)
    assert re.search(words, f"{first.key}: {first.reason}")


def test_names_of_any_characters_are_pictures_in_the_order_of_their_numbers(tmp_path):
    names = ["²10.png", "²9.png", "½.png", "٣.png"]  # digits to Unicode, and numbers to nobody; and an Arabic 3
    for name in names:
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    views = whole(views_in(tmp_path, "a", 4))
    assert [Path(view.place.picture).name for view in views] == ["٣.png", "²9.png", "²10.png", "½.png"]


def test_half_a_character_in_an_object_s_name_can_be_written_down(exported):
    place, _ = exported
    (place / "object.json").write_text('{"key": "chair \\ud800"}')
    (key,) = objects_in(place.parent)
    assert key == "chair \\ud800" and all(view.key.encode() for view in whole(views_in(place, key, 4)))


def test_objects_are_folders_and_trellis_names_theirs(exported):
    place, _ = exported
    (place.parent / "digest").mkdir()
    (place.parent / "digest" / "object.json").write_text('{"key": "b/000"}')
    assert objects_in(place.parent) == {"a": place, "b/000": place.parent / "digest"}
    (place.parent / "b").mkdir()
    (place.parent / "b" / "object.json").write_text('{"key": "a"}')
    with pytest.raises(ValueError, match="both of the object a"):
        objects_in(place.parent)
    with pytest.raises(ValueError, match="no folder of an object"):
        objects_in(place)
