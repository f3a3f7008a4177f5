"""The paper's numbers: which are known, when one of ours may be set against them, and how a user completes them."""

import json
from typing import get_args

import pytest
from evaluation_results import STATED, published_file, result, stated, stating

from gap3d.catalog import parse_captions
from gap3d.evaluation.difference import difference
from gap3d.evaluation.published import bundled, with_file
from gap3d.evaluation.queries import Which
from gap3d.evaluation.result import Cell
from gap3d.evaluation.runs import read_sheet
from gap3d.trellis.seeds import caption_of
from pipelines.trellis import MODELS


def test_only_the_number_whose_row_and_column_are_known_is_transcribed():
    values = {name: table.values for name, table in bundled().tables.items()}
    assert values == {"1": {}, "2": {}, "3": {"toys4k": {"trellis-image": {"fd_pointnet": 25.86}}}, "4": {}}


def test_a_number_is_set_against_the_papers_only_where_both_are_of_one_thing(tmp_path):
    paper = with_file(published_file(tmp_path))

    def of(name="cls_r10", number="2", **fields):
        return difference(paper, number, name, result(step=1, **fields))

    assert of(cells={"cls_r10": Cell(91.9, samples=40)}).value == pytest.approx(1.0)
    for other, why in (
        ({"collection": "demo"}, "none of the paper's datasets"),
        ({"model": "mine"}, "no such row"),
        ({"trained": False}, "UNTRAINED"),
        ({"cells": {"cls_r10": Cell(None, note="too few")}}, "too few"),
        ({"cells": {}}, "not measured"),
        ({"name": "patches_r10"}, "see Table 2 of arXiv"),
        ({"name": "cls_r1"}, "not sorted"),
        ({"name": "patches_r1"}, "not sorted"),
        ({"name": "cls_r5", "quirks": ("float16_vectors",)}, "not sorted"),
        ({"name": "somebodys"}, "no such column"),
        ({"protocol": stating("retrieval", captions="longest")}, "other captions (longest)"),
        ({"name": "mse_cls", "number": "1", "table": "alignment"}, "not measured"),
        (
            {"name": "mse_cls", "number": "1", "table": "alignment", "cells": {"mse_cls": Cell(1.0)}},
            "40 samples, the published number of 5,000",
        ),
    ):
        found = of(**other)
        assert found.value is None and why in found.why
    bent = {"table": "generation", "model": "trellis-image", "collection": "toys4k"}
    bent["cells"] = {"fd_pointnet": Cell(26.0, samples=1249)}
    assert "bent" in of("fd_pointnet", "3", **bent, counts={"ok": 1250}).why
    as_released = of("fd_pointnet", "3", **bent, counts={"ok": 1249, "timeout": 1}, quirks=("ray_depth",))
    assert as_released.value == pytest.approx(0.14)
    few = of("fd_pointnet", "3", **bent, counts={"ok": 50, "timeout": 1200}, quirks=("ray_depth",))
    assert few.value is None and "50 of 1,250 samples" in few.why


@pytest.mark.parametrize("captions", ["by key", "mine.csv", ""])
def test_captions_that_nobody_knows_are_not_those_of_the_paper(tmp_path, captions):
    mine = result(protocol=stating("retrieval", captions=captions))
    found = difference(with_file(published_file(tmp_path)), "2", "cls_r10", mine)
    assert found.value is None and "captions" in found.why


@pytest.mark.parametrize(
    ("checks", "why"),
    [
        (
            {"database": {"passed": True, "measured": 20, "expected": 20}},
            "among 20 images, the published number among 5,",
        ),
        ({"database": {"passed": True, "measured": 118_287, "expected": 118_287}}, "among 118,287 images"),
        ({}, "does not say among how many images"),
    ],
)
def test_a_recall_in_another_database_is_not_set_against_the_papers(tmp_path, checks, why):
    found = difference(with_file(published_file(tmp_path)), "2", "cls_r10", result(checks=checks))
    assert found.value is None and why in found.why


def test_a_collection_of_training_images_is_not_the_validation_set():
    paper = bundled().tables["1"]
    assert [paper.dataset_of(name) for name in ("coco", "coco-alpha", "coco-train", "coco_train2017", "toys4k")] == [
        *("coco", "coco", "", "", "toys4k")
    ]


@pytest.mark.parametrize("name", ["identity", "encoder"])
def test_a_number_whose_tokens_are_not_what_they_say_is_not_set_against_the_papers(tmp_path, name):
    paper = with_file(published_file(tmp_path))
    for passed in (True, False):
        checks = {**result().checks, name: {"passed": passed, "note": "two languages"}}
        found = difference(paper, "2", "cls_r10", result(checks=checks))
        assert (found.value is not None) == passed and ("two languages" in found.why) != passed


