"""A deny-list of images: what it names is gone from everything after the next run and gc."""

import json
import shutil

import pytest
from folders import counters
from pictures import of_images, pairs, picture, rows_of, run_images, write_tar

from gap3d.takedown import traces
from pipelines import gc, images
from pipelines.command import open_store

LICENSED = [
    ("sub/001.png", picture(1)),
    ("sub/001.json", json.dumps({"captions": ["a"], "licence": "CC BY 2"}).encode()),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two tars that went through the line once."""
    root = tmp_path_factory.mktemp("tars")
    write_tar(root / "tars" / "a.tar", [*pairs(10), *LICENSED])
    write_tar(root / "tars" / "c.tar", pairs(200))
    run_images(of_images(root / "store", root / "tars"))
    return root


@pytest.fixture
def place(finished, tmp_path):
    """A copy of it to change; times of files are kept."""
    shutil.copytree(finished, tmp_path / "place")
    return tmp_path / "place", of_images(tmp_path / "place" / "store", tmp_path / "place" / "tars")


def denying(root, tmp_path, *lines):
    path = tmp_path / "denied.csv"
    path.write_text("object,licence,reason\n" + "".join(f"{line}\n" for line in lines))
    return of_images(root / "store", root / "tars", catalog={"denied": path, "shards": 2})


@pytest.mark.parametrize("name", ["id", "identifier", "sha256", "licence"])
def test_a_denied_image_leaves_no_byte_after_the_next_run_and_gc(place, tmp_path, name):
    root, settings = place
    store = open_store(settings)
    row = rows_of(settings)["a.tar#sub/001"][2]
    key = row["object_id"]
    target = rows_of(settings, "targets")["a.tar#sub/001"][2]["patches"]
    names = {"id": key.upper(), "identifier": "a.tar#sub/001", "sha256": row["sha256"]}
    after = denying(root, tmp_path, f"{names.get(name, '')},{'' if name in names else 'cc by*'},by its author")
    with pytest.raises(ValueError, match="denied"):  # the line has not run yet
        images.run(after, store.shards)
        gc.erase(store, after)
    report = run_images(after)
    assert (report.count("computed", "targets"), report.by_status("images")["excluded"]) == (0, 1)
    for of in ("images", "targets", "dataset"):
        assert rows_of(after, of)[next(n for n in rows_of(after, of) if n.startswith("denied"))][0] == "excluded"
    told = gc.erase(store, after)
    assert told[0].startswith("takedown: 1 objects denied")
    assert any("yours to change" in line for line in told)
    content = b"".join(path.read_bytes() for path in store.folder.rglob("*.parquet"))
    assert target not in content
    assert traces(store, {key: ""}) == []
    assert gc.erase(store, after)[0] == "takedown: 1 objects denied; 0 parts and 0 files erased"
    assert counters(run_images(after)) == {"images": 0, "targets": 0, "dataset": 0}
    again = run_images(settings)  # taken off the list: it is read again, and no other tar
    assert counters(again) == {"images": 1, "targets": 1, "dataset": 1}
    assert rows_of(settings)["a.tar#sub/001"][2]["sha256"] == row["sha256"]


def test_an_image_that_left_its_source_before_it_was_denied_is_erased_too(place, tmp_path):
    root, settings = place
    key = rows_of(settings)["c.tar#0200"][2]["object_id"]
    (root / "tars" / "c.tar").unlink()
    after = denying(root, tmp_path, "c.tar#0200,,by its author")
    run_images(after)
    store = open_store(after)
    assert traces(store, {key: ""}) != []
    gc.erase(store, after)
    assert traces(store, {key: ""}) == []


def test_a_line_that_names_no_image_is_told(place, tmp_path, caplog):
    root, _ = place
    run_images(denying(root, tmp_path, "a.tar#0010,,gone", "a.tar#typo,,no such image"))
    assert "1 of 2 lines of the deny-list name no image that is listed, e.g. a.tar#typo" in caplog.text
