"""The picture of a training's curves."""

import io
import json
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from gap3d.training.curves import POINTS, curves_of, draw, pooled, smoothed


def write(path, count, validations=4):
    """Metrics of so many steps."""
    rng = np.random.default_rng(count)
    lines = []
    for step in range(1, count + 1):
        loss = 0.3 + math.exp(-3 * step / count) * rng.lognormal(0, 0.1)
        numbers = {"loss": loss, "loss_patches": loss, "loss_cls": loss / 2, "loss_registers": loss / 3}
        rates = {
            "learning_rate": 1e-4 * (1 - step / (count + 1)),
            "gradient_norm": rng.lognormal(),
            "samples_per_s": 9.0,
        }
        lines.append({"step": step, "kind": "train", **numbers, **rates})
        if step % max(1, count // validations) == 0:
            held_out = {"loss": loss, "cosine_patches": 1 - loss, "mse_patches": loss, "norm_ratio_patches": 1.0}
            lines.append({"step": step, "kind": "validation", **held_out})
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def shown(png):
    """The picture as it is looked at, RGB [height, 800, 3]."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    return np.asarray(picture.resize((800, picture.height * 800 // picture.width)))


def red(pixels):
    """Number of pure red pixels."""
    return int((pixels.astype(int) @ [1, -1, -1] > 150).sum())


@pytest.mark.parametrize("count", [1, 30, 50_000])
def test_one_line_and_fifty_thousand_make_a_picture_of_the_same_size_with_curves_in_every_panel(tmp_path, count):
    png = draw(write(tmp_path / "metrics.jsonl", count))
    pixels = shown(png)
    assert len(png) < 200_000  # it lies in the event log
    assert pixels.shape[:2] == shown(draw(write(tmp_path / "other.jsonl", 7))).shape[:2]
    # Eight panels in four rows and two columns, without their frames.
    height, width = pixels.shape[0] // 4, 400
    for row in range(4):
        for column in range(2):
            panel = pixels[row * height : (row + 1) * height, column * width : (column + 1) * width][30:-30, 50:-10]
            assert (panel.min(-1) < 140).any(), (row, column)


def test_a_number_that_is_none_is_marked_red(tmp_path):
    path = write(tmp_path / "metrics.jsonl", 20)
    before = red(shown(draw(path)))
    with path.open("a") as file:
        file.write('{"step": 21, "kind": "train", "loss": null, "gradient_norm": null}\n')
    assert before == 0
    assert red(shown(draw(path))) > 50


def test_cosines_lie_on_a_linear_axis_and_losses_that_span_as_much_on_a_logarithmic_one(tmp_path, monkeypatch):
    scales = {}

    def noted(axes, name, **how):
        scales[name] = axes.get_yscale()
        return titled(axes, name, **how)

    titled = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", noted)
    lines = [
        {"step": step, "kind": "validation", **dict.fromkeys(("loss", "cosine_patches", "mse_patches"), value)}
        for step, value in enumerate((0.01, 0.5, 0.9), 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    draw(tmp_path / "metrics.jsonl")
    assert scales == {"loss": "log", "held out: cosine": "linear", "held out: squared error": "log"}


def test_a_title_is_taken_as_it_is(tmp_path):
    path = write(tmp_path / "metrics.jsonl", 3)
    assert shown(draw(path, "UNTRAINED $x_")).shape[0] > shown(draw(path)).shape[0]


def test_where_there_is_nothing_to_draw_that_is_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match="holds no step yet"):
        draw(path)


def test_pooling_keeps_the_mean_and_every_spike():
    rng = np.random.default_rng(0)
    values = rng.normal(size=12_345)
    values[7777] = 50.0
    steps, mean, least, most = pooled(np.arange(12_345.0), values)
    assert len(mean) == POINTS
    assert (least.min(), most.max()) == (values.min(), 50.0)
    assert 7777 - 31 < steps[most.argmax()] < 7777 + 31
    assert mean.mean() == pytest.approx(values.mean(), abs=2e-3)
    few = pooled(np.arange(9.0), values[:9])
    assert all(np.array_equal(each, values[:9]) for each in few[1:])


def test_smoothing_moves_no_line_and_no_edge_and_takes_noise_away():
    line = np.linspace(1.0, 3.0, 101)
    assert smoothed(np.ones(50), 5) == pytest.approx(np.ones(50))
    assert smoothed(line, 6)[6:-6] == pytest.approx(line[6:-6])
    assert smoothed(line, 0) == pytest.approx(line)
    edge = smoothed(np.repeat([0.0, 1.0], 50), 6)
    assert edge[49] + edge[50] == pytest.approx(1.0)  # not shifted to either side
    noise = np.random.default_rng(1).normal(size=1000)
    assert smoothed(noise, 20).std() < 0.3 * noise.std()


def test_texts_and_unknown_numbers_in_a_line_harm_nothing():
    curves = curves_of([{"step": 1, "kind": "train", "loss": 1.0, "note": "text", "new": 2}])
    assert set(curves) == {("train", "loss"), ("train", "new")}
