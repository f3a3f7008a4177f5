"""From a picture to the pixels an encoder sees (docs/method.md 3, decisions 11 and 13).

As the processor of the released training code: shorter side to the encoder's size with Pillow's bicubic filter,
centre crop, [0, 1], mean and deviation. Or as TRELLIS sees its renders: cropped to the object.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gap3d.features.decoding import decode_image
from gap3d.features.decoding import decode_png as decode_png  # for those who want a render as it is
from gap3d.records import Failure, Status
from gap3d.settings import TargetSettings

TRELLIS_MARGIN = 1.2  # side of TRELLIS's square over the longer side of the object's box


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation of the three channels, of colours in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def without_alpha(image: Image.Image, alpha: Literal["black", "drop"]) -> Image.Image:
    """Three channels.

    Args:
        image: RGB, or RGBA with straight alpha.
        alpha: ``black`` composites on black, rounding to nearest; ``drop`` keeps the colour as it is, which
            thickens silhouettes (docs/method.md, decision 11).
    """
    if image.mode == "RGB":
        return image
    colours = image.convert("RGB")
    if alpha == "drop":
        return colours
    black = Image.new("RGB", image.size)
    black.paste(colours, mask=image)
    return black


def resize_and_crop(image: Image.Image, size: int, pixel_limit: int) -> Image.Image:
    """Shorter side to ``size`` with Pillow's bicubic filter, then the centre, ``size`` x ``size``.

    Raises:
        Failure: ``too_large`` if a long strip would grow beyond the limit.
    """
    shorter = min(image.size)
    width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
    if (width, height) != image.size:
        if width * height > pixel_limit:
            old = " x ".join(map(str, image.size))
            raise Failure(Status.TOO_LARGE, f"{old} pixels would grow to {width} x {height}, beyond {pixel_limit}")
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def trellis_square(image: Image.Image, pixel_limit: int) -> Image.Image:
    """The square that TRELLIS's training cuts out: 1.2 times the longer side of the box of alpha > 0, about its centre.

    Args:
        image: RGBA, straight alpha.
        pixel_limit: most pixels of the square.

    Returns:
        RGBA, transparent where the square leaves the picture. By the arithmetic of TRELLIS its sides may differ by
        one pixel.

    Raises:
        Failure: ``empty_render`` if nothing, or only a point, is to be seen; ``too_large`` beyond the limit.
    """
    # Pillow's box ends after the last pixel, TRELLIS's at it.
    box = image.getchannel("A").getbbox()
    if box is None:
        raise Failure(Status.EMPTY_RENDER, "nothing to crop to: alpha is 0 everywhere")
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    centre = (left + right) / 2, (top + bottom) / 2
    half = max(right - left, bottom - top) / 2 * TRELLIS_MARGIN
    x, y = int(centre[0] - half), int(centre[1] - half)
    width, height = int(centre[0] + half) - x, int(centre[1] + half) - y
    if not width or not height:
        raise Failure(Status.EMPTY_RENDER, f"nothing to crop to: alpha is above 0 in {right - left + 1} pixel only")
    if width * height > pixel_limit:
        raise Failure(Status.TOO_LARGE, f"the square about the object has {width} x {height} pixels")
    # Not Image.crop: it holds the size against Pillow's own limit.
    square = Image.new("RGBA", (width, height))
    square.paste(image, (-x, -y))
    return square


def to_uint8(data: bytes, settings: TargetSettings, pixel_limit: int) -> NDArray[np.uint8]:
    """A picture framed for the encoder, which takes the rest of the way itself: ``Encoder.encode``.

    Args:
        data: a PNG, JPEG or WebP file.
        settings: image size, crop and treatment of alpha.
        pixel_limit: see ``decode_image``.

    Returns:
        uint8 [S, S, 3] with S = ``settings.image_size``; [S, S, 4] where alpha is still to be multiplied in: TRELLIS
        does that after resizing, without rounding.

    Raises:
        Failure: see ``decode_image``, ``resize_and_crop`` and ``trellis_square``.
    """
    image = decode_image(data, pixel_limit)
    size = settings.image_size
    if settings.crop == "none":
        return np.array(resize_and_crop(without_alpha(image, settings.alpha), size, pixel_limit))
    square = trellis_square(image if image.mode == "RGBA" else image.convert("RGBA"), pixel_limit)
    resized = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.array(resized if settings.alpha == "black" else resized.convert("RGB"))


def normalise(pixels: NDArray[np.uint8], normalisation: Normalisation = IMAGENET) -> NDArray[np.float32]:
    """uint8 [H, W, 3], or [H, W, 4] with alpha to be multiplied in, to float32 [3, H, W] in units of the deviation."""
    unit = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    colours = unit[:3] * unit[3:] if len(unit) == 4 else unit
    mean, std = (
        np.array(values, dtype=np.float32)[:, None, None] for values in (normalisation.mean, normalisation.std)
    )
    return np.ascontiguousarray((colours - mean) / std)


def to_pixels(
    data: bytes, settings: TargetSettings, pixel_limit: int, normalisation: Normalisation = IMAGENET
) -> NDArray[np.float32]:
    """What the encoder sees of a picture: ``to_uint8``, normalised; float32 [3, S, S].

    Raises:
        Failure: see ``to_uint8``.
    """
    return normalise(to_uint8(data, settings, pixel_limit), normalisation)


def describe(settings: TargetSettings, normalisation: Normalisation) -> dict[str, object]:
    """The preprocessing in words and numbers, for the metadata of the parts."""
    size = settings.image_size
    if settings.crop == "none":
        words = {
            "alpha": {"black": "composited on black, 8 bit", "drop": "ignored"}[settings.alpha],
            "resize": f"shorter side to {size}, bicubic (Pillow)",
            "crop": f"centre {size} x {size}",
        }
    else:
        words = {
            "crop": f"square of {TRELLIS_MARGIN} x the longer side of the box of alpha > 0 about its centre (TRELLIS)",
            "resize": f"to {size} x {size}, Lanczos (Pillow)",
            "alpha": {"black": "multiplied in after resizing, float32", "drop": "ignored"}[settings.alpha],
        }
    return {**words, "mean": list(normalisation.mean), "std": list(normalisation.std)}
