"""Pictures of the dataset's images as their encoder saw them, and of their tokens."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gap3d.features.images import decode_png, normalise, to_pixels
from gap3d.records import Failure
from gap3d.settings import TargetSettings

QUALITY = 80
KEPT = 256  # pixels of a side
FOREGROUND = 0.5  # covered share of a patch from which on it belongs to the object


def as_seen(picture: bytes, settings: TargetSettings, pixel_limit: int) -> NDArray[np.uint8] | None:
    """What the encoder saw, uint8 [S, S, 3]; None where the picture can't be read."""
    try:
        pixels = to_pixels(picture, settings, pixel_limit)
    except Failure:
        return None
    black, white = (normalise(np.full((1, 1, 3), value, dtype=np.uint8)) for value in (0, 255))
    return np.rint(255 * np.clip((pixels - black) / (white - black), 0, 1)).astype(np.uint8).transpose(1, 2, 0)


def foreground(
    picture: bytes, settings: TargetSettings, grid: tuple[int, int], pixel_limit: int
) -> NDArray[np.bool_] | None:
    """Patches that the object covers, bool [rows, columns]; None where a picture has no transparency.

    The silhouette goes the way of the picture, in white: whatever crops and resizes the one does so to the other.
    """
    try:
        rgba = decode_png(picture, pixel_limit)
    except Failure:
        return None
    if rgba[..., 3].min() == 255 or settings.alpha == "drop":
        return None
    rgba[..., :3] = 255
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG", compress_level=1)
    seen = as_seen(file.getvalue(), settings, pixel_limit)
    if seen is None:
        return None
    small = Image.fromarray(seen[..., 0]).resize((grid[1], grid[0]), Image.Resampling.BOX)
    return np.asarray(small) >= 255 * FOREGROUND


def shrunk(rgb: NDArray[np.uint8], side: int = KEPT) -> NDArray[np.uint8]:
    """The same of at most ``side`` pixels."""
    image = Image.fromarray(rgb)
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(image)


def small(rgb: NDArray[np.uint8], side: int) -> str:
    """uint8 [H, W, 3] as a data URI, a WebP of at most ``side`` pixels."""
    return uri(Image.fromarray(shrunk(rgb, side)), "WEBP", quality=QUALITY, method=2)


def exact(pixels: NDArray[np.uint8]) -> str:
    """uint8 [H, W, 3 or 4] as a data URI, a PNG of a pixel a token: the browser enlarges it."""
    return uri(Image.fromarray(pixels), "PNG", optimize=True)


def uri(image: Image.Image, kind: str, **options: Any) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def mosaic(images: Sequence[tuple[NDArray[np.uint8], ...]], label: str = "", tile: int = 96, columns: int = 4) -> bytes:
    """A JPEG of rows of pictures side by side: each image, then its tokens, enlarged without smoothing.

    Args:
        images: pictures uint8 [H, W, 3] of one image each; the first is one of pixels, the others of tokens.
        label: a warning above them.
        tile: pixels of a picture.
        columns: images in a row.
    """
    across = max((len(each) for each in images), default=1)
    columns = max(1, min(columns, len(images)))
    gap, band = 10, 26 if label else 0
    size = (columns * (across * tile + gap) + gap, band + -(-len(images) // columns) * (tile + gap) + gap)
    sheet = Image.new("RGB", size, (22, 24, 29))
    if label:
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((0, 0, size[0], band), fill=(179, 38, 30))
        draw.text((gap, 4), label, fill=(255, 255, 255), font=ImageFont.load_default(16))
    for index, one in enumerate(images):
        left = gap + index % columns * (across * tile + gap)
        top = band + gap + index // columns * (tile + gap)
        for number, rgb in enumerate(one):
            how = Image.Resampling.NEAREST if number else Image.Resampling.BICUBIC
            sheet.paste(Image.fromarray(rgb).resize((tile, tile), how), (left + number * tile, top))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=82)
    return file.getvalue()
