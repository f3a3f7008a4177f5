"""Meshes to look at, made or read."""

import numpy as np
import trimesh

from gap3d.cameras import Camera
from gap3d.settings import ViewSettings

SETTINGS = ViewSettings()
CAMERAS = [Camera(yaw, SETTINGS.pitches[0], SETTINGS.radius, SETTINGS.fov) for yaw in SETTINGS.yaws]


def arrays(mesh):
    """Vertices and faces of a trimesh, normalised to [-0.5, 0.5]^3."""
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    return ((vertices - (low + high) / 2) / (high - low).max()).astype(np.float32), np.asarray(mesh.faces, np.int32)


def bumpy(subdivisions=4):
    vertices, faces = arrays(trimesh.creation.icosphere(subdivisions=subdivisions))
    phases = np.array([0.3, 1.1, 2.0], dtype=np.float32)  # no symmetry
    return vertices * (0.8 + 0.2 * np.sin(17 * vertices + phases)), faces


def soup(seed, triangles=60):
    """Random triangles: edges in mid-air, nothing closed."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-0.4, 0.4, (triangles, 1, 3))
    vertices = (centres + rng.normal(0, 0.1, (triangles, 3, 3))).reshape(-1, 3).astype(np.float32)
    return vertices, np.arange(3 * triangles, dtype=np.int32).reshape(-1, 3)
