"""COCO in its own layout becomes tars with the evaluation protocol's captions, the same bytes every time."""

import hashlib
import io
import json
import os
import random
import signal
import zipfile
from dataclasses import asdict

import dagster as dg
import pytest
from code_location import load
from folders import counters
from killed import Point, Run
from pictures import rows_of as image_rows
from pictures import run_images
from PIL import Image
from webdataset_tars import read_back

from gap3d.store import ALL
from pipelines import coco
from pipelines.command import load_settings, open_store

LICENCES = [{"id": 1, "name": "CC BY", "url": "http://example.org/by"}, {"id": 2, "name": "CC0", "url": "http://zero"}]
IDS = [139, 9, 285, 632, 724, 776, 785, 802]  # in no order, as in the official file
TEXTS = {
    139: ["A  red\tbox.", "A red box.", " A box \n on a floor "],
    9: ["one", "two", "three", "four", "five"],
    285: ["bear", "Bear", "bear "],
    632: ["  ", "a bed"],
    724: ["a stop sign"],
    776: ["teddy", "three bears", "toys", "soft toys"],
    785: ["skis", "a skier", "snow"],
    802: ["fridge", "oven", "kitchen", "a kitchen", "white"],
}


def jpeg(number):
    file = io.BytesIO()
    Image.effect_noise((20 + number % 7, 16), 60).convert("RGB").save(file, "JPEG", quality=80)
    return file.getvalue()


PICTURES = {f"{number:012d}.jpg": jpeg(number) for number in IDS}


def annotations(ids=IDS, texts=TEXTS):
    images = [
        {
            "id": number,
            "file_name": f"{number:012d}.jpg",
            "license": 1 + number % 2,
            "coco_url": f"http://images/{number}",
            "flickr_url": f"http://flickr/{number}",
            "height": 16,
            "width": 20,
        }
        for number in ids
    ]
    # Annotation ids interleave the images, and the file has them in yet another order.
    listed = [
        {"id": 1000 * place + number, "image_id": number, "caption": text}
        for number in ids
        for place, text in enumerate(texts[number])
    ]
    random.Random(5).shuffle(listed)
    return {"images": images, "annotations": listed, "licenses": LICENCES}


def write_folder(root, content=None, pictures=PICTURES):
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    for name, data in pictures.items():
        (root / "val2017" / name).write_bytes(data)
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(content or annotations()))
    return root


def write_zips(root):
    root.mkdir()
    with zipfile.ZipFile(root / "val2017.zip", "w") as file:
        for name, data in PICTURES.items():
            file.writestr(f"val2017/{name}", data)
    with zipfile.ZipFile(root / "annotations_trainval2017.zip", "w") as file:
        file.writestr("annotations/captions_val2017.json", json.dumps(annotations()))
    return root


def protocol(texts=TEXTS):
    """The protocol in the words of docs/method.md 8.1: {image id: (drawn, all)}."""
    random.seed(0)
    found = {}
    for image in sorted(texts):
        unique = []
        for text in texts[image]:
            plain = " ".join(text.split())
            if plain and plain not in unique:
                unique.append(plain)
        if unique:
            found[image] = (unique[random.randint(0, len(unique) - 1)], unique)
    return found


def settings_of(root, path, **values):
    base = {"store": root / "store", "collection": "coco", "coco": {"path": path, "tar_images": 3}}
    return load_settings("demo", **{**base, **values})


def tars_of(settings):
    return {path.name: path.read_bytes() for path in sorted(coco.folder_of(settings).iterdir())}


def rows_of(settings):
    store = open_store(settings)
    held = store.manifest(coco.STAGE, ALL)
    assert held.complete and store.verify(held) == []
    data = store.read(held)
    return {int(key): (row.status.value, row.reason, data.get(key)) for key, row in held.rows.items()}


def statuses(settings):
    return {key: row[0] for key, row in rows_of(settings).items()}


