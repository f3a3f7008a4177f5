"""Picture files: every kind as Pillow reads it, and hostile ones as rows."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import chunk, noise, png, png_header, png_of, saved, webp_of
from PIL import Image

from gap3d.features.decoding import MOST_SCANS, SCAN, decode_image, decode_png, webp_size
from gap3d.features.images import to_uint8
from gap3d.records import Failure, Status
from gap3d.settings import TargetSettings

LIMIT = 10_000


def opened(data):
    """The picture as Pillow's own front door opens it."""
    return Image.open(io.BytesIO(data))


def status_of(data, limit=LIMIT, decode=decode_image):
    with pytest.raises(Failure) as caught:
        decode(data, limit)
    return caught.value.status


def test_a_png_comes_back_as_it_was():
    rgba = noise(7, 5)
    np.testing.assert_array_equal(decode_png(png(rgba), LIMIT), rgba)
    np.testing.assert_array_equal(np.array(decode_image(png(rgba), LIMIT)), rgba)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "1"])
def test_other_modes_of_a_png_become_rgba(mode):
    rgba = noise(4, 6)
    rgba[..., 3] = 255
    expected = Image.fromarray(rgba).convert(mode).convert("RGBA")
    np.testing.assert_array_equal(decode_png(png(rgba, mode), LIMIT), np.array(expected))


