"""Table 3's program over stored collections, folders of pictures, TRELLIS's objects and retrieved ones."""

import io
import json
import math
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import target_stores
import torch
from balls import render_of
from generated_sets import settings_at
from PIL import Image
from stores import TOGETHER, write
from test_trellis import plan_of

from gap3d.aligner.model import build_aligner
from gap3d.aligner_settings import AlignerSettings
from gap3d.evaluation.difference import is_asked, stated
from gap3d.evaluation.generation import Pair, measure
from gap3d.evaluation.published import bundled
from gap3d.evaluation.result import find
from gap3d.evaluation.views import AROUND
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.manifest import NAME as MANIFEST
from gap3d.metrics.extractors.clip import ClipFeatures
from gap3d.parts import read_rows
from gap3d.prompts import of_rows
from gap3d.records import Outcome
from gap3d.schemas import CATALOG, RENDERS
from gap3d.settings import Limits
from gap3d.store import Store
from gap3d.transforms import transforms
from gap3d.trellis.seeds import caption_of
from gap3d.trellis.turntable import Turntable
from pipelines import generation_metrics, prompts, trellis
from pipelines.around import FROM
from pipelines.evaluation.measured import homes
from pipelines.evaluation.objects import true_objects
from pipelines.evaluation.references import Picture, references
from pipelines.evaluation.sources import pictures_of, require, texts_of
from pipelines.evaluation.stated import shapes_of, suffix_of
from pipelines.evaluation_report import folders_of
from pipelines.generation_metrics import of_objects, shaped
from pipelines.job import NotReady

SIZE, OBJECTS = 32, 4
UNRENDERED = {f"protocol.true.renders.*.{name}" for name in ("resolution", "samples")}  # toys' renders are drawn here
SMALL = dict.fromkeys(("inception", "dinov2", "clip", "clip_large", "pointnet"), "random-small")
IDS = [f"{number:032x}" for number in range(OBJECTS)]
CAPTIONS = {
    key: [] if key == IDS[3] else [f"a thing of colour {number}", f"thing {number}"] for number, key in enumerate(IDS)
}


def sha_of(number):
    return f"{(number * 7) % OBJECTS:064x}"


def settings_of(root, **evaluation):
    section = EvaluationSettings(
        **{"true": "toys", "count": None, "points": 64, "dinov2_size": 56, **SMALL, **evaluation}
    )
    return settings_at(root, collection="toys", evaluation=section)


def rendered(number, view):
    """A renders row: a disc that is nearer in the middle, its colour and size those of object and view."""
    source = np.random.default_rng(100 * number + view)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    inside = np.hypot(x, y) < 8 + number
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[inside] = [*source.integers(0, 256, 3), 255]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    depth = np.where(inside, 1.8 + 0.02 * np.hypot(x, y) / (number + 1), np.inf).astype(np.float32)
    return render_of(IDS[number], view, AROUND[view], file.getvalue(), depth)


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A store with a collection of four objects seen from all around, three of them with captions; (root, renders)."""
    root = tmp_path_factory.mktemp("toys")
    store = Store(root, "toys", 1)
    catalog = {
        key: dict.fromkeys(CATALOG.columns.names[1:])
        | {"sha256": sha_of(number), "identifier": f"toys/o{number}.blend", "captions": CAPTIONS[key], "stamp": ""}
        for number, key in enumerate(IDS)
    }
    write(store, catalog, TOGETHER, "catalog", CATALOG)
    rows = {
        f"{key}/{view:03d}": rendered(number, view) for number, key in enumerate(IDS) for view in range(len(AROUND))
    }
    write(store, rows, TOGETHER, "renders", RENDERS)
    tokens = {f"{key}/000": target_stores.tokens_of(number) for number, key in enumerate(IDS)}
    target_stores.write_part(store, "0", tokens)
    target_stores.write_index(store, captions=lambda number: CAPTIONS[IDS[number]])
    return root, rows


def as_folder(rows, place, name=lambda key: key, depth=True):
    """Renders rows as a folder of pictures."""
    for key in IDS:
        folder = place / name(key)
        folder.mkdir(parents=True)
        mine = [rows[f"{key}/{view:03d}"] for view in range(len(AROUND))]
        for row in mine:
            (folder / f"{row['view']:03d}.png").write_bytes(row["png"])
            if depth:
                (folder / f"{row['view']:03d}_depth.png").write_bytes(row["depth"])
        (folder / "transforms.json").write_text(json.dumps(transforms(mine)))
    return place


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


def prompted(settings, name, true, images=None, suffix=""):
    """The evaluation's prompts in a collection of their own, some with a picture: (store, settings of it)."""
    rows = [
        ("", {"id": key, "prompt": one.caption, "index": one.index, "caption_index": one.caption_index})
        for key, one in true.asked.items()
    ]
    for (_, row), image in zip(rows, images or (), strict=False):
        row["image"] = str(image)
    store, own = prompts.collection_of(settings, name, len(rows))
    prompts.run(own, store, of_rows(rows, settings.store, suffix))
    return store, own


