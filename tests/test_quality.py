"""Quality gates: each sees its own fault and no other."""

import io

import numpy as np
import pytest
from PIL import Image

from gap3d.quality import GATES, flags, look, verdict
from gap3d.settings import QualitySettings

SETTINGS = QualitySettings()


def png(rgba):
    file = io.BytesIO()
    Image.fromarray(rgba.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def good():
    """A disc with a gradient, well inside the frame."""
    y, x = np.mgrid[:64, :64]
    rgba = np.zeros((64, 64, 4))
    rgba[..., 0], rgba[..., 1], rgba[..., 2] = 40 + 2 * x, 60 + 2 * y, 90
    rgba[..., 3] = 255 * ((x - 32) ** 2 + (y - 32) ** 2 < 20**2)
    return rgba


def changed(**parts):
    rgba = good()
    for name, value in parts.items():
        rgba[..., "rgba".index(name)] = value
    return rgba


def gates(rgba, settings=SETTINGS, missing=(), earlier=()):
    return flags(look(png(rgba), 10**6), settings, missing, earlier)


def edge():
    rgba = good()
    rgba[30:34, :, 3] = 255
    return rgba


def speck():
    rgba = good()
    rgba[..., 3] = 0
    rgba[30:33, 30:33, 3] = 255
    return rgba


@pytest.mark.parametrize(
    ("rgba", "expected"),
    [
        (good(), []),
        (np.concatenate([np.minimum(good()[..., :3], 8), good()[..., 3:]], axis=2), ["all_black"]),
        (changed(r=100, g=120, b=140), ["one_colour"]),
        (edge(), ["cut_off"]),
        (speck(), ["coverage"]),
        (changed(a=255), ["cut_off", "coverage"]),
    ],
    ids=["good", "black", "flat", "edge", "speck", "full"],
)
def test_a_gate_sees_its_own_fault_alone(rgba, expected):
    found = gates(rgba)
    if "all_black" in expected:
        assert found[0] == "all_black"  # what is black may be of one colour as well
        assert not set(found) - {"all_black", "one_colour"}
    else:
        assert found == expected


def test_the_colour_of_what_is_clear_does_not_count():
    rgba = changed(r=100, g=120, b=140)
    rgba[..., 0] = np.where(rgba[..., 3] == 0, np.arange(64), rgba[..., 0])  # noise where nothing is seen
    assert gates(rgba) == ["one_colour"]


def test_missing_textures_and_equal_pixels_are_flagged():
    digest = look(png(good()), 10**6).digest
    assert gates(good(), missing=["wood.png"], earlier=[digest]) == ["missing_textures", "duplicate_view"]
    other = good()
    other[32, 32, 0] += 1
    assert gates(other, earlier=[digest]) == []


def test_coverage_is_the_share_of_pixels_that_are_not_clear():
    rgba = np.zeros((10, 10, 4))
    assert look(png(rgba), 100).coverage == 0
    rgba[:3, :, 3] = 1
    assert look(png(rgba), 100).coverage == pytest.approx(0.3)


def test_the_strictest_action_wins():
    settings = QualitySettings(cut_off="retry", coverage="drop")
    assert verdict([], settings) == "flag"
    assert verdict(["all_black"], settings) == "flag"
    assert verdict(["cut_off", "all_black"], settings) == "retry"
    assert verdict(["cut_off", "coverage"], settings) == "drop"


def test_every_gate_is_a_setting():
    assert set(GATES) < set(QualitySettings.model_fields)
