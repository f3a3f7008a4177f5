"""View protocols: from which cameras an object is rendered (docs/method.md 2.2).

| protocol | cameras | used for |
|---|---|---|
| least_occluded | of yaws x pitches the one that sees most | training targets (paper A.1.2) |
| fixed | all of yaws x pitches | 4: FD, KD, alignment, retrieval; 8: CLIP; 20 with depth: point clouds |
| sphere | Hammersley directions, 150 by default | TRELLIS's multiview renders |
| condition | Hammersley directions, drawn fov, the radius that belongs to it | TRELLIS's condition views |
"""

import math

import numpy as np

from gap3d.cameras import Camera, FloatArray
from gap3d.seeds import generator
from gap3d.settings import ViewSettings

HALF_DIAGONAL = math.sqrt(3) / 2
"""Radius of the sphere about [-0.5, 0.5]^3."""


def grid(settings: ViewSettings) -> list[Camera]:
    """All of yaws x pitches: the candidates of ``least_occluded``, the cameras of ``fixed``."""
    return [Camera(yaw, pitch, settings.radius, settings.fov) for pitch in settings.pitches for yaw in settings.yaws]


def cameras(settings: ViewSettings, object_id: str) -> list[Camera]:
    """The cameras of a protocol that looks from places known beforehand, ``settings.images`` of them.

    Args:
        settings: protocol, angles in degrees.
        object_id: with the seed, what the drawn protocols draw from.

    Raises:
        ValueError: the protocol is least_occluded, whose camera depends on the mesh.
    """
    if settings.protocol == "least_occluded":
        raise ValueError("the least occluded view is found by visibility.select_view")
    if settings.protocol == "fixed":
        return grid(settings)
    draws = generator(object_id, settings.seed, "cameras")
    yaws, pitches = hammersley_sphere(settings.count, draws.random(2))
    radii, fovs = np.full(settings.count, settings.radius), np.full(settings.count, settings.fov)
    if settings.protocol == "condition":
        radii, fovs = condition_lenses(settings.count, settings.fovs, draws)
    return [Camera(*map(float, each)) for each in zip(yaws, pitches, radii, fovs, strict=True)]


def hammersley_sphere(count: int, offset: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Directions spread over the sphere, fewer of them from below (docs/method.md 2.2).

    Args:
        count: how many.
        offset: two numbers in [0, 1) that shift the whole set.

    Returns:
        Yaws in [0, 360) and pitches in [-90, 90], degrees, float64 [count] each. The lower half of the sphere gets a
        quarter of them.
    """
    index = np.arange(count)
    u = (index + offset[0]) / count
    v = (van_der_corput(index) + offset[1]) % 1.0
    u = np.where(u < 0.25, 2.0 * u, u * 2.0 / 3.0 + 1.0 / 3.0)
    return 360.0 * v, np.degrees(np.arccos(1.0 - 2.0 * u)) - 90.0


def van_der_corput(index: np.ndarray) -> FloatArray:
    """Radical inverse in base 2 of int [N]: its binary digits mirrored at the point, float64 [N] in [0, 1)."""
    found, place, rest = np.zeros(len(index)), 0.5, np.asarray(index)
    while rest.any():
        found, rest, place = found + place * (rest & 1), rest >> 1, place / 2
    return found


def condition_lenses(
    count: int, fovs: tuple[float, float], draws: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Radii and fields of view that all show the sphere about the unit cube just whole (docs/method.md 2.2).

    1 / radius^2 is uniform: the solid angle of the object is, nearly.

    Args:
        count: how many.
        fovs: least and greatest field of view, degrees.
        draws: source of randomness.

    Returns:
        Radii, and fields of view in degrees, float64 [count] each.
    """
    near, far = (HALF_DIAGONAL / math.sin(math.radians(fov) / 2) for fov in (max(fovs), min(fovs)))
    radii = 1.0 / np.sqrt(draws.uniform(1.0 / far**2, 1.0 / near**2, count))
    return radii, np.degrees(2.0 * np.arcsin(HALF_DIAGONAL / radii))
