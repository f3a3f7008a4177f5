"""Pixels: rounding and framing."""

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from picture_files import noise, png
from PIL import Image

from gap3d.features.images import (
    IMAGENET,
    Normalisation,
    describe,
    normalise,
    resize_and_crop,
    to_pixels,
    to_uint8,
    trellis_square,
    without_alpha,
)
from gap3d.records import Failure, Status
from gap3d.settings import TargetSettings

LIMIT = 10_000


def test_compositing_rounds_to_nearest_for_every_colour_and_alpha():
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    rgba = np.stack([colour, colour, colour, alpha], axis=-1).astype(np.uint8)
    exact = [[round(Fraction(c * a, 255)) for a in range(256)] for c in range(256)]
    image = Image.fromarray(rgba)
    np.testing.assert_array_equal(np.array(without_alpha(image, "black"))[..., 0], exact)
    np.testing.assert_array_equal(np.array(without_alpha(image, "drop"))[..., 0], colour)


def test_pictures_without_alpha_are_not_touched():
    image = Image.fromarray(noise(5, 4)[..., :3])
    for alpha in ("black", "drop"):
        assert without_alpha(image, alpha) is image


def test_resizing_is_pillows_bicubic():
    image = Image.fromarray(noise(64, 64)[..., :3])
    expected = image.resize((70, 70), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.array(resize_and_crop(image, 70, LIMIT)), np.array(expected))
    np.testing.assert_array_equal(np.array(resize_and_crop(expected, 70, LIMIT)), np.array(expected))


@pytest.mark.parametrize(("height", "width"), [(30, 61), (61, 30), (28, 29), (100, 28)])
def test_the_shorter_side_decides_and_the_centre_stays(height, width):
    ramp = np.linspace(0, 255, max(height, width)).astype(np.uint8)
    along = (
        np.broadcast_to(ramp[:width], (height, width))
        if width > height
        else np.broadcast_to(ramp[:height, None], (height, width))
    )
    out = np.array(resize_and_crop(Image.fromarray(np.repeat(along[..., None], 3, axis=-1)), 28, LIMIT))
    assert out.shape == (28, 28, 3)
    assert abs(float(out.mean()) - float(along.mean())) < 6  # the centre of a ramp is its mean


