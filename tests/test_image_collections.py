"""Collections of images: tars and folders in the place of renders, one row for each sample, and only what changed."""

import json
import os
import shutil
import signal
import sys
import tarfile
from dataclasses import asdict

import numpy as np
import pytest
from folders import counters, digests
from killed import Point, Run
from pictures import of_images, pairs, picture, rows_of, run_images, write_tar
from PIL import Image

from gap3d import images
from gap3d.features.encoders import load_encoder
from gap3d.features.images import to_pixels
from gap3d.features.tokens import unpack
from gap3d.records import SystemicFault
from gap3d.store import ALL
from pipelines import gc, line, plan, previews, targets, verify, why
from pipelines import images as stage
from pipelines.command import open_store

NOTHING = {"images": 0, "targets": 0, "dataset": 0}
COCO_JSON = {"image_id": 7, "captions": ["a dog", "a big brown dog"], "licence": "CC BY 2.0"}
MIXED = [
    ("000.png", picture(0)),
    ("000.txt", b"  one text, with a comma  "),
    ("sub/001.PNG", picture(1)),
    ("sub/001.json", json.dumps(COCO_JSON).encode()),
    ("sub/001.txt", b"the drawn one"),
    ("002.png", picture(2)),
    ("002.json", json.dumps(["short", "a longer one", "short"]).encode()),
    ("003.png", picture(3)),
    ("003.json", b'{"caption": "of img2dataset", "url": "http://x", "captions": null}'),
    ("004.png", picture(4)),
    ("004.json", b"{not json"),
    ("004.txt", b"the text counts then"),
    ("005.png", picture(5)),  # without any caption
    ("006.txt", b"without an image"),
    ("007.png", b"no picture"),
    ("007.txt", b"can't be decoded"),
    ("008.png", picture(8)),
    ("008.json", json.dumps({"annotations": [{"caption": "of COCO", "id": 1}]}).encode()),
    ("000.png", picture(9)),  # a stem that comes again is another sample
    ("README", b"no sample"),
]
CAPTIONS = {
    "a.tar#000": ["one text, with a comma"],
    "a.tar#sub/001": ["a big brown dog", "a dog"],
    "a.tar#002": ["a longer one", "short"],
    "a.tar#003": ["of img2dataset"],
    "a.tar#004": ["the text counts then"],
    "a.tar#005": [],
    "a.tar#007": ["can't be decoded"],
    "a.tar#008": ["of COCO"],
    "a.tar#000.2": [],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three tars that went through the line once."""
    root = tmp_path_factory.mktemp("tars")
    write_tar(root / "tars" / "a.tar", MIXED)
    write_tar(root / "tars" / "deep" / "b.tar", pairs(100))
    write_tar(root / "tars" / "c.tar", pairs(200))
    return root, run_images(of_images(root / "store", root / "tars"))


@pytest.fixture
def place(finished, tmp_path):
    """A copy of it to change; times of files are kept."""
    shutil.copytree(finished[0], tmp_path / "place")
    return tmp_path / "place", of_images(tmp_path / "place" / "store", tmp_path / "place" / "tars")


def test_every_sample_has_one_row_at_every_stage_with_a_true_status(finished):
    root, report = finished
    for name in NOTHING:
        assert report.count("expected", name) == report.count("found", name) == 10 + 6
    assert report.by_status("images") == {"missing": 1, "ok": 15}
    assert report.by_status("targets") == report.by_status("dataset") == {"import_error": 1, "missing": 1, "ok": 14}
    rows = rows_of(of_images(root / "store", root / "tars"), "dataset")
    assert rows["a.tar#006"][:2] == ("missing", "a.tar#006: no image (jpg, png or webp), only txt")
    assert rows["a.tar#007"][0] == "import_error"


def test_captions_are_read_of_every_layout_and_go_into_the_index(finished):
    root, _ = finished
    settings = of_images(root / "store", root / "tars")
    found = {name: row["captions"] for name, (_, _, row) in rows_of(settings).items() if row}
    assert {name: captions for name, captions in found.items() if name.startswith("a.tar")} == CAPTIONS
    index = {name: row for name, (_, _, row) in rows_of(settings, "dataset").items() if row}
    assert {name: row["captions"] for name, row in index.items()} == {n: found[n] for n in index}
    assert index["a.tar#sub/001"]["licence"] == "CC BY 2.0"
    assert {row["split"] for row in index.values()} == {"train", "validation"}
    drawn = of_images(root / "other", root / "tars", images={"captions_from": ["txt", "json"]})
    stage.run(drawn, open_store(drawn).shards)
    assert rows_of(drawn)["a.tar#sub/001"][2]["captions"] == ["the drawn one"]


def test_a_row_says_where_its_image_lies_in_the_tar(finished):
    root, _ = finished
    rows = [row for _, _, row in rows_of(of_images(root / "store", root / "tars")).values() if row]
    assert {row["place"] for row in rows} == {"a.tar", "deep/b.tar", "c.tar"}
    for row in rows:
        with tarfile.open(root / "tars" / row["place"]) as tar:
            same = [m for m in tar.getmembers() if m.offset_data == row["offset"] and m.size == row["bytes"]]
            expected = tar.extractfile(same[0]).read()
        found = images.read_bytes(
            root / "tars", images.Place(*(row[n] for n in ("place", "offset", "bytes", "sha256")))
        )
        assert found == expected


def test_targets_are_the_encoders_tokens_of_the_bytes_in_the_tar(finished):
    root, _ = finished
    settings = of_images(root / "store", root / "tars")
    row = rows_of(settings, "targets")["deep/b.tar#0101"][2]
    encoder = load_encoder(settings.targets)
    tokens = encoder.encode(to_pixels(picture(101), settings.targets, 10**6)[None])
    cls, _, patches = encoder.layout.split(tokens)
    assert np.array_equal(np.float32(row["cls"]), cls[0].numpy())
    stored = unpack(row["patches"], tuple(patches.shape[1:]), "float16")
    assert (stored == patches[0].half()).all()


def test_a_second_run_reads_no_tar_and_computes_nothing(place, monkeypatch):
    root, settings = place
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    monkeypatch.setattr(images, "read_tar", None)
    assert counters(run_images(settings)) == NOTHING
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")} == before


def test_a_touched_tar_is_read_again_alone_and_stops_the_wave_there(place, monkeypatch):
    root, settings = place
    before, read = digests(settings), []
    original = images.read_tar
    monkeypatch.setattr(images, "read_tar", lambda *args: (read.append(args[1].place), original(*args))[1])
    os.utime(root / "tars" / "c.tar")
    assert counters(run_images(settings)) == {**NOTHING, "images": 3}
    assert read == ["c.tar"]
    assert digests(settings) == before


def test_an_edited_caption_makes_no_tokens_anew_and_a_changed_picture_its_own(place):
    root, settings = place
    members = [(name, b"new words" if name == "0100.txt" else content) for name, content in pairs(100)]
    write_tar(root / "tars" / "deep" / "b.tar", members)
    assert counters(run_images(settings)) == {"images": 3, "targets": 0, "dataset": 1}
    assert rows_of(settings, "dataset")["deep/b.tar#0100"][2]["captions"] == ["new words"]
    members = [(name, picture(777) if name == "0101.png" else content) for name, content in members]
    write_tar(root / "tars" / "deep" / "b.tar", [("first.txt", b"shifts all offsets"), *members])
    assert counters(run_images(settings)) == {"images": 4, "targets": 1, "dataset": 2}
    assert verified(settings) == []


def test_tars_that_come_and_go_take_their_rows_with_them(place):
    root, settings = place
    (root / "tars" / "a.tar").unlink()
    write_tar(root / "tars" / "d.tar", pairs(300, 2))
    report = run_images(settings)
    assert counters(report) == {"images": 2, "targets": 2, "dataset": 2}
    assert report.by_status("dataset") == {"ok": 8}
    assert not any(name.startswith("a.tar") for name in rows_of(settings))


def test_a_cut_tar_keeps_what_came_before_and_has_a_row_of_its_own(place):
    root, settings = place
    path = root / "tars" / "c.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        cut = tar.getmember("0201.txt").offset + 100  # in the header after the second picture
    for content, words in ((whole[:cut], "2 samples|1 samples"), (b"no tar at all" * 99, "no plain tar")):
        path.write_bytes(content)
        run_images(settings)
        status, reason, _ = rows_of(settings)["c.tar"]
        assert status == "unsupported" and any(each in reason for each in words.split("|")), reason
        assert rows_of(settings, "dataset")["c.tar"][0] == "unsupported"
    path.write_bytes(whole)
    report = run_images(settings)
    assert report.by_status("images") == {"missing": 1, "ok": 15}
    assert counters(report)["targets"] == 3


def test_a_tar_that_changed_since_it_was_read_stops_targets_with_a_sentence(place):
    root, settings = place
    for part in (root / "store" / "test" / "targets").rglob("*.parquet"):
        part.unlink()
    write_tar(root / "tars" / "c.tar", pairs(400))
    with pytest.raises(SystemicFault, match=r"c\.tar changed .* run `python -m pipelines\.images` first"):
        targets.run(settings, open_store(settings).shards)
    assert run_images(settings).by_status("targets") == {"import_error": 1, "missing": 1, "ok": 14}


def test_another_seed_moves_split_and_rank_and_reads_no_tar(place, monkeypatch):
    root, _ = place
    settings = of_images(root / "store", root / "tars", catalog={"seed": 7})
    monkeypatch.setattr(images, "read_tar", None)
    assert counters(run_images(settings)) == {"images": 15, "targets": 0, "dataset": 14}


def test_samples_without_a_caption_are_left_out_where_the_catalog_says_so(place):
    root, settings = place
    captioned = of_images(root / "store", root / "tars", catalog={"captioned": True})
    report = run_images(captioned)
    assert report.by_status("images") == {"missing": 1, "not_admitted": 2, "ok": 13}
    assert counters(report)["targets"] == 0
    assert run_images(settings).by_status("images") == {"missing": 1, "ok": 15}


def test_the_same_picture_twice_is_on_one_side_of_the_split(tmp_path):
    members = [(f"{n:03d}.png", picture(n % 40)) for n in range(80)]
    write_tar(tmp_path / "tars" / "a.tar", members[:40])
    write_tar(tmp_path / "tars" / "b.tar", members[40:])
    settings = of_images(tmp_path / "store", tmp_path / "tars", catalog={"validation_share": 0.5})
    stage.run(settings, open_store(settings).shards)
    sides: dict[str, set[str]] = {}
    for _, _, row in rows_of(settings).values():
        sides.setdefault(row["sha256"], set()).add(row["split"])
    assert len(sides) == 40
    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "validation"}


@pytest.fixture
def folder(tmp_path):
    """Images at any depth, with captions in all the ways there are."""
    root = tmp_path / "folder"
    (root / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.png", "deep/c.PNG", "deep/er/d.png", "e.png"]):
        (root / name).write_bytes(picture(number))
    (root / "broken.webp").write_bytes(b"no picture")
    (root / "notes.md").write_text("no image")
    (root / "a.txt").write_text("beside")
    (root / "deep" / "c.json").write_text('{"caption": "in json"}')
    (root / "e.txt").write_text("the table is over this")
    (root / "captions.csv").write_text('path,captions\nb.png,"[""b"", ""longer b""]"\ne.png,of the table\n')
    return root, of_images(tmp_path / "store", root, "folder")


def test_a_folder_takes_captions_beside_the_images_and_from_a_table(folder):
    _, settings = folder
    report = run_images(settings)
    assert report.by_status("targets") == {"import_error": 1, "ok": 5}
    found = {name: row["captions"] for name, (_, _, row) in rows_of(settings, "dataset").items() if row}
    assert found == {
        "a.png": ["beside"],
        "b.png": ["longer b", "b"],
        "deep/c.PNG": ["in json"],
        "deep/er/d.png": [],
        "e.png": ["of the table"],
    }
    assert counters(run_images(settings)) == NOTHING


def test_in_a_folder_an_edited_caption_reads_no_image_and_makes_no_tokens(folder, monkeypatch):
    root, settings = folder
    run_images(settings)
    (root / "captions.csv").write_text("path,captions\nb.png,other\ne.png,of the table\n")
    with monkeypatch.context() as patch:
        patch.setattr(images, "digest_of", None)
        assert counters(run_images(settings)) == {"images": 1, "targets": 0, "dataset": 1}
    (root / "a.txt").write_text("beside, longer")
    (root / "deep" / "er" / "d.txt").write_text("late")
    (root / "e.png").write_bytes(picture(55))
    assert counters(run_images(settings)) == {"images": 3, "targets": 1, "dataset": 3}
    (root / "b.png").unlink()
    assert run_images(settings).by_status("dataset") == {"import_error": 1, "ok": 4}


def test_a_file_that_cannot_be_named_or_read_is_a_row(folder):
    root, settings = folder
    (root / os.fsdecode(b"bad\xff.png")).write_bytes(picture(1))
    (root / "dangling.png").symlink_to("nowhere.png")
    stage.run(settings, open_store(settings).shards)
    rows = rows_of(settings)
    assert rows["bad\\xff.png" if "bad\\xff.png" in rows else "bad\\udcff.png"][0] == "unsupported"
    assert rows["dangling.png"][0] == "missing"
    (root / "nowhere.png").write_bytes(picture(2))
    stage.run(settings, open_store(settings).shards)
    assert rows_of(settings)["dangling.png"][0] == "ok"


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [("tars", "", "holds no tar"), ("folder", "", "holds no jpg"), ("tars", "absent", "is not there")],
)
def test_a_source_that_holds_nothing_is_a_sentence_and_forgets_no_row(tmp_path, kind, path, words):
    settings = of_images(tmp_path / "store", tmp_path / path if path else tmp_path, kind)
    with pytest.raises(ValueError, match=words):
        stage.run(settings, open_store(settings).shards)


@pytest.mark.parametrize(
    ("where", "when", "call"), [("gap3d.images:outcome_of", "after", 12), ("gap3d.manifest:write", "before", 3)]
)
def test_a_killed_run_loses_no_row_of_a_tar_that_was_half_written(finished, tmp_path, nursery, where, when, call):
    root, _ = finished
    compute = {"flush_rows": 1, "flush_s": 1e-9, "workers": 0}
    settings = of_images(tmp_path / "store", root / "tars", compute=compute)
    preset = tmp_path / "settings.json"
    preset.write_text(settings.model_dump_json())
    run = Run(
        work="pipelines.images",
        store=str(settings.store),
        source="",
        scratch=str(tmp_path / "scratch"),
        log=str(tmp_path / "log"),
        flags=["--preset", str(preset)],
        point=asdict(Point(where, when, call=call)),
    )
    assert nursery.run(run) == -signal.SIGKILL
    stage.run(settings, open_store(settings).shards)
    whole = digests(of_images(root / "store", root / "tars"))
    assert digests(settings) == {place: digest for place, digest in whole.items() if place[0] == "images"}


def verified(settings):
    """What verify finds."""
    store = open_store(settings)
    manifests = [store.committed(name, s) for name in ("images", "targets") for s in store.shards]
    faults = [fault for held in [*manifests, store.committed("dataset", ALL)] for fault in store.verify(held)]
    return faults + stage.damaged(settings, store)


def test_the_programs_know_a_collection_of_images(place, monkeypatch, capsys):
    root, settings = place
    preset = root / "settings.json"
    preset.write_text(settings.model_dump_json())

    def said(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments, "--preset", str(preset)])
        module.main()
        return capsys.readouterr().out

    assert "0 shards damaged" in said(verify)
    told = said(why, "a.tar#006")
    assert "no image (jpg, png or webp), only txt" in told and "passed on from images" in told
    told = said(why, "a.tar#sub/001")
    assert "a big brown dog" in told and told.count("up to date") == 3
    rows = {words[0]: words[1:3] for words in map(str.split, said(plan).splitlines()) if words[0] == "targets"}
    assert rows == {"targets": ["16", "0"]}
    assert "contact_sheet.jpg" in said(previews)
    ended = dict(each.split(":", 1) for each in said(line).splitlines() if ": " in each)
    assert "report" not in ended and ended["tokens"].endswith("dataset.html")
    with Image.open(root / "store" / "test" / "reports" / "contact_sheet.jpg") as sheet:
        assert len(sheet.getcolors(1 << 20)) > 1000
    said(gc, "--grace-hours", "0")
    told = said(line)
    assert "images:    16 rows" in told and "targets:    16 rows" in told
    assert verified(settings) == []
    tar = root / "tars" / "c.tar"
    content, times = bytearray(tar.read_bytes()), tar.stat()
    content[700] ^= 1
    tar.write_bytes(content)
    os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(SystemExit) as ended:
        said(verify)
    assert ended.value.code == 1
    assert "c.tar#0200" in capsys.readouterr().out
