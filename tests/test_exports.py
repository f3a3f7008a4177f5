"""Ways out: what the libraries of the field read of an export is what the store holds."""

import csv
import gc as garbage
import io
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
import yaml
from exports_data import CAPTIONS, VALUES, captioned, content, load, read_held, write_source
from folders import run_line, small
from PIL import Image
from webdataset_tars import read_back

from gap3d import gc
from gap3d.audit import audit
from gap3d.blobs import sha256_of
from gap3d.exports.pieces import pack
from gap3d.exports.webdataset import Pictures
from gap3d.features.images import decode_png
from gap3d.lease import LeaseHeld, lease
from gap3d.takedown import exports
from gap3d.target_parts import read_part, read_targets
from pipelines import dataset, export, targets
from pipelines.command import open_store
from pipelines.export import export_datasets, export_trellis, export_webdataset

JPG, PNG = Pictures(), Pictures("png")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """(root, settings) of a finished line: five good objects, one of them without captions, and a broken file."""
    root = tmp_path_factory.mktemp("line")
    write_source(root / "objects")
    settings = small(root / "store", root / "objects", **VALUES)
    run_line(settings)
    return root, settings


@pytest.fixture(scope="module")
def held(line):
    """The index, the renders, the targets and the catalog, as the store's own readers give them, by key."""
    return read_held(open_store(line[1]))


def test_tars_are_read_by_both_libraries_with_every_caption_and_picture(line, held, tmp_path):
    told = export_webdataset(held["store"], tmp_path / "out", JPG)
    assert "with 8 rows" in told and told.endswith("; 2 rows without a caption are not among them")
    wanted = captioned(held)
    for split in ("train", "validation"):
        paths = sorted((tmp_path / "out" / split).glob("*.tar"))
        of_split = {key: row for key, row in wanted.items() if row["split"] == split}
        found = read_back(paths)
        assert set(found) == set(of_split) and found
        for key, sample in found.items():
            assert set(sample) == {"__key__", "__url__", "__local_path__", "jpg", "txt", "json"}
            captions = of_split[key]["captions"]
            assert json.loads(sample["json"]) == captions
            assert sample["txt"].decode() == max(captions, key=len)
        rows = load("webdataset", data_files=[str(p) for p in paths], split="train", cache_dir=str(tmp_path / "c"))
        assert sorted(rows["__key__"]) == sorted(of_split)
        for row in rows:
            assert row["txt"] == max(of_split[row["__key__"]]["captions"], key=len)
            assert row["json"] == of_split[row["__key__"]]["captions"]
            assert row["jpg"].size == (64, 64)


def test_a_jpeg_is_the_render_composited_on_black_and_a_png_its_very_bytes(held, tmp_path):
    for made in (JPG, PNG):
        export_webdataset(held["store"], tmp_path / made.format, made)
        found = read_back((tmp_path / made.format).glob("*/*.tar"))
        for key, sample in found.items():
            png = held["renders"][key.replace("_", "/")]["png"]
            if made is PNG:
                assert sample["png"] == png
                continue
            image = Image.open(io.BytesIO(sample["jpg"]))
            rgba = decode_png(png, 10**6).astype(int)
            exact = np.rint(rgba[..., :3] * rgba[..., 3:] / 255).astype(int)
            error = np.abs(np.asarray(image).astype(int) - exact)
            assert image.mode == "RGB" and error.mean() < 1.5
            assert np.asarray(image)[exact.sum(-1) == 0].mean() < 1.5  # black, not the colour under the alpha
            assert [(h, v) for _, h, v, _ in image.layer] == [(1, 1)] * 3  # no chroma subsampling
            worse = io.BytesIO()
            Image.fromarray(exact.astype(np.uint8)).save(worse, "JPEG", quality=94)
            assert sum(image.quantization[0]) < sum(Image.open(worse).quantization[0])


@pytest.mark.parametrize("quality", [94, 101])
def test_a_jpeg_that_would_hurt_features_is_refused(quality):
    with pytest.raises(ValueError, match="from 95 to 100"):
        Pictures("jpg", quality)


def test_equal_datasets_give_equal_bytes_whatever_their_parts(line, held, tmp_path):
    root, _ = line
    shutil.copytree(root / "store", tmp_path / "store")
    settings = small(tmp_path / "store", root / "objects", **VALUES)
    other = open_store(settings)
    for stage in ("renders", "targets"):
        for shard in other.shards:
            folder, manifest = other.shard(stage, shard), other.manifest(stage, shard)
            gc.rewrite(folder, manifest, sorted(manifest.parts), part_bytes=1)
            assert len(other.manifest(stage, shard).parts) == len(other.read(other.manifest(stage, shard)))
    dataset.run(settings)
    for name, store in (("one", held["store"]), ("other", other)):
        export_webdataset(store, tmp_path / name / "tars", JPG)
        export_datasets(store, tmp_path / name / "hub", images=True, tokens=True)
    for way in ("tars", "hub"):
        first, second = (
            {name: data for name, data in content(tmp_path / each / way).items() if name.endswith((".tar", ".parquet"))}
            for each in ("one", "other")
        )
        assert first == second and first