def test_normalisation():
    rgb = noise(5, 4)[..., :3]
    out = normalise(rgb)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    expected = (rgb / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    np.testing.assert_allclose(out, expected.transpose(2, 0, 1), atol=1e-6)
    other = Normalisation((0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
    expected = (rgb / 255 - [0.1, 0.2, 0.3]) / [1, 0.5, 0.25]
    np.testing.assert_allclose(normalise(rgb, other), expected.transpose(2, 0, 1), atol=1e-6)


def test_pixels_as_the_processor_of_transformers_makes_them():
    from transformers import BitImageProcessorPil

    rgba = noise(64, 90)
    rgba[..., 3] = 255
    processor = BitImageProcessorPil(
        size={"shortest_edge": 70},
        resample=3,
        crop_size={"height": 70, "width": 70},
        image_mean=IMAGENET.mean,
        image_std=IMAGENET.std,
    )
    expected = processor(Image.fromarray(rgba[..., :3]), return_tensors="pt")["pixel_values"][0]
    ours = to_pixels(png(rgba), TargetSettings(encoder="random-small", image_size=70), LIMIT)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)


def test_a_long_strip_is_refused_before_it_grows():
    """By its shorter side, a line of pixels would be made as many times higher, and as many times longer."""
    strip = Image.new("RGB", (LIMIT, 1))
    with pytest.raises(Failure, match="10000 x 1 pixels would grow to 280000 x 28") as caught:
        resize_and_crop(strip, 28, LIMIT)
    assert caught.value.status is Status.TOO_LARGE
    assert resize_and_crop(Image.new("RGB", (20, 1)), 14, LIMIT).size == (14, 14)


def trellis_written_plainly(rgba, size):
    """TRELLIS's dataset of conditions, on arrays: the box of what is seen, the square, Lanczos, colours times alpha."""
    rows, columns = np.nonzero(rgba[..., 3] > 0)
    left, top, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
    centre = ((left + right) / 2, (top + bottom) / 2)
    half = max(right - left, bottom - top) / 2 * 1.2
    box = [int(centre[0] - half), int(centre[1] - half), int(centre[0] + half), int(centre[1] + half)]
    image = Image.fromarray(rgba).crop(box).resize((size, size), Image.Resampling.LANCZOS)
    colours = np.array(image.convert("RGB"), dtype=np.float32) / np.float32(255)
    alpha = np.array(image.getchannel(3), dtype=np.float32) / np.float32(255)
    return colours * alpha[..., None]


def on_nothing(height, width, top, left, bottom, right):
    rgba = noise(height, width, seed=height)
    seen = np.zeros((height, width), bool)
    seen[top:bottom, left:right] = True
    rgba[..., 3] = np.where(seen, np.maximum(rgba[..., 3], 1), 0)
    return rgba


@pytest.mark.parametrize(
    "rgba",
    [
        on_nothing(64, 64, 20, 24, 40, 41),
        on_nothing(64, 64, 0, 0, 20, 64),  # the square leaves the picture on three sides
        on_nothing(40, 90, 3, 71, 39, 90),
        on_nothing(64, 64, 31, 10, 32, 50),  # one row
        on_nothing(33, 33, 0, 0, 33, 33),
    ],
)
def test_the_crop_of_trellis_is_its_own_arithmetic(rgba):
    settings = TargetSettings(image_size=56, crop="trellis")
    expected = (trellis_written_plainly(rgba, 56) - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
    ours = to_pixels(png(rgba), settings, LIMIT)
    np.testing.assert_array_equal(ours, expected.transpose(2, 0, 1))
    assert to_uint8(png(rgba), settings, LIMIT).shape == (56, 56, 4)


def test_the_crop_of_trellis_with_alpha_dropped_keeps_the_colours():
    rgba = on_nothing(64, 64, 20, 24, 40, 41)
    dropped = to_uint8(png(rgba), TargetSettings(image_size=56, crop="trellis", alpha="drop"), LIMIT)
    kept = to_uint8(png(rgba), TargetSettings(image_size=56, crop="trellis"), LIMIT)
    np.testing.assert_array_equal(dropped, kept[..., :3])


def test_a_picture_without_alpha_is_framed_by_black_in_the_crop_of_trellis():
    seen = to_uint8(png(np.full((50, 50, 3), 200, np.uint8)), TargetSettings(image_size=56, crop="trellis"), LIMIT)
    assert (seen[28, 28] == [200, 200, 200, 255]).all()
    assert (seen[:3, :, 3] == 0).all()


def test_the_object_fills_the_square_whatever_its_place_and_size():
    settings = TargetSettings(image_size=56, crop="trellis")
    for box in [(10, 10, 30, 30), (40, 30, 60, 50), (0, 0, 60, 60)]:
        rgba = on_nothing(64, 64, *box)
        rgba[..., 3] = np.where(rgba[..., 3] > 0, 255, 0)
        rows, columns = np.nonzero(to_uint8(png(rgba), settings, LIMIT)[..., 3] > 127)
        for side in (np.ptp(rows), np.ptp(columns)):
            assert abs(side / 56 - 1 / 1.2) < 0.07


def test_nothing_to_crop_to_is_a_row():
    for rgba in (on_nothing(9, 9, 0, 0, 0, 0), on_nothing(9, 9, 4, 4, 5, 5)):
        with pytest.raises(Failure, match="nothing to crop to") as caught:
            to_uint8(png(rgba), TargetSettings(image_size=56, crop="trellis"), LIMIT)
        assert caught.value.status is Status.EMPTY_RENDER
    with pytest.raises(Failure, match="the square about the object has") as caught:
        trellis_square(Image.new("RGBA", (LIMIT, 1), "white"), LIMIT)
    assert caught.value.status is Status.TOO_LARGE


def test_every_kind_of_file_makes_pixels():
    rgb = Image.fromarray(np.full((64, 80, 3), (200, 100, 50), np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        rgb.save(buffer, kind)
        seen = to_uint8(buffer.getvalue(), TargetSettings(image_size=56), LIMIT)
        assert seen.shape == (56, 56, 3)
        assert np.abs(seen.astype(int) - (200, 100, 50)).max() < 6


def test_the_description_tells_settings_apart():
    found = {
        str(describe(TargetSettings(crop=crop, alpha=alpha), IMAGENET))
        for crop in ("none", "trellis")
        for alpha in ("black", "drop")
    }
    assert len(found) == 4
    assert describe(TargetSettings(), IMAGENET) == {
        "alpha": "composited on black, 8 bit",
        "resize": "shorter side to 518, bicubic (Pillow)",
        "crop": "centre 518 x 518",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def test_alpha_matters_unless_dropped():
    rgba = noise(70, 70)
    black, drop = (
        to_pixels(png(rgba), TargetSettings(image_size=70, alpha=alpha), LIMIT) for alpha in ("black", "drop")
    )
    assert black.shape == drop.shape == (3, 70, 70)
    assert torch.from_numpy(black).dtype == torch.float32
    np.testing.assert_array_equal(drop, normalise(rgba[..., :3]))
    assert black.mean() < drop.mean()
