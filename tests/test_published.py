"""The paper's numbers: which are known, when one of ours may be set against them, and how a user completes them."""

from typing import get_args

import pytest
from evaluation_results import published_file, result

from gap3d.evaluation.published import CAPTIONS, bundled, difference, with_file
from gap3d.evaluation.queries import Which
from gap3d.evaluation.result import Cell


def test_only_the_number_whose_row_and_column_are_known_is_transcribed():
    values = {name: table.values for name, table in bundled().tables.items()}
    assert values == {"1": {}, "2": {}, "3": {"toys4k": {"trellis-image": {"fd_pointnet": 25.86}}}, "4": {}}


def test_a_number_is_set_against_the_papers_only_where_both_are_of_one_thing(tmp_path):
    paper = with_file(published_file(tmp_path))

    def of(name="cls_r10", number="2", **fields):
        return difference(paper, number, name, result(step=1, **fields))

    for captions in ("all", "by key", "mine.csv"):
        found = of(cells={"cls_r10": Cell(91.9)}, protocol={"captions": captions})
        assert found.value == pytest.approx(1.0)
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
        ({"protocol": {"captions": "longest"}}, "other captions (longest) than the published number (all)"),
        ({"name": "mse_cls", "number": "1", "table": "alignment"}, "not measured"),
        (
            {"name": "mse_cls", "number": "1", "cells": {"mse_cls": Cell(1.0)}},
            "40 samples, the published number of 5,000",
        ),
    ):
        found = of(**other)
        assert found.value is None and why in found.why
    bent = {"model": "trellis-image", "collection": "toys4k", "cells": {"fd_pointnet": Cell(26.0)}}
    assert "bent" in of("fd_pointnet", "3", **bent, counts={"ok": 1250}).why
    as_released = of("fd_pointnet", "3", **bent, counts={"ok": 1249, "timeout": 1}, quirks=("ray_depth",))
    assert as_released.value == pytest.approx(0.14)
    few = of("fd_pointnet", "3", **bent, counts={"ok": 50, "timeout": 1200}, quirks=("ray_depth",))
    assert few.value is None and "50 of 1,250 samples" in few.why


def test_captions_are_those_that_queries_know():
    assert set(CAPTIONS) == set(get_args(Which))
    known = [table.datasets[name].captions for table in bundled().tables.values() for name in table.datasets]
    assert set(known) - {""} == set(CAPTIONS)


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
