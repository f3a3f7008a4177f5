"""transforms.json: the cameras of an object's renders as TRELLIS and NeRF tools read them (docs/method.md 2.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def frame(row: Mapping[str, Any]) -> dict[str, Any]:
    """One frame of transforms.json from a renders row: fields of view in radians, 4x4 camera to world, Blender's axes.

    Yaw, pitch (degrees) and radius, which TRELLIS does not write, come along.
    """
    made: dict[str, Any] = {
        "file_path": f"{row['view']:03d}.png",
        "camera_angle_x": row["camera_angle_x"],
        "transform_matrix": np.asarray(row["transform_matrix"], dtype=np.float64).reshape(4, 4).tolist(),
        **{name: row[name] for name in ("yaw", "pitch", "radius")},
    }
    if row.get("depth"):
        made["depth"] = {"min": row["depth_min"], "max": row["depth_max"]}
        made["depth_path"] = f"{row['view']:03d}_depth.png"
    return made


def transforms(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of one object's transforms.json.

    Args:
        rows: its renders rows, at least one.

    Returns:
        ``aabb``, ``scale`` and ``offset`` (normalised = scale * world + offset) and ``frames`` in the order of views.
    """
    ordered = sorted(rows, key=lambda row: row["view"])
    return {
        "aabb": [[-0.5] * 3, [0.5] * 3],
        "scale": ordered[0]["scale"],
        "offset": list(ordered[0]["offset"]),
        "frames": [frame(row) for row in ordered],
    }