def require_stated(result, *conditions):
    """A result says something wherever these conditions look, and at least one of them looks."""
    asked = [each for name in conditions for each in bundled().conditions[name] if is_asked(result, each)]
    assert asked and {each.at for each in asked if None in stated(result, each.at)} <= UNRENDERED


def opened(file):
    with Image.open(file) as image:
        return image.copy()


def similarity(pictures, reference):
    """100 x the mean cosine of CLIP's features of pictures with those of one picture."""
    extractor = ClipFeatures("random-small", device="cpu")
    views, one = extractor.features(pictures), extractor.features([reference])
    return 100 * float(torch.nn.functional.cosine_similarity(views, one).mean())


def test_objects_of_trellis_are_measured_by_the_keys_of_their_prompts_against_the_pictures_that_it_saw(
    toys, tmp_path, caplog
):
    settings = settings_of(toys[0])
    true, _ = true_objects(settings)
    Image.new("RGB", (32, 32), (200, 40, 10)).save(tmp_path / "own.png")  # of the prompt, and not what is seen
    store, own = prompted(settings, "seen", true, [tmp_path / "own.png"])
    first, *_, last = true.asked
    renders = trellis.renders_of(own, "toys")
    del renders[last]
    trellis.run(plan_of(store, "trellis-image", views=(4, 8, 20), renders=renders, glb=False), own)
    assert list(shaped(settings, true)) == ["trellis:seen:trellis-image"]
    assert not list(shaped(settings, replace(true, asked=dict(list(true.asked.items())[1:]))))
    assert "collection seen is not measured: of the 2 prompts of this evaluation it has 2, and 1 others" in caplog.text
    (result,), _ = of_objects(settings, "trellis:seen", "TRELLIS-image of renders")
    assert result.counts == {"missing": 1, "ok": 2} and result.protocol["generated"]["kind"] == "shapes-trellis-image"
    assert all(cell.samples == 2 and math.isfinite(cell.value) for cell in result.cells.values())
    require_stated(result, "image_baseline", "frames", "frames_4", "frames_8", "clouds", "captions")
    (made_with,) = result.protocol["generated"]["shapes"].values()
    ssaa = {"4": 1, "8": 4, "20": 4}
    assert made_with == {"model": "microsoft/TRELLIS-image-large", "resolution": 64, "black": False, "ssaa": ssaa}
    assert result.protocol["generated"]["prompts"] == {"suffix": "", "other_texts": 0}
    assert result.cells["fd_inception"].value > 1e-3
    rows = {row["key"]: row for row in pq.read_table(result.folder / "samples.parquet").to_pylist()}
    assert "no picture in the renders" in rows[last]["reason"] and rows[last]["clip_text"] is None
    place = store.folder / "objects" / "trellis-image" / first
    chosen = renders[first][json.loads((place / "object.json").read_text())["view"]]
    png = read_rows(chosen.part, [chosen.row], ["png"]).column("png")[0].as_py()
    views = [opened(place / "views8" / f"{view:03d}.png") for view in range(8)]
    assert rows[first]["clip_image"] == pytest.approx(similarity(views, opened(io.BytesIO(png))), rel=1e-5)
    with pytest.raises(ValueError, match="has objects of trellis-image: say trellis:seen:METHOD"):
        of_objects(settings, "trellis:seen:gap3d", "")
    for part in store.folder.glob("shapes-trellis-image/*/*.parquet"):
        if part.name != MANIFEST:
            part.unlink()
    assert not list(shaped(settings, true))
    assert "shapes-trellis-image of collection seen is not measured: it is not complete" in caplog.text


