"""Depth pictures: there and back, and what other tools read."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gap3d.depth import decode_depth, depth_range, encode_depth
from gap3d.records import Failure, Status
from gap3d.settings import Limits

STEP = np.sqrt(3) / 65535


@given(seed=st.integers(0, 2**32 - 1), radius=st.floats(0.9, 12))
def test_depth_comes_back_within_half_a_step_and_the_background_stays_infinite(seed, radius):
    rng = np.random.default_rng(seed)
    low, high = depth_range(radius)
    depth = rng.uniform(low, high, (9, 7)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.3] = np.inf
    back = decode_depth(encode_depth(depth, low, high), low, high)
    assert back.dtype == np.float32 and np.array_equal(np.isinf(back), np.isinf(depth))
    seen = np.isfinite(depth)
    # A step at most at the very end, whose own value is the background's.
    assert np.abs(back[seen] - depth[seen]).max(initial=0) <= STEP * 1.01 + 1e-6
    inner = seen & (depth < high - 2 * STEP)
    assert np.abs(back[inner] - depth[inner]).max(initial=0) <= STEP / 2 + 1e-6


def test_the_range_is_that_of_the_sphere_about_the_object():
    assert depth_range(2.0) == pytest.approx((2 - np.sqrt(3) / 2, 2 + np.sqrt(3) / 2))
    assert depth_range(0.1)[0] == 0.0


def test_a_plain_reader_decodes_it_by_the_formula_of_transforms_json():
    depth = np.array([[1.5, 2.0], [2.5, np.inf]], np.float32)
    low, high = depth_range(2.0)
    values = np.asarray(Image.open(io.BytesIO(encode_depth(depth, low, high)))).astype(float)
    np.testing.assert_allclose((low + values / 65535 * (high - low))[0], [1.5, 2.0], atol=STEP)
    assert values[1, 1] == 65535


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_another_picture_is_no_depth(mode):
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, "PNG")
    with pytest.raises(Failure) as caught:
        decode_depth(file.getvalue(), 1.0, 2.0)
    assert caught.value.status is Status.IMPORT_ERROR
    with pytest.raises(Failure):
        decode_depth(file.getvalue()[:40], 1.0, 2.0)


def test_a_depth_picture_that_unfolds_to_too_much_is_refused_by_its_header():
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file, "PNG")
    head = struct.pack(">II", 60_000, 60_000) + file.getvalue()[24:29]
    bomb = file.getvalue()[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + file.getvalue()[33:]
    for data, limit in ((bomb, Limits().pixels), (file.getvalue(), 15)):
        with pytest.raises(Failure, match="at most") as caught:
            decode_depth(data, 1.0, 2.0, limit)
        assert caught.value.status is Status.TOO_LARGE


@pytest.mark.parametrize("place", range(30, 66, 4))
def test_a_damaged_depth_picture_is_a_failure_wherever_the_damage_is(place):
    data = bytearray(encode_depth(np.full((4, 4), 2.0, np.float32), 1.0, 3.0))
    data[place] ^= 0xFF
    with contextlib.suppress(Failure):
        assert decode_depth(bytes(data), 1.0, 3.0).shape == (4, 4)
