"""Cameras that look at the origin, in Blender's convention.

World: Z up; a normalised object fits [-0.5, 0.5]^3. Camera: looks along its -Z, +Y is up in the
image, +X right. Yaw turns about world Z from +X to +Y; pitch rises above the horizon. Images are
square, with x to the right, y down and pixel centres at +0.5. Source: docs/method.md 2.1 and 2.2.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def look_at_origin(yaw: float, pitch: float, radius: float) -> FloatArray:
    """Pose of a camera on a sphere about the origin, with world Z up in the image.

    At pitch +-90 the up direction is the limit of approaching the pole along that yaw, so the pose is
    continuous in pitch; Blender's TRACK_TO does the same for positions that these formulas give.

    Args:
        yaw: degrees.
        pitch: degrees in [-90, 90].
        radius: distance from the origin, positive.

    Returns:
        Camera-to-world matrix, float64 [4, 4], columns right, up, back and position
        ``radius * (cos yaw cos pitch, sin yaw cos pitch, sin pitch)``.

    Raises:
        ValueError: an angle is not finite, the pitch is beyond a pole, or the radius is not positive.
    """
    if not (math.isfinite(yaw) and -90 <= pitch <= 90 and math.isfinite(radius) and radius > 0):
        raise ValueError(f"no camera at yaw {yaw}, pitch {pitch}, radius {radius}: pitch is in [-90, 90], radius > 0")
    cos_yaw, sin_yaw = _cos_sin(yaw)
    cos_pitch, sin_pitch = _cos_sin(pitch)
    back = np.array([cos_yaw * cos_pitch, sin_yaw * cos_pitch, sin_pitch])
    pose = np.eye(4)
    pose[:3, 0] = -sin_yaw, cos_yaw, 0.0
    pose[:3, 1] = -cos_yaw * sin_pitch, -sin_yaw * sin_pitch, cos_pitch
    pose[:3, 2] = back
    pose[:3, 3] = radius * back
    return pose


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at the origin and makes square images.

    Args:
        yaw: degrees.
        pitch: degrees in [-90, 90].
        radius: distance from the origin.
        fov: full field of view, degrees, horizontal and vertical alike.
    """

    yaw: float
    pitch: float
    radius: float
    fov: float

    def __post_init__(self) -> None:
        if not 0 < self.fov < 180:
            raise ValueError(f"field of view {self.fov} is not between 0 and 180 degrees")
        look_at_origin(self.yaw, self.pitch, self.radius)

    @cached_property
    def camera_to_world(self) -> FloatArray:
        """Pose, float64 [4, 4]; read-only."""
        pose = look_at_origin(self.yaw, self.pitch, self.radius)
        pose.flags.writeable = False
        return pose

    @property
    def position(self) -> FloatArray:
        """Place in the world, float64 [3]; read-only."""
        return self.camera_to_world[:3, 3]

    @property
    def fov_radians(self) -> float:
        """Full field of view in radians (``camera_angle_x`` of transforms.json)."""
        return math.radians(self.fov)

    def to_camera(self, points: ArrayLike) -> FloatArray:
        """World points [N, 3] in camera coordinates, float64 [N, 3]; the camera looks along -Z."""
        return (np.asarray(points, dtype=np.float64) - self.position) @ self.camera_to_world[:3, :3]

    def to_ndc(self, points: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Perspective projection without a resolution.

        Args:
            points: world coordinates [N, 3].

        Returns:
            xy float64 [N, 2], the frame being [-1, 1] with x right and y up, and planar depth (along
            the viewing direction, not the ray) float64 [N]. A point at or behind the camera has a
            depth <= 0 and NaN for xy.
        """
        local = self.to_camera(points)
        depth = -local[:, 2]
        half_width = np.where(depth > 0, depth, np.nan) * math.tan(self.fov_radians / 2)
        return local[:, :2] / half_width[:, None], depth

    def project(self, points: ArrayLike, resolution: int) -> tuple[FloatArray, FloatArray]:
        """Pixel coordinates of world points.

        Args:
            points: world coordinates [N, 3].
            resolution: pixels per side.

        Returns:
            xy float64 [N, 2] in pixels, x right, y down, the centre of the first pixel being (0.5, 0.5),
            and planar depth float64 [N]. A point at or behind the camera has NaN for xy.
        """
        ndc, depth = self.to_ndc(points)
        return (ndc * [1.0, -1.0] + 1.0) * (resolution / 2), depth

    def inside_frame(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Whether each world point [N, 3] lies in front of the camera and projects into the frame, bool [N]."""
        x, y, z = self.to_camera(points).T
        half_width = -z * math.tan(self.fov_radians / 2)
        return (half_width > 0) & (np.abs(x) <= half_width) & (np.abs(y) <= half_width)


def _cos_sin(degrees: float) -> tuple[float, float]:
    """Cosine and sine, exact at multiples of 90 degrees and alike in all four quadrants."""
    # A candidate yaw turned by 90 degrees must give the same numbers with x and y exchanged: otherwise a
    # turned object would not score exactly as the object itself.
    quarter, rest = divmod(degrees, 90.0)
    rest = math.radians(rest)
    cos, sin = math.cos(rest), math.sin(rest)
    return ((cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos))[int(quarter) % 4]
