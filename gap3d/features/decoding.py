"""Picture files, of which nothing is believed: PNG, JPEG and WebP, told apart by what they hold.

Pixels are those of Pillow, as the released training reads them: the first frame of an animation, no rotation by
EXIF, CMYK by Pillow's plain formula, the high byte of 16-bit colour.
"""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from gap3d.records import Failure, Status

PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
JPEG_START = b"\xff\xd8\xff"
SCAN = b"\xff\xda"
MOST_SCANS = 256  # of a JPEG: every scan of a hostile one goes over all of its pixels; encoders write a dozen
MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK"})  # eight bits or fewer per channel
# What Pillow raises on damaged files: its own Image.open catches the like.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    struct.error,
    zlib.error,
)


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        opened: reads the header; decodes nothing yet.
        size: width and height, where opening alone takes memory for them.
    """

    opened: Callable[[io.BytesIO], ImageFile.ImageFile]
    size: Callable[[bytes], tuple[int, int]] | None = None


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height in a PNG's header."""
    width, height = struct.unpack_from(">II", data, len(PNG_START))
    return width, height


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in a WebP's header: opening one takes memory for the whole canvas."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


# Not Image.open: it would try every format that Pillow knows, and its limit, a global of the process, is below ours.
FORMATS: Mapping[str, Format] = {
    "PNG": Format(PngImagePlugin.PngImageFile, png_size),
    "JPEG": Format(JpegImagePlugin.JpegImageFile),
    "WebP": Format(WebPImagePlugin.WebPImageFile, webp_size),
}


def format_of(data: bytes) -> str | None:
    """PNG, JPEG or WebP by its first bytes, or none of them."""
    if data.startswith(PNG_START):
        return "PNG"
    if data.startswith(JPEG_START):
        return "JPEG"
    return "WebP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def decode_image(data: bytes, pixel_limit: int) -> Image.Image:
    """Decode a PNG, JPEG or WebP, believing nothing it says, its name least of all.

    Args:
        data: the file.
        pixel_limit: most pixels it may have; checked in the header, before any decoding.

    Returns:
        A decoded picture of mode RGB, or RGBA (straight alpha) where the file has transparency.

    Raises:
        Failure: ``too_large`` beyond the limit; ``unsupported`` for 16-bit grey (a height or depth map, which Pillow
            would saturate) and for JPEGs of absurdly many scans; ``out_of_memory``; ``import_error`` for anything else
            that is not whole.
    """
    kind = format_of(data)
    if kind is None:
        raise Failure(Status.IMPORT_ERROR, f"not a PNG, JPEG or WebP: {len(data)} bytes that start with {data[:8]!r}")
    if kind == "JPEG" and data.count(SCAN) > MOST_SCANS:
        raise Failure(Status.UNSUPPORTED, f"a JPEG of {data.count(SCAN)} scans, the limit is {MOST_SCANS}")
    form = FORMATS[kind]
    try:
        if form.size:
            check_size(kind, form.size(data), pixel_limit)
        image = form.opened(io.BytesIO(data))
        check_size(kind, image.size, pixel_limit)
        if image.mode not in MODES:
            raise Failure(Status.UNSUPPORTED, f"a {kind} of mode {image.mode}, not of 8 bits per channel")
        image.load()
        wanted = "RGBA" if image.has_transparency_data else "RGB"
        return image if image.mode == wanted else image.convert(wanted)
    except Image.DecompressionBombError as error:  # Pillow asks of WebP alone
        raise Failure(Status.TOO_LARGE, f"a {kind} beyond what Pillow reads: {error}") from error
    except MemoryError as error:
        raise Failure(Status.OUT_OF_MEMORY, f"a {kind} of {len(data)} bytes: no memory for its pixels") from error
    except DAMAGE as error:
        raise Failure(Status.IMPORT_ERROR, f"a damaged {kind}: {error}") from error


def check_size(kind: str, size: tuple[int, int], pixel_limit: int) -> None:
    """Refuse a picture that would be too large.

    Raises:
        Failure: ``too_large``.
    """
    width, height = size
    if width * height > pixel_limit:
        raise Failure(Status.TOO_LARGE, f"a {kind} of {width} x {height} pixels, the limit is {pixel_limit}")


def decode_png(data: bytes, pixel_limit: int) -> NDArray[np.uint8]:
    """Decode a render.

    Args:
        data: the file.
        pixel_limit: see ``decode_image``.

    Returns:
        uint8 [H, W, 4], straight alpha.

    Raises:
        Failure: see ``decode_image``; ``import_error`` if it is no PNG.
    """
    if format_of(data) != "PNG":
        raise Failure(Status.IMPORT_ERROR, f"not a PNG: {len(data)} bytes that start with {data[:8]!r}")
    image = decode_image(data, pixel_limit)
    return np.array(image if image.mode == "RGBA" else image.convert("RGBA"))