def test_objects_of_prompts_with_a_suffix_say_it_and_with_what_trellis_they_were_made(toys):
    settings = settings_of(toys[0], count=2, views=(4,))
    true, _ = true_objects(settings)
    one, other = true.asked
    store, own = prompted(settings, "suffixed", true, suffix="On black.")
    plan = plan_of(store, "trellis-text", glb=False)
    trellis.run(plan, own)
    assert list(shaped(settings, true)) == ["trellis:suffixed:trellis-text"]
    (result,), _ = of_objects(settings, "trellis:suffixed", "")
    require_stated(result, "text_baseline", "frames", "frames_4", "captions")
    assert result.protocol["generated"]["prompts"] == {"suffix": "On black.", "other_texts": 0}
    (first,) = shapes_of(store, plan.stage, {one, other}).values()
    assert first == {"model": "microsoft/TRELLIS-text-xlarge", "resolution": 64, "black": False, "ssaa": {"4": 1}}
    # What a row is known by is what is said of it, whatever runs came later; what nobody kept is not said.
    again = replace(plan, wanted=replace(plan.wanted, resolution=32, turntables=(Turntable(4, ssaa=2),)))
    store.save_settings(plan.stage, again.digest, asdict(again.wanted))
    assert shapes_of(store, plan.stage, {one, other}) == result.protocol["generated"]["shapes"]
    trellis.run(again, own)
    (second,) = shapes_of(store, plan.stage, {one}).values()
    assert second == {**first, "resolution": 32, "ssaa": {"4": 2}}
    for path in (store.folder / "settings").glob(f"{plan.stage}-*"):
        path.unlink()
    assert list(shapes_of(store, plan.stage, {one}).values()) == [{"model": "microsoft/TRELLIS-text-xlarge"}]
    assert trellis.run(again, own).count("computed") == 0
    assert list(shapes_of(store, plan.stage, {one}).values()) == [second]


def test_a_suffix_of_all_prompts_is_no_part_of_the_texts_and_more_that_one_prompt_asks_for_is():
    captions = {"a": ["a long chair", "chair"], "b": ["a car"]}

    def texts(for_a, for_b):
        rows = {"a": {"prompt": for_a, "caption_index": 1}, "b": {"prompt": for_b, "caption_index": 0}}
        return list(texts_of(rows, suffix_of(captions, rows)).values())

    assert texts("chair on black.", "a car on black.") == ["chair", "a car"]
    assert texts("chair with golden legs", "a car of glass") == ["chair with golden legs", "a car of glass"]
    assert texts("chair", "a car of glass") == ["chair", "a car of glass"]
    assert texts("an armchair on black.", "a car on black.") == ["an armchair", "a car"]  # was described anew since


def test_pictures_of_prompts_are_what_was_seen_else_their_own():
    own, render = Picture(Path("p"), 0, "image", "of the prompt"), Picture(Path("r"), 3, "png", "of a render")
    seen = {"a": "", "b": "of a render", "c": "of the prompt", "d": "gone", "e": ""}
    found = pictures_of(seen, {"a": own, "b": own, "c": own, "d": own}, {"of a render": render})
    assert found == {"a": own, "b": render, "c": own}


def test_a_prompt_whose_picture_cannot_be_looked_at_is_a_row_and_costs_no_other(toys, tmp_path):
    settings = settings_of(toys[0])
    true, _ = true_objects(settings)
    for name, size in (("fine.png", (32, 32)), ("strip.png", (1, 400_000))):  # which CLIP would have to enlarge
        Image.new("RGB", size).save(tmp_path / name)
    store, _ = prompted(settings, "strips", true, [tmp_path / "strip.png", tmp_path / "fine.png"])
    own = {}
    for shard in store.shards:
        for key, row in store.manifest("prompts", shard).rows.items():
            own[key] = Picture(store.shard("prompts", shard) / str(row.part), row.part_row, "image", row.digest)
    first, second, *_ = true.asked
    pictures = {key: own[key] for key in (first, second)}
    texts = references(settings, {key: one.caption for key, one in true.asked.items()}, pictures, ["clip_large"])
    found = measure([Pair(key, key) for key in true.asked], true.side, true.side, texts)
    assert found.cells["clip_image"].samples == 1 and found.cells["clip_text_large"].samples == len(true.asked)
    rows = {sample.key: sample for sample in found.samples}
    assert rows[first].status == "too_large" and "image of its prompt" in rows[first].reason
    assert rows[second].status == "ok"


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
