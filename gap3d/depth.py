"""Planar z-depth of a render as a 16-bit picture, and back (docs/method.md 2.1)."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from gap3d.features.decoding import DAMAGE
from gap3d.protocols import HALF_DIAGONAL
from gap3d.records import Failure, Status
from gap3d.settings import Limits

BACKGROUND = 65535


def depth_range(radius: float) -> tuple[float, float]:
    """Least and greatest depth of anything inside the sphere about [-0.5, 0.5]^3, seen from ``radius``."""
    return max(0.0, radius - HALF_DIAGONAL), radius + HALF_DIAGONAL


def encode_depth(depth: NDArray[np.float32], low: float, high: float) -> bytes:
    """A 16-bit grey PNG.

    Args:
        depth: planar z in front of the camera (along the viewing direction, not the ray), float32 [H, W]; +inf where
            the background is seen.
        low: depth of value 0.
        high: depth of value 65535, which is the background's alone: what is nearer is at most 65534.
    """
    seen = np.isfinite(depth)
    values = np.full(depth.shape, BACKGROUND, dtype=np.uint16)
    scaled = (depth[seen].astype(np.float64) - low) / (high - low) * 65535
    values[seen] = np.clip(np.rint(scaled), 0, BACKGROUND - 1).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", compress_level=6)
    return file.getvalue()


def decode_depth(png: bytes, low: float, high: float, pixel_limit: int = Limits().pixels) -> NDArray[np.float32]:
    """The inverse of ``encode_depth``, exact to half a step of (high - low) / 65535; +inf where the background is seen.

    Args:
        png: the picture, which nobody vouches for.
        low: depth of value 0.
        high: depth of value 65535.
        pixel_limit: greatest number of pixels: a few bytes can unfold to gigabytes.

    Raises:
        Failure: import_error, not a 16-bit grey PNG; too_large, more pixels.
    """
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(png))
        if image.width * image.height > pixel_limit:
            words = f"a depth picture of {image.width} x {image.height} pixels, at most {pixel_limit} are taken"
            raise Failure(Status.TOO_LARGE, words)
        values = np.array(image)
    except DAMAGE as error:
        raise Failure(Status.IMPORT_ERROR, f"a damaged depth picture: {error}") from error
    if values.ndim != 2 or not image.mode.startswith("I"):
        raise Failure(Status.IMPORT_ERROR, f"a depth picture of mode {image.mode}, not 16-bit grey")
    depth = low + values.astype(np.float64) * ((high - low) / 65535)
    return np.where(values < BACKGROUND, depth, np.inf).astype(np.float32)
