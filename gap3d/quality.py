"""Quality gates: what is suspicious about a picture, and what is to be done about it."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from gap3d.features.images import decode_png
from gap3d.settings import Action, QualitySettings

GATES = ("all_black", "one_colour", "cut_off", "coverage", "missing_textures", "duplicate_view")
"""Names of the gates; each is a field of ``QualitySettings`` that says what is done."""


@dataclass(frozen=True)
class Picture:
    """What the gates look at.

    Attributes:
        coverage: share of the pixels that are not fully transparent.
        digest: of the pixels.
        brightest: greatest channel value of what is covered, of 255.
        spread: greatest difference within one channel of what is covered, of 255.
        cut: whether anything at the frame's edge is covered.
    """

    coverage: float
    digest: str
    brightest: int
    spread: int
    cut: bool


def look(png: bytes, pixel_limit: int) -> Picture:
    """Decode a render and measure it.

    Raises:
        Failure: see ``images.decode_png``.
    """
    rgba = decode_png(png, pixel_limit)
    alpha = rgba[..., 3]
    # Half covered at least: the colour of a pixel that is hardly touched is mostly noise.
    solid = rgba[alpha >= 128][:, :3]
    if not len(solid):
        solid = rgba[alpha > 0][:, :3]
    edge = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
    return Picture(
        coverage=float((alpha > 0).mean()),
        digest=hashlib.sha256(rgba.tobytes()).hexdigest()[:32],
        brightest=int(solid.max(initial=0)),
        spread=int(np.ptp(solid, axis=0).max()) if len(solid) else 0,
        cut=bool((edge > 0).any()),
    )


def flags(
    picture: Picture, settings: QualitySettings, missing_textures: Sequence[str], earlier: Collection[str]
) -> list[str]:
    """Names of the gates that a picture does not pass, in the order of ``GATES``.

    Args:
        picture: what ``look`` found.
        settings: thresholds.
        missing_textures: names of images that the object refers to and that are not there.
        earlier: digests of the object's earlier views.
    """
    least, most = settings.covered
    found = {
        "all_black": picture.brightest <= settings.black,
        "one_colour": picture.spread <= settings.even,
        "cut_off": picture.cut,
        "coverage": not least <= picture.coverage <= most,
        "missing_textures": bool(missing_textures),
        "duplicate_view": picture.digest in earlier,
    }
    return [name for name in GATES if found[name]]


def verdict(found: Sequence[str], settings: QualitySettings) -> Action:
    """The strictest action of these flags: drop before retry before flag."""
    actions = {getattr(settings, name) for name in found}
    return "drop" if "drop" in actions else "retry" if "retry" in actions else "flag"
