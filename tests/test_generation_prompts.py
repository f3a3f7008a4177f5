"""Table 3 of what prompts were made into: TRELLIS's objects, suffixes, and the pictures that belong to prompts."""

import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_trellis import plan_of
from toys import made, settings_of

from gap3d.evaluation.difference import is_asked, stated
from gap3d.evaluation.generation import Pair, measure
from gap3d.evaluation.published import bundled
from gap3d.manifest import NAME as MANIFEST
from gap3d.metrics.extractors.clip import ClipFeatures
from gap3d.parts import read_rows
from gap3d.prompts import of_rows
from gap3d.trellis.turntable import Turntable
from pipelines import prompts, trellis
from pipelines.evaluation.objects import true_objects
from pipelines.evaluation.references import Picture, references
from pipelines.evaluation.sources import pictures_of, texts_of
from pipelines.evaluation.stated import shapes_of, suffix_of
from pipelines.generation_metrics import of_objects, shaped

UNRENDERED = {f"protocol.true.renders.*.{name}" for name in ("resolution", "samples")}  # toys' renders are drawn here


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """(root of the store, its renders)."""
    root = tmp_path_factory.mktemp("toys")
    return root, made(root)


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
