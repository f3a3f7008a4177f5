"""Small pictures as data URIs: renders, and depth in false colours."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gap3d.depth import decode_depth
from gap3d.features.images import decode_png

QUALITY = 76
# Viridis, dark to bright, at even steps.
VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    dtype=np.float64,
)


def thumbnail(png: bytes, side: int, pixel_limit: int) -> str:
    """A render of at most ``side`` pixels, its background transparent.

    Raises:
        Failure: see ``images.decode_png``.
    """
    return data_uri(decode_png(png, pixel_limit), side)


def depth_thumbnail(png: bytes, low: float, high: float, side: int) -> str:
    """Planar depth in false colours over the range that the object covers, near bright, the background transparent.

    Raises:
        Failure: see ``depth.decode_depth``.
    """
    depth = decode_depth(png, low, high)
    step = max(1, min(depth.shape) // side)
    depth = depth[::step, ::step]  # picked, not mixed: between the object and the background there is no depth
    seen = np.isfinite(depth)
    near, far = (depth[seen].min(), depth[seen].max()) if seen.any() else (0.0, 1.0)
    nearness = np.where(seen, (far - np.where(seen, depth, far)) / max(far - near, 1e-9), 0.0)
    steps = np.linspace(0.0, 1.0, len(VIRIDIS))
    colours = np.stack([np.interp(nearness, steps, channel) for channel in VIRIDIS.T], axis=-1)
    return data_uri(np.dstack([colours, np.where(seen, 255, 0)]).astype(np.uint8), side)


def data_uri(rgba: NDArray[np.uint8], side: int) -> str:
    """uint8 [H, W, 4] as a WebP of at most ``side`` pixels."""
    image = Image.fromarray(rgba)
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, alpha_quality=70, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
