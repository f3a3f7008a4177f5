"""A table over checkpoints: complete, in order, and of any names."""

import io
import math

import numpy as np
import pytest
from evaluation_results import HOSTILE, result
from PIL import Image

from gap3d.evaluation.history import FOLDED, around, far_off, history_png, history_table, points_of
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


def test_an_axis_leaves_room_on_both_sides_of_its_steps():
    for steps in ([100], [0], [7, 7], [2000, 100, 300]):
        low, high = around(steps)
        assert low < min(steps) and max(steps) < high and min(steps) - low == pytest.approx(high - max(steps))


def test_only_models_that_flatten_all_others_are_far_off_and_never_more_than_half():
    good = {("a",): [30.0, 31.0], ("b",): [25.0, 33.0], ("c",): [28.0]}
    assert far_off(good) == set()
    assert far_off({**good, ("bad",): [4000.0]}) == {("bad",)}
    assert far_off({**good, ("bad",): [4000.0, 3900.0], ("worse",): [-9000.0]}) == {("bad",), ("worse",)}
    assert far_off({("a",): [30.0], ("bad",): [4000.0]}) == set()
    assert far_off({("a",): [30.0], ("b",): [30.0], ("bad",): [4000.0]}) == set()


def drawn(*results):
    """The size and the pixels of a history's picture."""
    picture = Image.open(io.BytesIO(history_png(results, "t"))).convert("RGB")
    return picture.size, picture.tobytes()


def test_equal_numbers_of_two_models_are_both_seen_and_a_model_without_numbers_is_not_told():
    cells = {"cls_r1": Cell(40.0)}
    first, second = result(model="a", step=100, cells=cells), result(model="b", step=100, cells=cells)
    both = drawn(first, second)
    assert drawn(first, second, result(model="c", step=900_000, cells={"cls_r1": Cell(None)})) == both
    seen = [
        sum(r < 90 and b > 150 for r, _, b in zip(each[::3], each[1::3], each[2::3], strict=True))
        for _, each in (both, drawn(first))
    ]
    assert seen[0] > 1.6 * seen[1] > 0


@pytest.mark.parametrize("step", [None, 300])
def test_how_far_off_a_far_model_is_changes_only_the_number_at_its_arrow(step):
    near = [result(model=str(n), step=100 * n, cells={"cls_r1": Cell(30.0 + n)}) for n in (1, 2, 3)]
    pictures = [
        drawn(*near, result(model="far", step=step, cells={"cls_r1": Cell(value)})) for value in (4000.0, 9000.0)
    ]
    assert pictures[0][0] == pictures[1][0]
    different = sum(abs(one - other) > 48 for one, other in zip(*(pixels for _, pixels in pictures), strict=True))
    assert 0 < different < 600 * 3  # a digit is 15 x 20 pixels; the palette of all moves a little


def test_models_without_steps_are_drawn_at_the_times_of_their_measurements():
    size, pixels = drawn(*(result(model=str(n), cells={"cls_r1": Cell(float(n))}) for n in (900, 1, 2, 3)))
    reds, blues = (np.frombuffer(pixels, np.uint8).reshape(*size[::-1], 3)[..., of] for of in (0, 2))
    columns = np.flatnonzero(((reds < 90) & (blues > 150)).any(axis=0))
    assert len(columns) > 40 and columns.max() - columns.min() > 0.3 * size[0]