def test_a_number_of_some_of_the_samples_alone_is_not_set_against_the_papers(tmp_path):
    cells = {"cls_r10": Cell(50.0, samples=10)}
    found = difference(with_file(published_file(tmp_path)), "2", "cls_r10", result(cells=cells))
    assert found.value is None and "of 10 of 40 samples" in found.why


OTHERWISE = [
    ("retrieval", "cls_r10", "protocol.predicted.sampling.steps", 8, "steps of the sampler: 8 here, 30 in the paper"),
    ("retrieval", "cls_r10", "protocol.predicted.sampling.guidance", 1.0, "guidance: 1.0 here, 3 in the paper"),
    ("retrieval", "cls_r10", "protocol.predicted.sampling.interval", [0.2, 1.0], "interval"),
    ("retrieval", "cls_r10", "protocol.true.encoder.image_size", 224, "pixels of the targets: 224 here, 518"),
    ("retrieval", "cls_r10", "protocol.true.encoder.family", "DINOv2", "encoder of the targets"),
    ("alignment", "mse_cls", "protocol.predicted.sampling.steps", 8, "steps of the sampler: 8 here"),
    ("generation", "clip_text", "protocol.generated.tokens.sampling.steps", 30, "steps of the sampler: 30 here, 50"),
    ("generation", "clip_text", "protocol.generated.kind", "retrieved", "kind of objects: retrieved here"),
    (
        *("generation", "clip_text", "protocol.extractors.clip.generated.extractor.source"),
        *("openai/clip-vit-large-patch14", "weights of CLIP: openai/clip-vit-large-patch14 here"),
    ),
    (
        *("generation", "clip_text", "protocol.extractors.clip.generated.extractor.extractor"),
        *("CLIP ViT/14, 24 layers", "in the paper"),
    ),
    ("generation", "fd_dinov2", "protocol.extractors.dinov2.true.extractor.width", 768, "DINOv2: 768 here, 1024"),
    ("generation", "fd_dinov2", "settings.evaluation.dinov2_size", 224, "pixels that DINOv2 sees: 224 here, 518"),
    ("generation", "fd_dinov2", "protocol.true.renders.0.resolution", 64, "pixels of the true renders: 64 here, 512"),
    ("generation", "fd_dinov2", "protocol.true.renders.0.samples", 4, "samples of the true renders: 4 here, 128"),
    ("generation", "fd_dinov2", "protocol.objects.shuffle", 1, "shuffle: 1 here, 42 in the paper"),
    ("generation", "fd_dinov2", "protocol.generated.shapes.0.resolution", 128, "generated frames: 128 here, 512"),
    ("generation", "fd_dinov2", "protocol.generated.shapes.0.ssaa.4", 4, "ssaa of the 4 generated frames: 4 here, 1"),
    ("generation", "clip_text", "protocol.generated.shapes.0.ssaa.8", 1, "ssaa of the 8 generated frames: 1 here, 4"),
    ("generation", "fd_pointnet", "protocol.generated.shapes.0.ssaa.20", 1, "ssaa of the 20 generated frames: 1 here"),
    ("generation", "fd_pointnet", "protocol.generated.shapes.0.resolution", 128, "generated frames: 128 here, 512"),
    ("generation", "fd_dinov2", "protocol.generated.shapes.0.model", "mine/TRELLIS", "TRELLIS: mine/TRELLIS here"),
    (
        "generation",
        "fd_dinov2",
        "protocol.generated.prompts.suffix",
        "On black.",
        "suffix of the prompts: On black. here, none in",
    ),
    ("generation", "fd_dinov2", "protocol.generated.prompts.other_texts", 3, "evaluation's captions: 3 here, 0"),
    ("generation", "fd_pointnet", "settings.evaluation.points", 256, "points of a cloud: 256 here, 4000"),
]


@pytest.mark.parametrize("unsaid", [False, True], ids=["otherwise", "unsaid"])
@pytest.mark.parametrize(("table", "name", "at", "value", "why"), OTHERWISE)
def test_what_was_measured_with_other_weights_or_settings_is_not_set_against_the_papers(
    tmp_path, table, name, at, value, why, unsaid
):
    number, dataset = {"alignment": ("1", "coco"), "retrieval": ("2", "coco"), "generation": ("3", "toys4k")}[table]
    paper = with_file(published_file(tmp_path, f"[tables.{number}.values.{dataset}.pretrained]\n{name} = 1"))
    good = paper.tables[number].datasets[dataset].samples or 40
    fields = {"cells": {name: Cell(2.0, samples=good)}, "counts": {"ok": good}, "collection": dataset}
    fields["quirks"] = ("ray_depth", "inception_input")
    assert difference(paper, number, name, result(table, **fields)).value == 1
    said = json.loads(json.dumps({"protocol": STATED[table], "settings": STATED["settings"]}))
    *places, last = at.split(".")
    node = said
    for each in places:
        node = node[each]
    if unsaid:
        del node[last]
    else:
        node[last] = value
    found = difference(paper, number, name, result(table, **fields, **said))
    assert found.value is None and ("does not state its" if unsaid else why) in found.why


