"""From PNG bytes to the pixels an encoder sees (specification 3, decisions 11 and 13).

As the processor of the released training code: shorter side to the encoder's size with Pillow's
bicubic filter, centre crop, [0, 1], ImageNet mean and deviation. No crop to the object.
"""

import io
import struct
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from gap3d.records import Failure, Status
from gap3d.settings import TargetSettings

PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})  # eight bits or fewer per channel


def decode_png(data: bytes, pixel_limit: int) -> NDArray[np.uint8]:
    """Decode a PNG, believing nothing it says.

    Args:
        data: the file.
        pixel_limit: most pixels it may have; checked in the header, before any decoding.

    Returns:
        uint8 [H, W, 4], straight alpha.

    Raises:
        Failure: ``too_large`` beyond the limit, ``import_error`` if it is no PNG of at most 8 bits per channel.
    """
    if not data.startswith(PNG_START) or len(data) < len(PNG_START) + 8:
        raise Failure(Status.IMPORT_ERROR, f"not a PNG: {len(data)} bytes that start with {data[:8]!r}")
    width, height = struct.unpack_from(">II", data, len(PNG_START))
    if width * height > pixel_limit:
        raise Failure(Status.TOO_LARGE, f"a PNG of {width} x {height} pixels, the limit is {pixel_limit}")
    try:
        # Not Image.open: its own limit, a global of the process, is below ours.
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        if image.mode not in MODES:
            raise Failure(Status.IMPORT_ERROR, f"a PNG of mode {image.mode}, not of 8 bits per channel")
        return np.array(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise Failure(Status.IMPORT_ERROR, f"a damaged PNG: {error}") from error


def without_alpha(rgba: NDArray[np.uint8], alpha: Literal["black", "drop"]) -> NDArray[np.uint8]:
    """Three channels of four.

    Args:
        rgba: uint8 [H, W, 4], straight alpha.
        alpha: ``black`` composites on black, rounding to nearest; ``drop`` keeps the colour as it is, which
            thickens silhouettes (decision 11).

    Returns:
        uint8 [H, W, 3].
    """
    if alpha == "drop":
        return np.ascontiguousarray(rgba[..., :3])
    # The largest sum, 255 * 255 + 127, fits 16 bits; 255 is odd, so there are no ties to round.
    product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:].astype(np.uint16)
    return ((product + 127) // 255).astype(np.uint8)


def resize_and_crop(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Shorter side to ``size`` with Pillow's bicubic filter, then the centre: uint8 [size, size, 3]."""
    image = Image.fromarray(rgb)
    shorter = min(image.size)
    width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.array(image.crop((left, top, left + size, top + size)))


def normalise(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [H, W, 3] to float32 [3, H, W] in units of ImageNet's deviation."""
    unit = rgb.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return np.ascontiguousarray((unit - mean) / std)


def to_pixels(png: bytes, settings: TargetSettings, pixel_limit: int) -> NDArray[np.float32]:
    """What the encoder sees of a render.

    Args:
        png: the file.
        settings: image size and treatment of alpha.
        pixel_limit: see ``decode_png``.

    Returns:
        float32 [3, S, S] with S = ``settings.image_size``.

    Raises:
        Failure: see ``decode_png``.
    """
    rgb = without_alpha(decode_png(png, pixel_limit), settings.alpha)
    return normalise(resize_and_crop(rgb, settings.image_size))


def describe(settings: TargetSettings) -> dict[str, object]:
    """The preprocessing in words and numbers, for the metadata of the parts."""
    return {
        "alpha": {"black": "composited on black, 8 bit", "drop": "ignored"}[settings.alpha],
        "resize": f"shorter side to {settings.image_size}, bicubic (Pillow)",
        "crop": f"centre {settings.image_size} x {settings.image_size}",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
