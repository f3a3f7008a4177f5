"""Table 3's program over stored collections, folders of pictures and retrieved objects."""

import json
import math
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
import target_stores
import torch
from stores import TOGETHER
from toys import CAPTIONS, IDS, OBJECTS, SMALL, as_folder, made, settings_of, sha_of

from gap3d.aligner.model import build_aligner
from gap3d.aligner_settings import AlignerSettings
from gap3d.evaluation.result import find
from gap3d.records import Outcome
from gap3d.schemas import CATALOG
from gap3d.settings import Limits
from gap3d.store import Store
from gap3d.trellis.seeds import caption_of
from pipelines import generation_metrics
from pipelines.around import FROM
from pipelines.evaluation.measured import homes
from pipelines.evaluation.objects import true_objects
from pipelines.evaluation.sources import require
from pipelines.evaluation_report import folders_of
from pipelines.generation_metrics import of_objects
from pipelines.job import NotReady


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """(root of the store, its renders)."""
    root = tmp_path_factory.mktemp("toys")
    return root, made(root)


@pytest.fixture(scope="module")
def itself(toys):
    """The collection measured against itself."""
    (result,), report = of_objects(settings_of(toys[0]), "collection:toys", "itself")
    return result, report


def test_a_collection_is_at_no_distance_from_itself_and_every_captioned_object_is_a_row(itself, toys):
    result, report = itself
    for column in ("fd_inception", "fd_dinov2", "fd_pointnet"):
        assert abs(result.cells[column].value) < 1e-6
        assert result.cells[column].samples == 3
    assert {name for name, cell in result.cells.items() if cell.value is None} == {"clip_image"}
    samples = pq.read_table(result.folder / "samples.parquet").to_pylist()
    assert {row["key"] for row in samples} == {key for key in IDS if CAPTIONS[key]}
    assert result.counts == {"ok": 3}
    mean = np.mean([row["clip_text"] for row in samples])
    assert result.cells["clip_text"].value == pytest.approx(mean, rel=1e-12)
    assert not result.trained and result.label.startswith("UNTRAINED") and "pointnet" in result.label
    assert report.by_status("generation_metrics") == {"ok": 3}


def test_the_result_says_all_that_is_needed_to_repeat_it(itself):
    said = json.loads((itself[0].folder / "result.json").read_text())
    protocol = said["protocol"]
    for name in SMALL:
        for side in ("true", "generated"):
            assert len(protocol["extractors"][name][side]["extractor"]["weights"]) >= 16
    assert protocol["objects"] == {**protocol["objects"], "expected": 3, "count": None, "shuffle": 42}
    assert protocol["bootstrap"] == {"seed": 0, "level": 0.95, "resamples": 2000}
    assert said["settings"]["evaluation"]["points"] == 64


def test_what_is_known_is_not_measured_again_and_quirks_are_another_row(itself, toys):
    (again,), report = of_objects(settings_of(toys[0]), "collection:toys", "itself")
    assert again == itself[0]
    assert report.count("computed") == 0
    (other,), _ = of_objects(settings_of(toys[0], quirks=("unpaired",)), "collection:toys", "itself")
    assert other.quirks == ("unpaired",) and other.fingerprint != again.fingerprint
    assert len(find(toys[0] / "toys", "generation")) >= 2


def test_objects_and_captions_are_those_of_the_protocol(toys):
    true, _ = true_objects(settings_of(toys[0], count=2, views=(8,)))
    order = sorted(range(OBJECTS), key=sha_of)
    random.Random(42).shuffle(order)
    wanted = [IDS[number] for number in order if CAPTIONS[IDS[number]]][:2]
    assert list(true.asked) == wanted
    for index, key in enumerate(wanted):
        choice = random.Random(42 * 2003 + index).randint(0, 1)
        assert (true.asked[key].caption, true.asked[key].index) == (CAPTIONS[key][choice], index)
        assert choice == caption_of(index, 2)


def test_a_folder_of_the_same_pictures_gives_the_same_numbers(itself, toys, tmp_path):
    root, rows = toys
    place = as_folder(rows, tmp_path / "pictures", lambda key: sha_of(IDS.index(key)))
    (result,), _ = of_objects(settings_of(root), f"pictures:{place}", "folder")
    clouds = {"fd_pointnet"}  # which points are drawn follows the object's name
    for name in set(result.cells) - clouds:
        assert result.cells[name] == itself[0].cells[name]
    assert result.cells["fd_pointnet"].value >= 0
    assert result.counts == {"ok": 3} and result.protocol["generated"]["unmatched"]["count"] == 0


def test_pictures_without_depth_have_no_cloud_and_their_own_captions(toys, tmp_path):
    root, rows = toys
    place = as_folder(rows, tmp_path / "flat", lambda key: f"o{IDS.index(key)}", depth=False)
    (place / "captions.csv").write_text("path,captions\no0,another text altogether\n")
    (result,), _ = of_objects(settings_of(root, views=(8, 20)), f"pictures:{place}", "flat")
    assert result.cells["fd_pointnet"].value is None and "missing" in result.cells["fd_pointnet"].note
    assert result.counts == {"ok": 3} and result.protocol["generated"]["captions_of_its_own"] == 1
    assert math.isfinite(result.cells["clip_text"].value)


