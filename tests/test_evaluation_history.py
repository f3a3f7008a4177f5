"""A table over checkpoints: complete, in order, and of any names."""

import io
import math

import pytest
from evaluation_results import HOSTILE, result
from PIL import Image

from gap3d.evaluation.history import FOLDED, history_png, history_table, points_of
from gap3d.evaluation.result import Cell


def test_the_short_history_is_ordered_ends_with_the_last_and_is_not_folded():
    steps = [3000, 100, 2000, *range(5000, 90_000, 1000)]
    rows = [result(model="[a](b) | <b>" * 9, step=step) for step in steps]
    text = history_table(rows)
    assert len(text) < FOLDED and "<" not in text and "[" not in text
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    shown = [int(line[1].replace(",", "")) for line in lines]
    assert shown == sorted(steps)[-len(shown) :] and len(shown) > 3
    assert f"{len(steps) - len(shown)} earlier rows" in text
    last = next(each for each in rows if each.checkpoint["step"] == shown[-1])
    assert [float(number) for number in lines[-1][2:]] == [
        pytest.approx(last.cells[name].value, abs=0.005) for name in ("cls_r10", "patches_r10")
    ]
    assert "| on | model |" in history_table([result(), result(collection="demo")])
    assert history_table([]) == "nothing is measured yet"


def test_curves_go_from_step_to_step_and_take_the_last_measurement_of_each():
    rows = [result(step=step) for step in (300, 100, 200, 100)]
    last = {each.checkpoint["step"]: each.cells["cls_r1"] for each in rows}
    assert points_of(rows, "cls_r1", steps=True) == [
        (step, last[step].value, last[step].low, last[step].high) for step in (100, 200, 300)
    ]
    without = [result(model="other") for _ in range(2)]
    assert [(place, value) for place, value, *_ in points_of(without, "cls_r1", steps=True)] == [
        (None, without[-1].cells["cls_r1"].value)
    ]
    assert points_of([result(cells={"cls_r1": Cell(math.inf)}, step=1)], "cls_r1", steps=True) == []


def test_a_history_of_any_names_and_gaps_is_drawn_and_of_no_numbers_refused():
    rows = [result(step=1), result(model=HOSTILE, cells={"$x$": Cell(1.0, math.nan, None)}), result(cells={})]
    assert Image.open(io.BytesIO(history_png(rows, HOSTILE))).width == 1200
    with pytest.raises(ValueError, match="no history"):
        history_png(rows[2:], "")
