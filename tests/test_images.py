"""Pixels: rounding, framing and hostile files."""

import io
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gap3d.features.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    decode_png,
    normalise,
    resize_and_crop,
    to_pixels,
    without_alpha,
)
from gap3d.records import Failure, Status
from gap3d.settings import TargetSettings

LIMIT = 10_000


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG") if mode is None else Image.fromarray(array).convert(mode).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width, height, depth=8, colour=6):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)


def test_a_png_comes_back_as_it_was():
    rgba = noise(7, 5)
    np.testing.assert_array_equal(decode_png(png(rgba), LIMIT), rgba)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "1"])
def test_other_modes_become_rgba(mode):
    rgba = noise(4, 6)
    rgba[..., 3] = 255
    expected = Image.fromarray(rgba).convert(mode).convert("RGBA")
    np.testing.assert_array_equal(decode_png(png(rgba, mode), LIMIT), np.array(expected))


def test_the_size_is_refused_before_decoding():
    bomb = header(100_000, 100_000) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(Failure, match="100000 x 100000") as caught:
        decode_png(bomb, 16384 * 16384)
    assert caught.value.status is Status.TOO_LARGE


def test_the_limit_is_ours_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    assert decode_png(png(noise(10, 10)), 100).shape == (10, 10, 4)
    with pytest.raises(Failure):
        decode_png(png(noise(10, 10)), 99)


GOOD = png(noise(8, 8))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        GOOD[:20],
        GOOD[:40],
        GOOD[:-30],
        GOOD[:60] + b"\0" * 20 + GOOD[80:],
        header(0, 8) + chunk(b"IEND", b""),
        header(8, 8) + chunk(b"IEND", b""),
        header(8, 8, 16, 0) + chunk(b"IDAT", zlib.compress(bytes(8 * 17))) + chunk(b"IEND", b""),
        b"\xff\xd8\xff\xe0" + GOOD,
    ],
)
def test_garbage_is_an_import_error(data):
    with pytest.raises(Failure) as caught:
        decode_png(data, LIMIT)
    assert caught.value.status is Status.IMPORT_ERROR


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8))
@settings(deadline=None)
def test_a_damaged_png_fails_as_a_row_or_decodes(place, junk):
    damaged = GOOD[:place] + junk + GOOD[place + len(junk) :]
    try:
        assert decode_png(damaged, LIMIT).shape[2] == 4
    except Failure as failure:
        assert failure.status in (Status.IMPORT_ERROR, Status.TOO_LARGE)


def test_compositing_rounds_to_nearest_for_every_colour_and_alpha():
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    rgba = np.stack([colour, colour, colour, alpha], axis=-1).astype(np.uint8)
    exact = [[round(Fraction(c * a, 255)) for a in range(256)] for c in range(256)]
    np.testing.assert_array_equal(without_alpha(rgba, "black")[..., 0], exact)
    np.testing.assert_array_equal(without_alpha(rgba, "drop")[..., 0], colour)


def test_resizing_is_pillows_bicubic():
    rgb = noise(64, 64)[..., :3]
    expected = np.array(Image.fromarray(rgb).resize((70, 70), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_and_crop(rgb, 70), expected)
    np.testing.assert_array_equal(resize_and_crop(expected, 70), expected)


@pytest.mark.parametrize(("height", "width"), [(30, 61), (61, 30), (28, 29), (100, 28)])
def test_the_shorter_side_decides_and_the_centre_stays(height, width):
    ramp = np.linspace(0, 255, max(height, width)).astype(np.uint8)
    along = (
        np.broadcast_to(ramp[:width], (height, width))
        if width > height
        else np.broadcast_to(ramp[:height, None], (height, width))
    )
    out = resize_and_crop(np.repeat(along[..., None], 3, axis=-1), 28)
    assert out.shape == (28, 28, 3)
    assert abs(float(out.mean()) - float(along.mean())) < 6  # the centre of a ramp is its mean


def test_normalisation():
    rgb = noise(5, 4)[..., :3]
    out = normalise(rgb)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    expected = (rgb / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(out, expected.transpose(2, 0, 1), atol=1e-6)


def test_pixels_as_the_processor_of_transformers_makes_them():
    from transformers import BitImageProcessorPil

    rgba = noise(64, 90)
    rgba[..., 3] = 255
    processor = BitImageProcessorPil(
        size={"shortest_edge": 70},
        resample=3,
        crop_size={"height": 70, "width": 70},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    expected = processor(Image.fromarray(rgba[..., :3]), return_tensors="pt")["pixel_values"][0]
    ours = to_pixels(png(rgba), TargetSettings(encoder="random-small", image_size=70), LIMIT)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)


def test_alpha_matters_unless_dropped():
    rgba = noise(70, 70)
    black, drop = (
        to_pixels(png(rgba), TargetSettings(image_size=70, alpha=alpha), LIMIT) for alpha in ("black", "drop")
    )
    assert black.shape == drop.shape == (3, 70, 70)
    assert torch.from_numpy(black).dtype == torch.float32
    np.testing.assert_array_equal(drop, normalise(rgba[..., :3]))
    assert black.mean() < drop.mean()
