"""The point cloud of an object from depth pictures around it, as PointNet++ takes it (docs/method.md 8.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gap3d.depth import decode_depth
from gap3d.features.decoding import decode_image
from gap3d.metrics.farthest import farthest_points
from gap3d.metrics.unprojection import unproject
from gap3d.records import Failure, Status
from gap3d.seeds import generator
from gap3d.settings import Limits

VIEWS = 20
POINTS = 4000
PRESAMPLE = 100_000


@dataclass(frozen=True)
class DepthView:
    """One picture of an object; see ``unprojection.unproject``.

    Attributes:
        depth: planar z [H, W], +inf where the background is seen.
        camera_to_world: [4, 4].
        fov: radians.
        alpha: uint8 [H, W], or None.
    """

    depth: NDArray[np.float32]
    camera_to_world: ArrayLike
    fov: float
    alpha: NDArray[np.uint8] | None = None


def view_of(row: Mapping[str, Any], pixel_limit: int = Limits().pixels) -> DepthView:
    """The depth of a renders row.

    Args:
        row: its columns.
        pixel_limit: see ``decode_image``.

    Raises:
        Failure: ``missing``, it has none; ``import_error``, it is damaged; see ``decode_image``.
    """
    if not row.get("depth"):
        raise Failure(
            Status.MISSING,
            f"{row['object_id']} view {row['view']} has no depth: render the collection with renders.depth = true",
        )
    depth = decode_depth(row["depth"], row["depth_min"], row["depth_max"], pixel_limit)
    image = decode_image(row["png"], pixel_limit)
    alpha = np.array(image.getchannel("A")) if image.mode == "RGBA" else None
    return DepthView(depth, np.asarray(row["transform_matrix"]), row["camera_angle_x"], alpha)


def cloud_of(
    views: Sequence[DepthView],
    key: str,
    *,
    expected: int = VIEWS,
    points: int = POINTS,
    presample: int | None = PRESAMPLE,
    seed: int = 0,
    paper: bool = False,
) -> NDArray[np.float32]:
    """The normalised cloud of one object.

    Args:
        views: of the object, in any order that is the same each time.
        key: of the object; with the seed, what is drawn from: the points before the sampling and its start.
        expected: number of views; another is a failure, because points behind the missing ones are lacking.
        points: of the cloud, by farthest point sampling.
        presample: points that the sampling chooses from, drawn at random; None chooses from all.
        seed: of the draws.
        paper: see ``unproject``; for true objects only, those generated were right in the released code.

    Returns:
        float32 [points, 3], centred on the mean, the farthest point at distance 1.

    Raises:
        Failure: ``missing``, views are; ``empty_render``, too few points are seen; ``degenerate``, all are one place;
            ``import_error``, depths or cameras are impossible.
    """
    if len(views) != expected:
        raise Failure(Status.MISSING, f"{len(views)} of {expected} views")
    try:
        pieces = [
            unproject(view.depth, view.camera_to_world, view.fov, alpha=view.alpha, paper=paper) for view in views
        ]
    except ValueError as error:
        raise Failure(Status.IMPORT_ERROR, str(error)) from error
    cloud = np.concatenate(pieces)
    if len(cloud) < points:
        raise Failure(Status.EMPTY_RENDER, f"{len(cloud)} points are seen in {len(views)} views, {points} are needed")
    draws = generator(key, seed, "cloud")
    if presample is not None and len(cloud) > max(points, presample):
        cloud = cloud[np.sort(draws.choice(len(cloud), max(points, presample), replace=False))]
    chosen = cloud[farthest_points(cloud, points, int(draws.integers(len(cloud))))]
    return normalise(chosen)


def normalise(cloud: ArrayLike) -> NDArray[np.float32]:
    """Points [N, 3] centred on their mean, the farthest at distance 1; float32.

    Raises:
        Failure: ``degenerate``, all points are one place, or there are none.
    """
    exact = np.asarray(cloud, dtype=np.float64)
    centred = exact - exact.mean(0) if len(exact) else exact
    radius = np.sqrt((centred**2).sum(1).max()) if len(exact) else 0.0
    if not radius > 0:
        raise Failure(Status.DEGENERATE, f"{len(exact)} points in one place have no scale")
    return (centred / radius).astype(np.float32)
