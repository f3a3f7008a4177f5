"""The views of generated objects: those of the renders that they are compared with (docs/method.md 2.2 and 8.3).

Views are numbered by Blender's yaw, so that view 3 of an object shows the side that view 3 of its render shows. TRELLIS
measures its yaw from +Y towards +X: it is 90 degrees less Blender's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gap3d.cameras import Camera

PITCH, RADIUS, FOV = 30.0, 2.0, 40.0


@dataclass(frozen=True)
class Turntable:
    """Cameras all around.

    Attributes:
        count: how many, from yaw 0 in equal steps.
        ssaa: samples of a pixel per side.
        depth: whether planar z-depth of the mesh is wanted too.
    """

    count: int
    ssaa: int
    depth: bool = False

    @property
    def name(self) -> str:
        """Of the folder of its frames."""
        return f"views{self.count}"

    @property
    def cameras(self) -> list[Camera]:
        """In the order of the frames."""
        return [Camera(360.0 * index / self.count, PITCH, RADIUS, FOV) for index in range(self.count)]

    def request(self) -> dict[str, Any]:
        """What the child needs to render it: angles in radians as TRELLIS counts them, the field of view in degrees."""
        return {
            "name": self.name,
            "ssaa": self.ssaa,
            "depth": self.depth,
            "yaws": [math.radians(90.0 - camera.yaw) for camera in self.cameras],
            "pitch": math.radians(PITCH),
            "radius": RADIUS,
            "fov": FOV,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The cameras as rows of renders, less pictures: for transforms.json. Objects of TRELLIS are normalised."""
        return [
            {
                "view": view,
                "yaw": camera.yaw,
                "pitch": camera.pitch,
                "radius": camera.radius,
                "camera_angle_x": camera.fov_radians,
                "transform_matrix": camera.camera_to_world.ravel().tolist(),
                "scale": 1.0,
                "offset": [0.0, 0.0, 0.0],
            }
            for view, camera in enumerate(self.cameras)
        ]


# As the released evaluation runs: its four views mean to take 4 samples of a pixel and take 1.
PROTOCOLS: Mapping[int, Turntable] = {
    4: Turntable(4, ssaa=1),
    8: Turntable(8, ssaa=4),
    20: Turntable(20, ssaa=4, depth=True),
}