def toys(name, model, **generated):
    """A result of one column of Table 3's collection, whose objects were made as the paper's but for these."""
    made = stated("generation", model)["generated"]
    said = stating("generation", generated={**made, **generated})
    quirks = ("ray_depth", "inception_input")
    cells = {name: Cell(2.0, samples=1250)}
    return result("generation", model, "toys4k", cells, samples=1250, protocol=said, quirks=quirks)


def shapes(of, **fields):
    """What a baseline of TRELLIS states, but for these."""
    (said,) = stated("generation", of)["generated"]["shapes"].values()
    return {"0": {**said, **fields}}


BASELINES = ("trellis-image", "trellis-text")


@pytest.mark.parametrize("model", BASELINES)
def test_a_baseline_of_other_weights_frames_or_texts_is_not_set_against_the_papers(tmp_path, model):
    paper = with_file(published_file(tmp_path, f"[tables.3.values.toys4k.{model}]\nfd_dinov2 = 1"))
    black = model == "trellis-image"

    def of(**generated):
        return difference(paper, "3", "fd_dinov2", toys("fd_dinov2", model, **generated))

    assert of(shapes=shapes(model, black=black)).value == 1
    local = "/models/" + shapes(model)["0"]["model"].partition("/")[2]
    assert of(shapes=shapes(model, black=black, model=local)).value == 1
    other = MODELS[BASELINES[1 - BASELINES.index(model)]]
    for given, why in (
        ({"shapes": shapes(model, black=black, model=other)}, f"weights of TRELLIS: {other} here"),
        ({"shapes": shapes(model, black=black, model="/models/mine")}, "weights of TRELLIS: /models/mine here"),
        ({"shapes": shapes(model, black=black, resolution=128)}, "128 here, 512"),
        ({"shapes": shapes(model, black=black, ssaa={"4": 2})}, "ssaa of the 4 generated frames: 2 here, 1"),
        ({"shapes": {**shapes(model, black=black), "1": {"model": MODELS[model]}}}, "does not state its pixels"),
        ({"shapes": {}}, "does not state its weights of TRELLIS"),
        ({"shapes": shapes(model, black=black), "prompts": {"suffix": "Small.", "other_texts": 0}}, "suffix"),
        ({"shapes": shapes(model, black=black), "prompts": {}}, "does not state its suffix"),
    ):
        found = of(**given)
        assert found.value is None and why in found.why


@pytest.mark.parametrize(("name", "black"), [("fd_dinov2", True), ("clip_image", True), ("fd_pointnet", False)])
def test_the_image_baseline_sees_black_for_the_papers_pictures_and_alpha_for_its_clouds(tmp_path, name, black):
    paper = with_file(published_file(tmp_path, f"[tables.3.values.toys4k.trellis-image]\n{name} = 1"))
    for given in (True, False):
        mine = toys(name, "trellis-image", shapes=shapes("trellis-image", black=given))
        found = difference(paper, "3", name, mine)
        assert (found.value == 1) == (given == black) and ("pictures on black" in found.why) == (given != black)


def test_a_row_of_table_4_is_of_prompts_with_its_suffix_alone(tmp_path):
    rows = {"pretrained": "", "pretrained-prompted": run_of("pretrained-prompted", "table4").suffix}
    text = "\n".join(f"[tables.4.values.toys4k.{row}]\nfd_dinov2 = 1" for row in rows)
    paper = with_file(published_file(tmp_path, text))
    for row, own in rows.items():
        for suffix in (*rows.values(), "On black."):
            mine = toys("fd_dinov2", row, prompts={"suffix": suffix, "other_texts": 0})
            found = difference(paper, "4", "fd_dinov2", mine)
            assert (found.value == 1) == (suffix == own) and ("suffix of the prompts" in found.why) == (suffix != own)
        assert "does not state" in difference(paper, "4", "fd_dinov2", toys("fd_dinov2", row, prompts={})).why