@pytest.mark.parametrize("write", [write_folder, write_zips])
def test_the_tars_hold_the_original_bytes_and_the_protocols_captions(tmp_path, write):
    settings = settings_of(tmp_path, write(tmp_path / "coco"))
    report = coco.run(settings)
    assert report.count("expected") == report.count("found") == 8
    found, expected = read_back(sorted(coco.folder_of(settings).glob("*.tar"))), protocol()
    assert list(found) == [f"{number:012d}" for number in sorted(IDS)]
    for number in IDS:
        sample = found[f"{number:012d}"]
        assert sample["jpg"] == PICTURES[f"{number:012d}.jpg"]
        assert sample["txt"].decode() == expected[number][0]
        about = json.loads(sample["json"])
        assert (about["captions"], about["image_id"]) == (expected[number][1], number)
        assert about["licence"] == LICENCES[number % 2]["name"]
        assert about["licence_url"] == LICENCES[number % 2]["url"]
        assert about["coco_url"] == f"http://images/{number}" and about["flickr_url"] == f"http://flickr/{number}"
    assert len({expected[number][0] == expected[number][1][0] for number in IDS}) == 2  # the draw makes a difference


def test_the_rows_tell_what_the_tars_hold(tmp_path):
    settings = settings_of(tmp_path, write_folder(tmp_path / "coco"))
    coco.run(settings)
    tars, expected = tars_of(settings), protocol()
    assert [len(read_back([coco.folder_of(settings) / name])) for name in tars] == [3, 3, 2]
    for number, (status, _, row) in rows_of(settings).items():
        assert (status, row["image_id"]) == ("ok", number)
        assert (row["caption"], row["captions"]) == expected[number]
        assert row["sha256"] == hashlib.sha256(PICTURES[row["file_name"]]).hexdigest()
        assert row["tar_sha256"] == hashlib.sha256(tars[row["tar"]]).hexdigest()
        assert f"{number:012d}" in read_back([coco.folder_of(settings) / row["tar"]])


def test_equal_input_gives_equal_bytes_from_a_folder_or_zips_and_any_order(tmp_path):
    first = settings_of(tmp_path / "a", write_folder(tmp_path / "coco"))
    second = settings_of(tmp_path / "b", write_zips(tmp_path / "zips"))
    third = settings_of(tmp_path / "c", write_folder(tmp_path / "other", annotations(sorted(IDS))))
    digests = {coco.run(settings).shards[0].digest for settings in (first, second, third)}
    assert len(digests) == 1
    assert tars_of(first) == tars_of(second) == tars_of(third)


def test_the_second_run_makes_nothing_and_a_changed_image_only_its_tar(tmp_path):
    folder = write_folder(tmp_path / "coco")
    settings = settings_of(tmp_path, folder)
    assert coco.run(settings).count("computed") == 8
    before = {path: path.stat().st_mtime_ns for path in coco.folder_of(settings).iterdir()}
    assert coco.run(settings).count("computed") == 0
    (folder / "val2017" / f"{632:012d}.jpg").write_bytes(jpeg(1))
    assert coco.run(settings).count("computed") == 3
    after = {path: path.stat().st_mtime_ns for path in coco.folder_of(settings).iterdir()}
    assert [path.name for path in sorted(before) if before[path] != after[path]] == ["coco-val2017-00001.tar"]


@pytest.mark.parametrize("harm", ["remove", "touch", "change"])
def test_a_tar_that_is_gone_or_changed_is_made_again(tmp_path, harm):
    settings = settings_of(tmp_path, write_folder(tmp_path / "coco"))
    digest = coco.run(settings).shards[0].digest
    tars = tars_of(settings)
    path = coco.folder_of(settings) / "coco-val2017-00001.tar"
    if harm == "remove":
        path.unlink()
    elif harm == "touch":
        os.utime(path)
    else:
        path.chmod(0o644)
        path.write_bytes(b"changed")
        assert coco.damaged(settings, open_store(settings)) == [f"{path} is not what was written: remove it"]
    report = coco.run(settings)
    assert report.shards[0].digest == digest
    assert tars_of(settings) == tars
    assert coco.damaged(settings, open_store(settings)) == []


