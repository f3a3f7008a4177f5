"""Which files an object refers to, against the table of the real data and against files made here."""

import csv
import json
from pathlib import Path

import pytest
from shared_data import DATA, needs_data

from gap3d.records import Failure, Status
from gap3d.references import closure


def rows(name):
    with (DATA / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@needs_data
def test_companions_of_all_real_objects_are_found_and_no_others():
    wrong = {}
    for row in rows("objects"):
        path = row["path"].removeprefix("objects/")
        listed = {name.removeprefix("objects/") for name in json.loads(row["companion_files"] or "[]")}
        found = closure(DATA / "objects", path)
        if set(found.files[1:]) != listed or found.files[0] != path:
            wrong[path] = (found.files, listed)
    assert not wrong


@needs_data
def test_missing_companions_are_named():
    for row in rows("objects"):
        absent = json.loads(row["missing_companions"] or "[]")
        if absent:
            found = closure(DATA / "objects", row["path"].removeprefix("objects/"))
            assert {Path(name).name for name in absent} <= {Path(name).name for name in found.missing}


@needs_data
@pytest.mark.parametrize(
    "path",
    ["absolute_and_http_uri.gltf", "mtl_path_traversal.obj", "path_traversal.gltf", "usda_path_traversal.usda"],
)
def test_references_out_of_the_folder_are_refused(path):
    with pytest.raises(Failure) as caught:
        closure(DATA / "bad", f"made/{path}")
    assert caught.value.status is Status.FORBIDDEN_REFERENCE


@pytest.mark.parametrize(
    "uri", ["../a.bin", "/etc/passwd", "http://127.0.0.1/a.bin", "file:///etc/passwd", "x/../../a.bin", "%2e%2e/a.bin"]
)
def test_a_gltf_reaches_nothing_outside_its_folder(tmp_path, uri):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "in" / "m.gltf").write_text(json.dumps({"buffers": [{"uri": uri}]}))
    with pytest.raises(Failure) as caught:
        closure(tmp_path / "in", "m.gltf")
    assert caught.value.status is Status.FORBIDDEN_REFERENCE


def test_a_link_that_leads_outside_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.mtl").write_text("newmtl a")
    (tmp_path / "in" / "a.mtl").symlink_to(tmp_path / "secret.mtl")
    (tmp_path / "in" / "m.obj").write_text("mtllib a.mtl\n")
    with pytest.raises(Failure) as caught:
        closure(tmp_path / "in", "m.obj")
    assert caught.value.status is Status.FORBIDDEN_REFERENCE


def test_circular_references_end(tmp_path):
    (tmp_path / "a.usda").write_text("#usda 1.0\n(subLayers = [@b.usda@])")
    (tmp_path / "b.usda").write_text("#usda 1.0\n(subLayers = [@a.usda@])")
    assert closure(tmp_path, "a.usda").files == ("a.usda", "b.usda")


def test_options_and_spaces_in_material_lines_are_understood(tmp_path):
    (tmp_path / "my wood.png").write_bytes(b"p")
    (tmp_path / "bump.png").write_bytes(b"p")
    (tmp_path / "all mats.mtl").write_text(
        "newmtl a\nmap_Kd -s 1 1 1 -o 0 0 0 my wood.png\nbump -bm 0.5 bump.png\nmap_Ks gone.png\n"
    )
    (tmp_path / "m.obj").write_text("mtllib all mats.mtl\n")
    found = closure(tmp_path, "m.obj")
    assert set(found.files) == {"m.obj", "all mats.mtl", "my wood.png", "bump.png"}
    assert found.missing == ("gone.png",)


def test_a_circle_of_links_and_half_a_character_cost_their_own_row(tmp_path):
    (tmp_path / "loop.mtl").symlink_to("loop.mtl")
    (tmp_path / "a.gltf").write_text(r'{"images": [{"uri": "\ud800.png"}]}')
    assert closure(tmp_path, "a.gltf").missing == ("?.png",)
    with pytest.raises(Failure) as caught:
        closure(tmp_path, "loop.mtl")
    assert caught.value.status is Status.MISSING


def test_a_long_run_of_empty_lines_is_read_in_linear_time(tmp_path):
    (tmp_path / "a.obj").write_bytes(b"\n" * 3_000_000)  # a quadratic search would take days
    assert closure(tmp_path, "a.obj").files == ("a.obj",)


def test_a_companion_that_appears_later_is_looked_for_where_it_would_be(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.obj").write_text("mtllib later.mtl\n")
    (tmp_path / "sub" / "n.mtl").write_text("map_Kd /home/artist/wood.png\n")
    assert closure(tmp_path, "sub/m.obj").watched == ("sub/later.mtl",)
    assert closure(tmp_path, "sub/n.mtl").watched == ("sub/wood.png",)


def test_a_missing_file_hides_no_other_of_the_same_name(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "tex.png").write_bytes(b"p")
    (tmp_path / "sub" / "m.mtl").write_text("map_Kd tex.png\nmap_Ks ../tex.png\n")
    found = closure(tmp_path, "sub/m.mtl")
    assert found.files == ("sub/m.mtl", "tex.png")
    assert found.missing == ("tex.png",)


@pytest.mark.parametrize("main", ["l/../../a.obj", "d/../a.obj", "./a.obj", "d//e.obj", "/a.obj", "a.obj/", "a.obj\0"])
def test_a_main_file_is_named_by_its_plain_path(tmp_path, main):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "l").symlink_to("d/e")
    for name in ("a.obj", "d/e.obj"):
        (tmp_path / name).write_bytes(b"v 0 0 0\n")
    with pytest.raises(Failure) as caught:
        closure(tmp_path, main)
    assert caught.value.status is Status.FORBIDDEN_REFERENCE
