"""From planar depth back to the points that were seen (docs/method.md 2.1 and 8.4)."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

OPAQUE = 0.999  # alpha of a pixel that shows the object alone; at an edge, depth is that of one thing among several


def unproject(
    depth: ArrayLike,
    camera_to_world: ArrayLike,
    fov: float,
    *,
    alpha: NDArray[np.uint8] | None = None,
    paper: bool = False,
) -> NDArray[np.float64]:
    """World points of all pixels that show the object.

    Args:
        depth: planar z in front of the camera [H, W]; +inf where the background is seen (``depth.decode_depth``).
        camera_to_world: [4, 4], or its 16 numbers row by row; the camera looks along its -Z, +Y is up.
        fov: full field of view of the width, radians; pixels are square.
        alpha: uint8 [H, W]; only opaque pixels count. None takes all that have a depth.
        paper: make the two errors of the released code: planar depth taken for the length of the ray, which pulls
            points in by up to 11 % in the corners of the frame, and pixels at their corner instead of their centre.

    Returns:
        float64 [M, 3], pixels row by row.

    Raises:
        ValueError: shapes that do not fit, no lens, or a depth that is NaN or not in front of the camera.
    """
    planar = np.asarray(depth, dtype=np.float64)
    pose = np.asarray(camera_to_world, dtype=np.float64).reshape(-1)
    if planar.ndim != 2 or pose.size != 16 or (alpha is not None and alpha.shape != planar.shape):
        of = "none" if alpha is None else alpha.shape
        raise ValueError(f"depth {planar.shape}, alpha {of} and a pose of {pose.size} numbers do not fit together")
    if not 0 < fov < math.pi or not np.isfinite(pose).all():
        raise ValueError(f"no camera with a field of view of {fov} radians and the pose {pose.tolist()}")
    seen = planar != np.inf
    if alpha is not None:
        seen &= alpha > OPAQUE * 255
    rows, columns = np.nonzero(seen)
    along = planar[rows, columns]
    if not (along > 0).all():
        raise ValueError(f"{np.count_nonzero(~(along > 0))} of {len(along)} depths are not in front of the camera")
    height, width = planar.shape
    centre = 0.0 if paper else 0.5
    slope = 2 * math.tan(fov / 2) / width
    x, y = (columns + centre - width / 2) * slope, (height / 2 - rows - centre) * slope
    if paper:
        along = along / np.sqrt(x * x + y * y + 1)
    local = np.stack([x * along, y * along, -along], axis=1)
    matrix = pose.reshape(4, 4)
    return local @ matrix[:3, :3].T + matrix[:3, 3]