def test_an_image_that_is_missing_or_broken_costs_its_row_and_no_other_caption(tmp_path):
    pictures = dict(PICTURES)
    del pictures[f"{285:012d}.jpg"]
    pictures[f"{724:012d}.jpg"] = b"not a picture"
    pictures[f"{776:012d}.jpg"] = pictures[f"{776:012d}.jpg"][:200]
    content = annotations(texts={**TEXTS, 785: [" ", ""]})
    content["images"][IDS.index(802)]["file_name"] = "../../secret.jpg"
    folder = write_folder(tmp_path / "coco", content, pictures)
    (tmp_path / "secret.jpg").write_bytes(jpeg(3))
    settings = settings_of(tmp_path, folder)
    coco.run(settings)
    bad = {285: "missing", 724: "unsupported", 776: "unsupported", 785: "missing", 802: "forbidden_reference"}
    assert statuses(settings) == {**dict.fromkeys(IDS, "ok"), **bad}
    assert "no caption" in rows_of(settings)[785][1]
    found, expected = read_back(sorted(coco.folder_of(settings).glob("*.tar"))), protocol({**TEXTS, 785: []})
    drawn = {int(key): sample["txt"].decode() for key, sample in found.items()}
    assert drawn == {number: expected[number][0] for number in IDS if number not in bad}
    assert coco.run(settings).count("computed") == 0
    (folder / "val2017" / f"{285:012d}.jpg").write_bytes(PICTURES[f"{285:012d}.jpg"])
    coco.run(settings)
    assert statuses(settings)[285] == "ok"


def test_fewer_images_leave_no_old_tar_behind(tmp_path):
    settings = settings_of(tmp_path, write_folder(tmp_path / "coco"))
    coco.run(settings)
    (tmp_path / "coco" / "annotations" / "captions_val2017.json").write_text(json.dumps(annotations([9, 139])))
    coco.run(settings)
    assert sorted(tars_of(settings)) == ["coco-val2017-00000.tar"]
    assert statuses(settings) == {9: "ok", 139: "ok"}


def test_another_split_takes_its_own_files(tmp_path):
    folder = write_folder(tmp_path / "coco")
    (folder / "val2017").rename(folder / "train2017")
    (folder / "annotations" / "captions_val2017.json").rename(folder / "annotations" / "captions_train2017.json")
    settings = settings_of(tmp_path, folder, coco={"path": folder, "split": "train2017"})
    coco.run(settings)
    assert list(tars_of(settings)) == ["coco-train2017-00000.tar"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no file of COCO captions"),
        ("[]", "no file of COCO captions"),
        (json.dumps({"images": [{"id": 1}], "annotations": []}), "no file of COCO captions"),
        (json.dumps(annotations([9, 9])), "twice"),
        (json.dumps(annotations([])), "no images"),
        (json.dumps(annotations([2**63], {2**63: ["big"]})), "64 bits"),
        ("[" * 100_000, "no file of COCO captions"),
    ],
)
def test_what_is_no_coco_is_one_sentence(tmp_path, content, words):
    folder = write_folder(tmp_path / "coco")
    (folder / "annotations" / "captions_val2017.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        coco.run(settings_of(tmp_path, folder))


def test_text_that_no_encoding_has_and_names_that_no_file_has_cost_no_other_image(tmp_path):
    content = annotations(texts={**TEXTS, 785: ["half a \ud800 character"]})
    content["images"][IDS.index(724)]["coco_url"] = "http://images/\udfff"
    content["images"][IDS.index(776)]["file_name"] = "\ud800.jpg"
    content["images"][IDS.index(802)]["file_name"] = f"{'n' * 5000}.jpg"
    content["licenses"] = [{**licence, "name": 5} for licence in content["licenses"]]
    settings = settings_of(tmp_path, write_folder(tmp_path / "coco", content))
    coco.run(settings)
    assert statuses(settings) == {**dict.fromkeys(IDS, "ok"), 776: "missing", 802: "missing"}
    found = read_back(sorted(coco.folder_of(settings).glob("*.tar")))
    assert found[f"{785:012d}"]["txt"] == b"half a ? character"


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"coco\.path names no folder"):
        coco.run(settings_of(tmp_path, None))
    with pytest.raises(ValueError, match=r"holds no val2017 \(or val2017\.zip\)"):
        coco.run(settings_of(tmp_path, tmp_path))
    write_zips(tmp_path / "coco")
    (tmp_path / "coco" / "val2017.zip").write_bytes(b"cut")
    with pytest.raises(ValueError, match="download it again"):
        coco.run(settings_of(tmp_path, tmp_path / "coco"))