GRADIENT = Image.fromarray(np.add.outer(np.arange(24), 3 * np.arange(32))[..., None].repeat(3, 2).astype(np.uint8))
PALETTE = GRADIENT.quantize(16)
FILES = {
    "png": saved(GRADIENT, "PNG"),
    "png, grey": saved(GRADIENT.convert("L"), "PNG"),
    "png, one bit": saved(GRADIENT.convert("1"), "PNG"),
    "png, palette": saved(PALETTE, "PNG"),
    "png, 16-bit colour": png_of(2, 1, b"\0" + bytes(range(12)), 16, 2),
    "jpeg": saved(GRADIENT, "JPEG", quality=90),
    "jpeg, progressive": saved(GRADIENT, "JPEG", progressive=True),
    "jpeg, grey": saved(GRADIENT.convert("L"), "JPEG"),
    "jpeg, cmyk": saved(GRADIENT.convert("CMYK"), "JPEG"),
    "jpeg, turned by exif": saved(
        GRADIENT, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "webp": saved(GRADIENT, "WEBP"),
    "webp, lossless": saved(GRADIENT, "WEBP", lossless=True),
    "png, animated": saved(GRADIENT, "PNG", save_all=True, append_images=[GRADIENT.rotate(180)]),
}
MOVING_WEBP = saved(GRADIENT, "WEBP", save_all=True, append_images=[GRADIENT.rotate(180)], lossless=True)
CLEAR = {
    "png": saved(Image.fromarray(noise(9, 7)), "PNG"),
    "png, grey with alpha": saved(Image.fromarray(noise(9, 7)).convert("LA"), "PNG"),
    "png, palette with a clear colour": saved(PALETTE, "PNG", transparency=3),
    "png, palette with alphas": saved(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "png, colour with a clear colour": saved(GRADIENT, "PNG", transparency=(6, 6, 6)),
    "webp": saved(Image.fromarray(noise(9, 7)), "WEBP", lossless=True, exact=True),
}


@pytest.mark.parametrize("kind", FILES)
def test_pictures_without_alpha_are_what_the_released_training_reads(kind):
    image = decode_image(FILES[kind], LIMIT)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.array(image), np.array(opened(FILES[kind]).convert("RGB")))


@pytest.mark.parametrize("kind", CLEAR)
def test_pictures_with_alpha_keep_it(kind):
    image = decode_image(CLEAR[kind], LIMIT)
    assert image.mode == "RGBA"
    np.testing.assert_array_equal(np.array(image), np.array(opened(CLEAR[kind]).convert("RGBA")))
    assert np.array(image)[..., 3].min() < 255


def test_exif_does_not_turn_a_picture():
    from PIL import ImageOps

    data = FILES["jpeg, turned by exif"]
    assert ImageOps.exif_transpose(opened(data)).size == (24, 32)  # so others would
    assert decode_image(data, LIMIT).size == (32, 24)


def test_an_animation_is_its_first_frame():
    for data in (FILES["png, animated"], MOVING_WEBP):
        assert opened(data).n_frames == 2
        np.testing.assert_array_equal(np.array(decode_image(data, LIMIT).convert("RGB")), np.array(GRADIENT))


def test_sixteen_bit_colour_is_its_high_byte_and_sixteen_bit_grey_is_refused():
    image = decode_image(FILES["png, 16-bit colour"], LIMIT)
    np.testing.assert_array_equal(np.array(image), [[[0, 2, 4], [6, 8, 10]]])
    grey = saved(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "PNG")
    assert status_of(grey) is Status.UNSUPPORTED


def test_what_a_file_is_called_does_not_matter():
    """Nothing but its bytes is asked for; a GIF is refused even though Pillow could read it."""
    assert status_of(saved(GRADIENT, "GIF")) is Status.IMPORT_ERROR
    assert status_of(saved(GRADIENT, "BMP")) is Status.IMPORT_ERROR
    assert status_of(FILES["jpeg"], decode=decode_png) is Status.IMPORT_ERROR


def bombs():
    """Files that claim more pixels than anyone has, by kind."""
    yield png_header(100_000, 100_000) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    jpeg = bytearray(FILES["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    yield bytes(jpeg)
    bits = 16383 | 16383 << 14
    yield webp_of(b"VP8L", b"\x2f" + struct.pack("<I", bits) + bytes(100))
    yield webp_of(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(100))
    yield webp_of(b"VP8X", bytes(4) + b"\xff\xff\xff" * 2 + bytes(100))


@pytest.mark.parametrize("bomb", list(bombs()))
def test_the_size_is_refused_before_decoding(bomb):
    import tracemalloc

    tracemalloc.start()
    assert status_of(bomb, 200_000_000) is Status.TOO_LARGE
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind.startswith("webp")])
def test_the_header_of_a_webp_tells_its_size(kind):
    assert webp_size(FILES[kind]) == GRADIENT.size


def test_the_header_of_a_webp_with_alpha_tells_its_size():
    lossy = saved(Image.fromarray(noise(9, 7)), "WEBP", quality=50)
    assert lossy[12:16] == b"VP8X"
    assert webp_size(lossy) == (7, 9)


def test_the_limit_is_ours_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    for kind in ("png", "jpeg"):
        assert decode_image(FILES[kind], 32 * 24).size == (32, 24)
        assert status_of(FILES[kind], 32 * 24 - 1) is Status.TOO_LARGE
        assert to_uint8(FILES[kind], TargetSettings(image_size=28, crop="trellis"), LIMIT).shape == (28, 28, 4)
    assert status_of(FILES["webp"]) is Status.TOO_LARGE  # Pillow's own holds there as well, at 179 million


def test_a_jpeg_of_endless_scans_is_refused():
    """Each would be gone over for every pixel."""
    data = FILES["jpeg, progressive"]
    place = data.index(SCAN)
    assert status_of(data[:place] + SCAN * (MOST_SCANS + 1) + data[place:]) is Status.UNSUPPORTED


LITTLE_MEMORY = """
import resource, sys
from gap3d.features.decoding import decode_image
from gap3d.records import Failure
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
try:
    decode_image(open(sys.argv[1], "rb").read(), 10**9)
except Failure as failure:
    print(failure.status)
"""


def test_a_picture_that_memory_does_not_hold_is_a_row(tmp_path):
    side = 16_000
    rows = zlib.compress(bytes(side * (1 + 3 * side)), 1)
    data = png_header(side, side, 8, 2) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "large.png").write_bytes(data)
    command = [sys.executable, "-c", LITTLE_MEMORY, str(tmp_path / "large.png")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    assert said == "out_of_memory\n"


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
        png_header(0, 8) + chunk(b"IEND", b""),
        png_header(8, 8) + chunk(b"IEND", b""),
        FILES["jpeg"][:3],
        FILES["jpeg"][:200],
        FILES["jpeg"][:-20],
        FILES["webp"][:12],
        FILES["webp"][:25],
        FILES["webp"][:-20],
    ],
)
def test_garbage_is_an_import_error(data):
    assert status_of(data) is Status.IMPORT_ERROR
    assert status_of(data, decode=decode_png) is Status.IMPORT_ERROR


@given(st.sampled_from([*FILES.values(), *CLEAR.values(), MOVING_WEBP]), st.data())
@settings(deadline=None, max_examples=300)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage, and goes on
def test_a_damaged_picture_fails_as_a_row_or_decodes(whole, draw):
    data = bytearray(whole)
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, len(data) - 1))
        junk = draw.draw(st.binary(min_size=1, max_size=8))
        data[place : place + len(junk)] = junk
    try:
        assert decode_image(bytes(data), LIMIT).mode in ("RGB", "RGBA")
    except Failure as failure:
        assert failure.status in (Status.IMPORT_ERROR, Status.TOO_LARGE, Status.UNSUPPORTED)
