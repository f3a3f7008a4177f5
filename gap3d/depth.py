"""Planar z-depth of a render as a 16-bit picture, and back (specification 2.1)."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from gap3d.protocols import HALF_DIAGONAL
from gap3d.records import Failure, Status

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


def decode_depth(png: bytes, low: float, high: float) -> NDArray[np.float32]:
    """The inverse of ``encode_depth``, exact to half a step of (high - low) / 65535; +inf where the background is seen.

    Raises:
        Failure: import_error, not a 16-bit grey PNG.
    """
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(png))
        values = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise Failure(Status.IMPORT_ERROR, f"a damaged depth picture: {error}") from error
    if values.ndim != 2 or not image.mode.startswith("I"):
        raise Failure(Status.IMPORT_ERROR, f"a depth picture of mode {image.mode}, not 16-bit grey")
    depth = low + values.astype(np.float64) * ((high - low) / 65535)
    return np.where(values < BACKGROUND, depth, np.inf).astype(np.float32)