def test_captions_of_objects_that_are_not_measured_are_no_matter(toys, tmp_path):
    root, rows = toys
    place = as_folder(rows, tmp_path / "all", lambda key: f"o{IDS.index(key)}", depth=False)
    (place / "captions.csv").write_text("path,captions\n" + "".join(f"o{each},text {each}\n" for each in range(4)))
    (result,), _ = of_objects(settings_of(root, count=2, views=(8,)), f"pictures:{place}", "all")
    assert result.counts == {"ok": 2} and result.protocol["generated"]["captions_of_its_own"] == 2


def test_a_folder_of_other_cameras_is_refused_before_anything_is_rendered(toys, tmp_path):
    root, rows = toys
    place = as_folder(rows, tmp_path / "one", lambda key: sha_of(IDS.index(key)))
    for surplus in place.glob("*/*"):
        if surplus.stem.partition("_")[0] != "000":
            surplus.unlink()
    before = sorted(path for path in root.rglob("*") if path.is_dir())
    with pytest.raises(ValueError, match=r"no object of .* has the 4 or 8 or 20 views .* meshes:DIR"):
        require(settings_of(root), f"pictures:{place}")
    assert sorted(path for path in root.rglob("*") if path.is_dir()) == before


def test_a_folder_of_strangers_is_a_sentence(toys, tmp_path):
    root, rows = toys
    place = as_folder(rows, tmp_path / "strangers", lambda key: f"stranger {IDS.index(key)}")
    (place / "captions.csv").write_text("path,captions\nstranger 0.obj,a text\n")
    with pytest.raises(ValueError, match=r"captions of 1 folders .* 'stranger 0\.obj': .* names such as 'stranger 0'"):
        of_objects(settings_of(root, views=(8,)), f"pictures:{place}", "strangers")
    (place / "captions.csv").unlink()
    with pytest.raises(ValueError, match=r"none of the 4 generated objects.*true objects of collection toys"):
        of_objects(settings_of(root, views=(8,)), f"pictures:{place}", "strangers")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        *((spec, "say what kind of objects") for spec in ("toys", "pictures:", "meshes", "nonsense:toys")),
        ("pictures:/nowhere", "/nowhere is no folder"),
        ("meshes:/nowhere", "no such folder"),
        ("collection:nothing", "no collection nothing"),
        ("trellis:toys", r"has objects of no method: run `python -m pipelines\.trellis --from toys`"),
        ("retrieved:/nowhere", "/nowhere is no aligner"),
    ],
)
def test_objects_that_are_not_there_are_a_sentence_before_anything_is_rendered(toys, spec, words):
    settings = settings_of(toys[0], true="not-there-either")
    with pytest.raises(ValueError, match=words):
        of_objects(settings, spec, "")


@pytest.fixture(scope="module")
def aligner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligner")
    small = AlignerSettings(vlm="random-small", soft_tokens=4, width=32, blocks=2, heads=2, dtype="float32")
    build_aligner(small, target_stores.LAYOUT, "cpu").save(folder, {"step": 7, "stage": "pretrain", "encoder": {}})
    return folder


def test_the_retrieved_object_is_the_nearest_by_a_plain_loop_and_is_called_what_it_is(toys, aligner):
    root, _ = toys
    settings = settings_of(root)
    (result,), _ = of_objects(settings, f"retrieved:{aligner}", "")
    assert "nearest object, no generation" in result.model and "aligner" in result.label
    (made,) = root.glob("toys-generation-*")
    store = Store(root, made.name, 1)
    predicted = store.read(store.manifest("generated", "0"), ["cls"])
    # Of the four that are rendered, the measured three.
    database = {key: target_stores.tokens_of(number)[0] for number, key in enumerate(IDS) if key in predicted}
    assert result.protocol["generated"]["database"]["images"] == len(database) == len(IDS) - 1
    rows = {row["key"]: row for row in pq.read_table(result.folder / "samples.parquet").to_pylist()}
    itself = 0
    for key, row in predicted.items():
        query = torch.tensor(row["cls"])
        cosines = {each: float(torch.cosine_similarity(query, cls, dim=0)) for each, cls in database.items()}
        best = max(cosines, key=cosines.get)
        assert rows[key]["cosine"] == pytest.approx(cosines[best], abs=1e-5)
        assert rows[key]["true_object"] == (best == key)
        itself += best == key
    assert result.protocol["generated"]["true_object_found"] == itself
    assert result.counts == {"ok": 3} and result.checkpoint["digest"]


def test_results_lie_with_the_objects_whose_renders_from_all_around_are_the_true_ones(toys, tmp_path):
    source = Store(toys[0], "toys", 1)
    for name in ("toys", "mine"):
        Store(tmp_path, name, 1)
    around = Store(tmp_path, "toys-around", 1)
    with around.writer("catalog", "0", CATALOG, TOGETHER, Limits()) as writer:
        for key, row in source.read(source.manifest("catalog", "0")).items():
            data = {name: value for name, value in row.items() if name != "key"}
            writer.add(Outcome(stage="catalog", key=key, data=data), {FROM: "toys"})
        writer.finish(set(IDS))
    settings = settings_of(tmp_path, true="toys-around").model_copy(update={"collection": "mine"})
    assert {home.name for home in homes(settings)} == {"mine", "toys-around", "toys"}
    assert [folder.name for folder in folders_of(settings)] == [home.name for home in homes(settings)]
    assert folders_of(settings)[0].name == "mine"


def test_a_model_that_is_not_trained_is_a_sentence(toys):
    with pytest.raises(NotReady, match=r"pipelines\.pretrain"):
        generation_metrics.run(settings_of(toys[0], true="not-there-either", models=("pretrained",)))