@pytest.mark.parametrize(
    ("renders", "why"),
    [({"0": {"resolution": 512}}, ""), ({"0": {"resolution": 64}}, "64 here, 512"), ({}, "does not state its pixels")],
)
def test_clouds_of_a_collection_of_meshes_are_of_renders_as_large_as_the_papers(tmp_path, renders, why):
    mine = toys("fd_pointnet", "trellis-text", kind="collection", shapes={}, prompts={}, renders=renders)
    paper = with_file(published_file(tmp_path, "[tables.3.values.toys4k.trellis-text]\nfd_pointnet = 1"))
    found = difference(paper, "3", "fd_pointnet", mine)
    assert why in found.why and (found.value is None) == bool(why)


def test_any_models_row_without_a_sampler_of_ours_is_set_against_the_papers(tmp_path):
    paper = with_file(published_file(tmp_path, "[tables.2.values.coco.blip3o]\ncls_r10 = 1"))
    mine = result(model="BLIP3-o", protocol={"captions": "all"}, cells={"cls_r10": Cell(2.0, samples=40)})
    assert difference(paper, "2", "cls_r10", mine).value == 1


def test_captions_are_those_that_queries_know():
    known = [table.datasets[name].captions for table in bundled().tables.values() for name in table.datasets]
    assert set(known) - {""} == set(get_args(Which))


def test_a_users_file_lies_over_the_transcribed_numbers_and_leaves_the_others(tmp_path):
    text = (
        "[tables.3.values.toys4k.trellis-image]\nclip_image = 80\n[tables.4.values.toys4k.pretrained]\nfd_dinov2 = 1.5"
    )
    merged = with_file(published_file(tmp_path, text))
    assert merged.tables["3"].values == {"toys4k": {"trellis-image": {"fd_pointnet": 25.86, "clip_image": 80}}}
    assert merged.tables["4"].value("toys4k", "pretrained", "fd_dinov2") == 1.5
    assert bundled().tables["4"].values == {}
    over = with_file(published_file(tmp_path, "[tables.3.values.toys4k.trellis-image]\nfd_pointnet = 26"))
    assert over.tables["3"].values == {"toys4k": {"trellis-image": {"fd_pointnet": 26}}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tables.5.values.coco.pretrained]\ncls_r1 = 1", "no table '5': choose of 1, 2, 3, 4"),
        ("[tables.2.values.imagenet.pretrained]\ncls_r1 = 1", "no dataset 'imagenet': choose of coco, toys4k"),
        ("[tables.2.values.coco.mine]\ncls_r1 = 1", "no row 'mine': choose of pretrained"),
        ("[tables.2.values.coco.pretrained]\ncls_r2 = 1", "no column 'cls_r2': choose of cls_r1"),
        ("[tables.3.values.toys4k.pretrained]\nclip_text_large = 1", "no column 'clip_text_large'"),
        ("[tables.2.values.coco.pretrained]\ncls_r1 = true", "True is no number"),
        ("[tables.2.values.coco.pretrained]\ncls_r1 = nan", "nan is no number"),
        ("[tables.2.values.coco.pretrained]\ncls_r1 = '9'", "'9' is no number"),
        ("[tables.2.values.coco.pretrained]\ncls_r1 = 909", "909 is beyond 0 and 100"),
        ("[tables.2.values]\ncoco = 1", "a table of names is wanted"),
        ("[tables.2.rows.mine]\ntitle = 'x'", "tables.2 has no entry 'rows': choose of values"),
        ("tables = 3", "a table of names is wanted"),
        ("source = 'arXiv 1'", "the tables here are of arXiv"),
        ("number = 1", "no entry 'number'"),
        ("[tables", "is no TOML"),
    ],
)
def test_a_users_file_that_names_no_cell_or_no_number_is_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=r"mine\.toml") as refused:
        with_file(published_file(tmp_path, text))
    assert words in str(refused.value)


def test_differences_of_the_database_and_the_predictions_are_told_wherever_both_are_used():
    first, second = (bundled().tables[number].differs for number in ("1", "2"))
    for word in ("alpha", "Noise"):
        (sentence,) = (each for each in first if word in each)
        assert sentence in second


def test_the_same_draw_of_a_list_that_is_sorted_by_length_is_another_caption():
    told = ["a chair", "a red chair of wood", "a red chair"]
    here = parse_captions(json.dumps(told))
    draws = [caption_of(index, len(told)) for index in range(20)]
    assert any(here[draw] != told[draw] for draw in draws)
    assert any("sorted by length" in sentence for sentence in bundled().tables["3"].differs)


def test_what_the_image_baseline_sees_is_told_of_its_row():
    (sentence,) = bundled().tables["3"].rows["trellis-image"].differs
    assert "without alpha" in sentence and not run_of("trellis-image").black


def run_of(name, sheet="table3"):
    """A run of a sheet."""
    (found,) = (run for run in read_sheet(sheet).runs if run.name == name)
    return found
