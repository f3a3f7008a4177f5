"""Least-occluded view selection (paper A.1.2, docs/method.md 2.3).

Sample the surface, look at every sample from each candidate camera, take the camera that sees most.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gap3d.cameras import Camera
from gap3d.embree import Float32Array, Int32Array, Scene, as_mesh
from gap3d.protocols import grid
from gap3d.records import Failure, Status
from gap3d.seeds import generator
from gap3d.settings import ViewSettings

Float64Array = NDArray[np.float64]

# Triangles whose areas are computed at a time: the intermediates stay in the cache.
AREA_BLOCK = 16384


@dataclass(frozen=True)
class ViewChoice:
    """What view selection found for one object.

    Args:
        counts: visible samples from each candidate, in the order of ``protocols.grid``.
        chosen: index of the chosen candidate; None if a pinned yaw is not among them.
        camera: the chosen camera.
        points: number of surface samples that were cast.
        pinned: the yaw was given, not chosen; the counts are those of the candidates all the same.
    """

    counts: tuple[int, ...]
    chosen: int | None
    camera: Camera
    points: int
    pinned: bool


def select_view(
    vertices: ArrayLike,
    faces: ArrayLike,
    settings: ViewSettings,
    object_id: str,
    pinned_yaw: float | None = None,
    *,
    threads: int = 0,
) -> ViewChoice:
    """Choose the candidate camera that sees most of the surface; ties go to the first.

    Args:
        vertices: float32 [V, 3], the normalised object, in [-0.5, 0.5]^3.
        faces: int32 [F, 3], triangles; seen from both sides.
        settings: points, candidate cameras, tolerance and seed.
        object_id: with the seed, what the samples are drawn from.
        pinned_yaw: degrees; take this yaw whatever the counts say, at the pitch that sees most from there (the first
            pitch where no candidate has this yaw).
        threads: of the BVH build, 0 for all cores; a limit holds if it was the first in the process.

    Returns:
        The counts and the camera.

    Raises:
        Failure: ``no_geometry`` without triangles, ``degenerate`` if they have no finite area.
        SystemicFault: Embree is missing.
        ValueError: the arrays are no triangle mesh.
    """
    vertices, faces = as_mesh(vertices, faces)
    samples = sample_surface(vertices, faces, settings.points, generator(object_id, settings.seed))
    scene = Scene(vertices, faces, threads)
    candidates = grid(settings)
    counts = tuple(int(scene.visible(camera, samples, settings.tolerance).sum()) for camera in candidates)
    allowed = [index for index, camera in enumerate(candidates) if pinned_yaw in (None, camera.yaw)]
    if not allowed:
        camera = Camera(float(pinned_yaw or 0.0), settings.pitches[0], settings.radius, settings.fov)
        return ViewChoice(counts, None, camera, len(samples), pinned=True)
    best = max(allowed, key=lambda index: counts[index])  # the first of equals
    return ViewChoice(counts, best, candidates[best], len(samples), pinned=pinned_yaw is not None)


def triangle_areas(vertices: Float32Array, faces: Int32Array) -> Float64Array:
    """Area of each triangle, float64 [F]."""
    columns = [np.ascontiguousarray(column) for column in vertices.T]
    areas = np.empty(len(faces))
    for start in range(0, len(faces), AREA_BLOCK):
        first, second, third = np.ascontiguousarray(faces[start : start + AREA_BLOCK].T)
        edges = []
        for column in columns:
            origin = column.take(first)
            edges.append(
                (
                    # float64 from here on: float32 products would give a sliver an area it does not have
                    np.subtract(column.take(second), origin, dtype=np.float64),
                    np.subtract(column.take(third), origin, dtype=np.float64),
                )
            )
        (ax, bx), (ay, by), (az, bz) = edges
        x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        np.sqrt(x * x + y * y + z * z, out=areas[start : start + AREA_BLOCK])
    areas *= 0.5
    return areas


def sample_surface(vertices: ArrayLike, faces: ArrayLike, count: int, rng: np.random.Generator) -> Float32Array:
    """Independent points, uniform over the surface (paper A.1.2).

    Args:
        vertices: float32 [V, 3].
        faces: int32 [F, 3].
        count: number of points.
        rng: source of randomness; three times ``count`` uniform numbers are drawn.

    Returns:
        float32 [count, 3], ordered by triangle, so that neighbouring rays visit neighbouring memory.

    Raises:
        Failure: ``no_geometry`` without triangles, ``degenerate`` if they have no finite area.
    """
    vertices, faces = as_mesh(vertices, faces)
    if not len(faces):
        raise Failure(Status.NO_GEOMETRY, "the object has no triangles")
    with np.errstate(invalid="ignore", over="ignore"):
        reached = np.cumsum(triangle_areas(vertices, faces))
    total = reached[-1]
    if not (np.isfinite(total) and total > 0):
        raise Failure(Status.DEGENERATE, f"the surface area of {len(faces)} triangles is {total}")
    draws = np.sort(rng.random(count)) * total
    # A draw may round up to the total; it belongs to the last triangle that has an area.
    last = np.searchsorted(reached, total, side="left")
    triangles = faces[np.minimum(np.searchsorted(reached, draws, side="right"), last)]
    u, v = rng.random((2, count, 1))
    folded = u + v > 1
    u, v = np.where(folded, 1 - u, u), np.where(folded, 1 - v, v)
    a, b, c = (vertices[corner].astype(np.float64) for corner in triangles.T)
    return (a + u * (b - a) + v * (c - a)).astype(np.float32)