def test_its_tars_become_targets_with_the_captions_of_choice(tmp_path):
    given = {"path": write_folder(tmp_path / "coco"), "tar_images": 3}
    small = {"catalog": {"shards": 2}, "targets": {"image_size": 56}, "compute": {"workers": 0}}
    settings = settings_of(tmp_path, given["path"], images={"kind": "tars"}, **small)
    coco.run(settings)
    report = run_images(settings)
    assert report.by_status("targets") == report.by_status("dataset") == {"ok": 8}
    rows = {row["identifier"].rpartition("#")[2]: row for _, _, row in image_rows(settings, "dataset").values()}
    expected = protocol()
    for number, (_, captions) in expected.items():
        assert sorted(rows[f"{number:012d}"]["captions"]) == sorted(captions)
        assert rows[f"{number:012d}"]["licence"] == LICENCES[number % 2]["name"]
    drawn = settings_of(tmp_path, given["path"], images={"kind": "tars", "captions_from": ["txt"]}, **small)
    assert counters(run_images(drawn))["targets"] == 0
    rows = {row["identifier"].rpartition("#")[2]: row for _, _, row in image_rows(drawn, "dataset").values()}
    assert {int(key): row["captions"] for key, row in rows.items()} == {n: [text] for n, (text, _) in expected.items()}


@pytest.mark.parametrize(
    ("where", "when", "call"),
    [("gap3d.tars:write", "before", 2), ("gap3d.tars:write", "after", 2), ("gap3d.manifest:write", "before", 1)],
)
def test_a_killed_run_leaves_no_half_tar_and_the_next_one_completes(tmp_path, nursery, where, when, call):
    folder = write_folder(tmp_path / "coco")
    settings = settings_of(tmp_path, folder)
    undisturbed = settings_of(tmp_path / "undisturbed", folder)
    digest = coco.run(undisturbed).shards[0].digest
    preset = tmp_path / "settings.json"
    preset.write_text(settings.model_dump_json())
    run = Run(
        work="pipelines.coco",
        store=str(settings.store),
        source=str(folder),
        scratch=str(tmp_path / "scratch"),
        log=str(tmp_path / "log"),
        flags=["--preset", str(preset)],
        point=asdict(Point(where, when, call=call)),
    )
    assert nursery.run(run) == -signal.SIGKILL
    for path in coco.folder_of(settings).glob("*.tar"):
        assert path.read_bytes() == tars_of(undisturbed)[path.name]
    assert coco.run(settings).shards[0].digest == digest
    assert tars_of(settings) == tars_of(undisturbed)


def test_the_ui_shows_it_where_it_is_named_with_a_check_of_every_byte(tmp_path, monkeypatch):
    settings = settings_of(tmp_path, write_folder(tmp_path / "coco"))
    preset = tmp_path / "settings.json"
    preset.write_text(settings.model_dump_json())
    defs = load(monkeypatch, {"GAP3D_PRESET": str(preset)})
    from assets_defs.image_text import ASSETS, CHECKS
    from assets_defs.resources import Compute

    assert {key.to_user_string() for key in dg.Definitions.resolve_asset_graph(defs).get_all_asset_keys()} >= {"coco"}
    done = dg.materialize([*ASSETS, *CHECKS], resources={"compute": Compute()})
    assert done.success
    (event,) = done.asset_materializations_for_node("coco")
    assert event.metadata["dagster/row_count"].value == 8
    assert {check.check_name: check.passed for check in done.get_asset_check_evaluations()} == {
        "one_row_each": True,
        "no_internal_errors": True,
        "tars_intact": True,
    }
    assert len(tars_of(settings)) == 3
