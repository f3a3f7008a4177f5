"""Materials, models (shapes with materials) and the smooth vertex normals every file type is written from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gap3d.samples.shapes import Array, Shape, join

CREASE_DEGREES = 38.0


@dataclass(frozen=True)
class Material:
    """A plain or textured surface; `color` is sRGB hex."""

    name: str
    color: str
    roughness: float = 0.55
    metallic: float = 0.0
    glow: float = 0.0
    texture: Callable[[], Image.Image] | None = None

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as sRGB bytes."""
        return int(self.color[0:2], 16), int(self.color[2:4], 16), int(self.color[4:6], 16)

    @property
    def linear(self) -> tuple[float, float, float]:
        """The colour in linear light, rounded."""
        s = np.array(self.rgb) / 255.0
        r, g, b = np.round(np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4), 5).tolist()
        return r, g, b


@dataclass(frozen=True)
class Surface:
    """Everything of one material: vertices that share a normal, and triangles."""

    material: Material
    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    uv: NDArray[np.float32]
    faces: NDArray[np.uint32]


@dataclass
class Model:
    """Shapes with materials, seen from -y: x to the right, y away from the viewer, z up."""

    parts: list[tuple[Material, Shape]] = field(default_factory=list)

    def add(self, material: Material, *shapes: Shape) -> None:
        """Add shapes of one material."""
        self.parts.extend((material, shape) for shape in shapes)

    def place(self, change: Callable[[Shape], Shape]) -> Model:
        """Change every shape, e.g. tilt the whole model."""
        return Model([(material, change(shape)) for material, shape in self.parts])

    def surfaces(self, facing: float) -> list[Surface]:
        """One surface per material, the model's front turned to the given yaw (0: towards +x)."""
        gathered: dict[Material, list[Shape]] = {}
        for material, shape in self.parts:
            gathered.setdefault(material, []).append(shape)
        return [_surface(material, join(shapes).turn("z", facing + 90)) for material, shapes in gathered.items()]


def _corner_normals(vertices: Array, faces: NDArray[np.int64]) -> Array:
    """A normal per triangle corner: the mean over the triangles at that point less than a crease away."""
    corners = vertices[faces]
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    unit = area / np.maximum(np.linalg.norm(area, axis=1, keepdims=True), 1e-20)
    owner = np.repeat(np.arange(len(faces)), 3)
    order = np.argsort(faces.ravel(), kind="stable")
    points = faces.ravel()[order]
    _, start, count = np.unique(points, return_index=True, return_counts=True)
    size = np.repeat(count, count)
    first = np.repeat(np.arange(len(order)), size)
    base = np.repeat(np.repeat(start, count), size)
    second = base + np.arange(len(first)) - np.repeat(np.cumsum(size) - size, size)
    mine, other = owner[order[first]], owner[order[second]]
    near = np.einsum("ij,ij->i", unit[mine], unit[other]) > np.cos(np.radians(CREASE_DEGREES))
    total = np.zeros((len(order), 3))
    for axis in range(3):
        total[:, axis] = np.bincount(order[first[near]], weights=area[other[near], axis], minlength=len(order))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-20, total / np.maximum(length, 1e-20), unit[owner])


def _packed(values: Array, scale: float, bits: int) -> NDArray[np.int64]:
    """One integer per row of rounded values, so that rows can be compared at once."""
    key = np.zeros(len(values), dtype=np.int64)
    for column in np.rint(values * scale).astype(np.int64).T:
        key = (key << bits) + column + (1 << (bits - 1))
    return key


def _surface(material: Material, shape: Shape) -> Surface:
    """Weld equal points, drop empty triangles, and split vertices only where normals or textures differ."""
    _, first, index = np.unique(_packed(shape.vertices, 1e5, 21), return_index=True, return_inverse=True)
    welded = np.round(shape.vertices[first], 5)
    faces = index[shape.faces]
    solid = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces, original = faces[solid], shape.faces[solid]
    normals = np.round(_corner_normals(welded, faces), 3) + 0.0
    uv = np.round(shape.uv[original.ravel()], 5) if material.texture else np.zeros((faces.size, 2))
    key = np.unique(_packed(normals, 1e3, 12), return_inverse=True)[1] + (faces.ravel() << 24)
    key = np.unique(key, return_inverse=True)[1] + (np.unique(_packed(uv, 1e5, 24), return_inverse=True)[1] << 32)
    _, first, corner = np.unique(key, return_index=True, return_inverse=True)
    points = (welded[faces.ravel()[first]] + 0.0).astype(np.float32)
    triangles = corner.reshape(-1, 3).astype(np.uint32)
    return Surface(material, points, normals[first].astype(np.float32), uv[first].astype(np.float32), triangles)