def test_a_second_export_writes_nothing_and_a_third_only_what_is_gone_or_changed(line, held, tmp_path):
    store, out = held["store"], tmp_path / "out"
    for way in (
        lambda: export_webdataset(store, out / "tars", PNG, 30_000),
        lambda: export_datasets(store, out / "hub", images=True, tokens=False, most=30_000),
        lambda: export_trellis(store, out / "trellis", "renders_cond"),
    ):
        way()
        before = {path: path.stat() for path in out.rglob("*") if path.suffix in (".tar", ".parquet", ".png")}
        assert way().startswith("wrote 0 of ")
        assert {path: path.stat() for path in before} == before
    tar = min((out / "tars").rglob("*.tar"))
    whole = tar.read_bytes()
    tar.unlink()
    assert export_webdataset(store, out / "tars", PNG, 30_000).startswith("wrote 1 of ")
    assert tar.read_bytes() == whole
    every = len(list((out / "tars").rglob("*.tar")))
    assert export_webdataset(store, out / "tars", JPG, 30_000).startswith(f"wrote {every} of {every} ")


def test_an_export_that_was_ended_half_way_goes_on_where_it_was(held, tmp_path, monkeypatch):
    store, out = held["store"], tmp_path / "out"
    export_webdataset(store, tmp_path / "whole", PNG, 30_000)
    whole = content(tmp_path / "whole")
    from gap3d import tars

    write, written = tars.write, []

    def killed(path, samples):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return write(path, samples)

    monkeypatch.setattr(tars, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        export_webdataset(store, out, PNG, 30_000)
    monkeypatch.undo()
    assert len(list(out.rglob("*.tar"))) == 2
    times = {path: path.stat().st_mtime_ns for path in written}
    export_webdataset(store, out, PNG, 30_000)
    assert {path: path.stat().st_mtime_ns for path in written} == times
    assert {n: data for n, data in content(out).items() if ".gap3d" not in n and "README" not in n} == {
        n: data for n, data in whole.items() if ".gap3d" not in n and "README" not in n
    }


def test_no_tar_or_parquet_file_is_larger_than_asked(held, tmp_path):
    most = 60_000
    export_webdataset(held["store"], tmp_path / "tars", PNG, most)
    export_datasets(held["store"], tmp_path / "hub", images=True, tokens=True, most=most)
    sizes = [p.stat().st_size for p in tmp_path.rglob("*") if p.suffix in (".tar", ".parquet")]
    assert len(sizes) > 4 and max(sizes) <= most


def test_packing_keeps_order_loses_nothing_and_gives_a_giant_a_file_of_its_own():
    assert pack([4, 4, 4, 20, 1, 1], 10) == [range(2), range(2, 3), range(3, 4), range(4, 6)]
    assert pack([], 10) == []


def test_a_changed_caption_makes_its_tar_anew_and_leaves_those_of_other_shards(line, tmp_path):
    shutil.copytree(line[0], tmp_path / "copy")
    root = tmp_path / "copy"
    settings = small(root / "store", root / "objects", **VALUES)
    store = open_store(settings)
    export_webdataset(store, tmp_path / "out", PNG)
    before = content(tmp_path / "out")
    captions = (root / "objects" / "captions.csv").read_text().replace("a tall box", "a very tall box")
    (root / "objects" / "captions.csv").write_text(captions)
    run_line(settings)
    assert export_webdataset(store, tmp_path / "out", PNG).startswith("wrote 1 of ")
    after = content(tmp_path / "out")
    changed = {name for name in before if before[name] != after.get(name)}
    assert sum(name.endswith(".tar") for name in changed) == 1
    texts = [sample["txt"].decode() for sample in read_back((tmp_path / "out").glob("*/*.tar")).values()]
    assert texts.count("a very tall box") == 2 and "a tall box" not in texts


def test_trellis_finds_its_pictures_cameras_and_metadata(line, held, tmp_path):
    out = tmp_path / "out"
    told = export_trellis(held["store"], out, "renders_cond")
    assert told == f"wrote 5 of 5 objects to {out / 'renders_cond'}; metadata.csv has 5 lines"
    with (out / "metadata.csv").open(newline="") as file:
        lines = {line["sha256"]: line for line in csv.DictReader(file)}
    assert list(lines) == sorted(sha256_of(line[0] / "objects" / name) for name in CAPTIONS)
    for name in CAPTIONS:
        entry = lines[sha256_of(line[0] / "objects" / name)]
        assert entry["file_identifier"] == name
        assert (entry["rendered"], entry["cond_rendered"]) == ("False", "True")
        captions = json.loads(entry["captions"]) if entry["captions"] else []
        assert captions == sorted(CAPTIONS[name], key=len, reverse=True)
        # As its loader of condition pictures goes: the frames of transforms.json, relative to the folder.
        folder = out / "renders_cond" / entry["sha256"]
        cameras = json.loads((folder / "transforms.json").read_text())
        assert [frame["file_path"] for frame in cameras["frames"]] == ["000.png", "001.png"]
        for view, frame in enumerate(cameras["frames"]):
            row = held["renders"][f"{entry['object_id']}/{view:03d}"]
            assert (folder / frame["file_path"]).read_bytes() == row["png"]
            assert np.allclose(frame["transform_matrix"], np.reshape(row["transform_matrix"], (4, 4)))
            assert frame["camera_angle_x"] == row["camera_angle_x"]


def test_two_collections_of_one_folder_share_trellis_table(held, tmp_path):
    export_trellis(held["store"], tmp_path, "renders_cond")
    export_trellis(held["store"], tmp_path, "renders")
    with (tmp_path / "metadata.csv").open(newline="") as file:
        flags = [(line["rendered"], line["cond_rendered"]) for line in csv.DictReader(file)]
    assert flags == [("True", "True")] * 5


@pytest.mark.parametrize(("images", "tokens"), [(True, False), (True, True), (False, True)])
def test_the_hubs_library_opens_the_folder_and_finds_what_the_store_holds(held, tmp_path, images, tokens):
    out = tmp_path / "out"
    export_datasets(held["store"], out, images=images, tokens=tokens)
    found = load(str(out), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "validation"}
    rows = {row["key"]: (split, row) for split in found for row in found[split]}
    assert set(rows) == set(held["index"])
    for key, (split, row) in rows.items():
        entry = held["index"][key]
        assert split == entry["split"]
        for name in ("object_id", "view", "captions", "licence", "source", "identifier", "rank"):
            assert row[name] == entry[name], name
        assert ("image" in row) == images and ("patches" in row) == tokens
        if images:
            assert np.array_equal(np.asarray(row["image"]), decode_png(held["renders"][key]["png"], 10**6))
        if tokens:
            cls, registers, patches = held["targets"][key]
            assert row["cls"] == cls.tolist()
            assert row["registers"] == registers.numpy().tobytes()
            assert row["patches"] == patches.numpy().tobytes()


def test_an_exported_shard_is_read_as_a_part_of_the_store(held, tmp_path):
    export_datasets(held["store"], tmp_path, images=True, tokens=True)
    seen = {}
    for path in (tmp_path / "data").glob("*.parquet"):
        for batch in read_part(path, range(10**6), verify=True):
            seen |= {key: (batch.registers[i], batch.patches[i]) for i, key in enumerate(batch.keys)}
    assert set(seen) == set(held["index"])
    for key, (registers, patches) in seen.items():
        assert registers.equal(held["targets"][key][1]) and patches.equal(held["targets"][key][2])


def test_what_is_stored_as_int8_goes_out_as_it_is_read_and_is_sound(line, tmp_path):
    root, _ = line
    shutil.copytree(root / "store", tmp_path / "store")
    variant = {"store_dtype": "int8", "compression": "zstd"}
    settings = small(tmp_path / "store", root / "objects", **VALUES, targets=variant)
    store = open_store(settings)
    targets.run(settings, store.shards)
    dataset.run(settings)
    assert audit(store, None, lambda _: None).faults == []
    export_datasets(store, tmp_path / "out", images=False, tokens=True)
    stored = {key: row for s in store.shards for batch in read_targets(store, s) for key, *row in by_row(batch)}
    for path in (tmp_path / "out" / "data").glob("*.parquet"):
        about = json.loads(pq.read_schema(path).metadata[b"gap3d"])["tokens"]
        assert about["patches"]["dtype"] == "float16" and "patches_scale" not in about
        for key, *row in (found for batch in read_part(path, range(10**6)) for found in by_row(batch)):
            assert all(map(torch.equal, row, stored.pop(key)))
    assert stored == {}


def by_row(batch):
    return zip(batch.keys, batch.cls, batch.registers, batch.patches, strict=True)


def test_the_card_says_counts_features_licences_settings_and_that_the_encoder_is_untrained(held, tmp_path):
    export_datasets(held["store"], tmp_path, images=True, tokens=True)
    _, head, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(head)
    assert (front["license"], front["license_link"]) == ("other", "attribution.csv")
    assert "untrained-encoder" in front["tags"] and front["size_categories"] == ["n<1K"]
    schema = pq.read_schema(next((tmp_path / "data").glob("*.parquet")))
    assert [feature["name"] for feature in front["dataset_info"]["features"]] == schema.names
    assert "UNTRAINED" in text and "resolution 64" in text and "samples 1" in text
    for split in ("train", "validation"):
        rows = [row for row in held["index"].values() if row["split"] == split]
        assert f"| {split} | {len(rows)} | {len({row['object_id'] for row in rows})} |" in text
    tokens = json.loads(schema.metadata[b"gap3d"])
    assert tokens["encoder"]["weights"] in text
    assert str(tokens["tokens"]["patches"]["shape"]) in text
    with (tmp_path / "attribution.csv").open(newline="") as file:
        assert {line["identifier"] for line in csv.DictReader(file)} == set(CAPTIONS)


def test_words_from_outside_are_no_markup_of_the_card():
    from gap3d.exports.card import plain

    assert plain("<script>|[x](y)`\n# *b* _c_") == (
        "&lt;script&gt;&#124;&#91;x&#93;(y)&#96; &#35; &#42;b&#42; &#95;c&#95;"
    )


def test_a_folder_of_another_export_is_refused_and_so_is_one_that_is_being_written(held, tmp_path):
    export_webdataset(held["store"], tmp_path, PNG)
    with pytest.raises(ValueError, match="holds collection test as webdataset: choose another folder"):
        export_datasets(held["store"], tmp_path, images=True, tokens=False)
    with lease(tmp_path / ".gap3d", 0), pytest.raises(LeaseHeld):
        export_webdataset(held["store"], tmp_path, PNG)


def test_every_export_is_known_to_takedowns(held, tmp_path):
    export_webdataset(held["store"], tmp_path / "a", PNG)
    export_trellis(held["store"], tmp_path / "b", "renders")
    export_datasets(held["store"], tmp_path / "c", images=True, tokens=False)
    assert {tmp_path / name for name in "abc"} <= set(map(Path, exports(held["store"])))


def test_an_index_that_is_older_than_its_stages_is_not_exported(line, tmp_path):
    root, _ = line
    shutil.copytree(root / "store", tmp_path / "store")
    changed = small(tmp_path / "store", root / "objects", **VALUES, targets={"image_size": 42})
    store = open_store(changed)
    targets.run(changed, store.shards)
    with pytest.raises(ValueError, match=r"the dataset is older than targets/\d: run `python -m pipelines.line`"):
        export_datasets(store, tmp_path / "out", images=True, tokens=True)
    assert not (tmp_path / "out").exists()


def program(settings, folder, monkeypatch, capsys, *flags):
    """(exit code, what it said)."""
    preset = folder / "resolved.json"
    preset.write_text(settings.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["export", "--preset", str(preset), *flags])
    try:
        export.main()
        code = 0
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out + said.err


def test_the_program_knows_each_way_out_and_says_in_a_sentence_what_it_can_not(line, tmp_path, monkeypatch, capsys):
    ways = {
        "files": ([], "wrote 10 pictures of 5 objects"),
        "trellis": ([], "metadata.csv has 5 lines"),
        "webdataset": (["--format", "png"], "files with 8 rows"),
        "datasets": (["--tokens", "--without-images"], "files with 10 rows"),
    }
    for way, (flags, told) in ways.items():
        out = str(tmp_path / way)
        code, said = program(line[1], tmp_path, monkeypatch, capsys, "--to", way, "--out", out, *flags)
        assert code == 0 and told in said, said
    assert (tmp_path / "trellis" / "renders").is_dir()  # fixed yaws: multiviews
    for flags, told in (
        (["--to", "webdataset", "--jpeg-quality", "90"], "from 95 to 100"),
        (["--to", "datasets", "--out", str(tmp_path / "webdataset")], "choose another folder (--out)"),
    ):
        code, said = program(line[1], tmp_path, monkeypatch, capsys, "--out", str(tmp_path / "no"), *flags)
        assert code == 1 and told in said and "Traceback" not in said


def test_the_released_trainings_own_reading_of_a_sample(held, tmp_path):
    """Its loader keeps jpg and txt, decodes with Pillow and converts to RGB."""
    export_webdataset(held["store"], tmp_path, JPG)
    urls = [str(path) for path in sorted((tmp_path / "train").glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pipe = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "txt")
        found = list(pipe)
        garbage.collect()
    assert found and all(image.mode == "RGB" and isinstance(text, str) and text for image, text in found)
