"""Building blocks of the bundled objects: lathes, tubes, extrusions and rounded boxes (z up, numpy arrays)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import trimesh
from numpy.typing import NDArray

Array = NDArray[np.float64]
Points = Sequence[Sequence[float]] | Array
_AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


@dataclass(frozen=True)
class Shape:
    """A triangle mesh with texture coordinates; every method returns a new shape."""

    vertices: Array
    faces: NDArray[np.int64]
    uv: Array

    def move(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Shape:
        """Translate."""
        return Shape(self.vertices + np.array([x, y, z]), self.faces, self.uv)

    def scale(self, x: float, y: float | None = None, z: float | None = None) -> Shape:
        """Scale about the origin, by one factor or by three."""
        factor = np.array([x, x if y is None else y, x if z is None else z])
        faces = self.faces if np.prod(factor) > 0 else self.faces[:, ::-1]
        return Shape(self.vertices * factor, faces, self.uv)

    def turn(self, axis: Literal["x", "y", "z"], degrees: float) -> Shape:
        """Rotate about an axis through the origin (right-handed)."""
        matrix = trimesh.transformations.rotation_matrix(np.radians(degrees), _AXES[axis])[:3, :3]
        return Shape(self.vertices @ matrix.T, self.faces, self.uv)

    def bend(self, function: Callable[[Array], Array]) -> Shape:
        """Send every vertex through a function of the whole (n, 3) array."""
        return Shape(np.asarray(function(self.vertices.copy()), dtype=float), self.faces, self.uv)

    def around(self, count: int, start: float = 0.0) -> Shape:
        """Repeat around the z axis."""
        return join(self.turn("z", start + 360.0 * i / count) for i in range(count))

    def mirror(self, axis: Literal["x", "y"] = "x") -> Shape:
        """Add the mirror image."""
        return join([self, self.scale(-1, 1, 1) if axis == "x" else self.scale(1, -1, 1)])


def join(shapes: Iterable[Shape]) -> Shape:
    """Put several shapes into one."""
    parts = list(shapes)
    offsets = np.cumsum([0] + [len(s.vertices) for s in parts[:-1]])
    return Shape(
        np.concatenate([s.vertices for s in parts]),
        np.concatenate([s.faces + o for s, o in zip(parts, offsets, strict=True)]),
        np.concatenate([s.uv for s in parts]),
    )


def _shape(vertices: Array, faces: NDArray[np.int64], uv: Array | None = None) -> Shape:
    """Drop empty triangles and point the faces outwards."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    keep = np.linalg.norm(normals, axis=1) > 1e-10
    corners = corners - vertices.mean(axis=0)
    if float(np.einsum("ij,ij->", corners[:, 0], normals)) < 0:
        faces = faces[:, ::-1]
    return Shape(vertices, faces[keep], np.zeros((len(vertices), 2)) if uv is None else uv)


def _grid_faces(rows: int, columns: int) -> NDArray[np.int64]:
    """Two triangles per cell of a rows x columns lattice of vertices."""
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (q.ravel() for q in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def sheet(points: Array) -> Shape:
    """A surface through a (rows, columns, 3) lattice of points."""
    rows, columns = points.shape[:2]
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    return _shape(points.reshape(-1, 3), _grid_faces(rows, columns), np.stack([u.ravel(), v.ravel()], 1))


def spline(points: Points, count: int, closed: bool = False) -> Array:
    """`count` points of a Catmull-Rom curve through the given ones (of any dimension)."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    spans = len(p) - 3
    t = np.linspace(0, spans, count, endpoint=not closed)
    i = np.minimum(t.astype(int), spans - 1)
    f = (t - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    return 0.5 * (2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * b - a - 3 * c + d) * f**3)


def lathe(profile: Points, segments: int = 48, ribs: Callable[[Array], Array] | None = None) -> Shape:
    """Turn a profile of (radius, z) points about z; `ribs` scales the radius as a function of the angle."""
    p = np.asarray(profile, dtype=float)
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    swell = np.ones_like(angle) if ribs is None else ribs(angle)
    swell[-1] = swell[0]
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) * swell[:, None]
    ring[-1] = ring[0]
    points = np.empty((len(p), segments + 1, 3))
    points[..., :2] = p[:, :1, None] * ring[None]
    points[..., 2] = p[:, 1:]
    return sheet(points)


def ball(radius: float = 1.0, segments: int = 32, z: tuple[float, float, float] | None = None) -> Shape:
    """A sphere, or an ellipsoid of half-axes `z`."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    profile = np.stack([np.cos(angle), np.sin(angle)], 1) * radius
    profile[[0, -1], 0] = 0.0
    whole = lathe(profile, segments)
    return whole if z is None else whole.scale(*z)


def cylinder(radius: float, height: float, bevel: float = 0.0, segments: int = 40, top: float | None = None) -> Shape:
    """A cylinder or truncated cone standing on z = 0, with rounded rims."""
    upper = radius if top is None else top
    profile: list[tuple[float, float]] = [(0.0, 0.0)]
    if bevel > 0:
        for a in np.linspace(0, np.pi / 2, 4):
            profile.append((radius - bevel + bevel * np.sin(a), bevel - bevel * np.cos(a)))
        for a in np.linspace(0, np.pi / 2, 4):
            profile.append((max(upper - bevel, 0.0) + bevel * np.cos(a), height - bevel + bevel * np.sin(a)))
    else:
        profile += [(radius, 0.0), (upper, height)]
    return lathe([*profile, (0.0, height)], segments)


def torus(major: float, minor: float, segments: int = 48, sides: int = 16) -> Shape:
    """A ring around z."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    return lathe(np.stack([major + minor * np.cos(angle), minor * np.sin(angle)], 1), segments)


@lru_cache
def _rounded_cube(steps: int) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Outward directions, corners, faces, sides and tiles of a cube whose corners have `steps` rows of points."""
    ramp = np.tan(np.linspace(-np.pi / 4, 0, steps)) if steps > 1 else np.array([-1.0])
    line, side = np.concatenate([ramp, -ramp[::-1]]), np.repeat([-1.0, 1.0], steps)
    a, b = np.meshgrid(line, line)
    sa, sb = np.meshgrid(side, side)
    grid, parts = _grid_faces(*a.shape), []
    for tile in range(6):
        axis, sign = tile // 2, 1.0 - 2.0 * (tile % 2)
        order = [axis, (axis + 1) % 3, (axis + 2) % 3]
        direction, corner = np.empty((a.size, 3)), np.empty((a.size, 3))
        for part, values in ((direction, (np.full_like(a, sign), a, b)), (corner, (np.full_like(a, sign), sa, sb))):
            part[:, order] = np.stack([v.ravel() for v in values], 1)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        faces = (grid if sign > 0 else grid[:, ::-1]) + tile * a.size
        parts.append(
            (direction, corner, faces, np.tile(order[1:], (a.size, 1)), np.tile([tile % 3, tile // 3], (a.size, 1)))
        )
    direction, corner, faces, sides, tiles = (np.concatenate(column) for column in zip(*parts, strict=True))
    return direction, corner, faces, sides, tiles


def box(x: float, y: float, z: float, bevel: float = 0.0, steps: int = 2) -> Shape:
    """A box centred on the origin with rounded edges; texture coordinates are a 3 x 2 atlas of its sides."""
    half = np.array([x, y, z]) / 2
    radius = min(bevel, float(half.min()))
    direction, corner, faces, sides, tiles = _rounded_cube(steps if radius > 0 else 1)
    points = (half - radius) * corner + radius * direction
    local = 0.5 + 0.5 * np.take_along_axis(points / half, sides, axis=1)
    return Shape(points, faces, (local + tiles) / np.array([3, 2]))


def tube(
    path: Points,
    radius: float | Sequence[float] | Array,
    sides: int = 16,
    closed: bool = False,
    flat: float = 1.0,
    ribs: Callable[[Array], Array] | None = None,
    up: Sequence[float] = (0.0, 0.0, 1.0),
) -> Shape:
    """Sweep a circle (or an ellipse squeezed by `flat` along `up`) along a path; radii may vary along it."""
    p = np.asarray(path, dtype=float)
    if closed:
        p = np.concatenate([p, p[:1]])
        tangent = np.roll(p[:-1], -1, 0) - np.roll(p[:-1], 1, 0)
        tangent = np.concatenate([tangent, tangent[:1]])
    else:
        tangent = np.gradient(p, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    radii = np.asarray(radius, dtype=float) * np.ones(len(p))
    normal = np.array(up, dtype=float)
    if abs(float(normal @ tangent[0])) > 0.95:
        normal = np.array([1.0, 0.0, 0.0]) if abs(tangent[0][0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    swell = np.ones_like(angle) if ribs is None else ribs(angle)
    rows = []
    for point, direction, r in zip(p, tangent, radii, strict=True):
        normal = normal - direction * float(normal @ direction)
        normal /= np.linalg.norm(normal)
        across = np.cross(direction, normal)
        offset = np.cos(angle)[:, None] * across + flat * np.sin(angle)[:, None] * normal
        offset[-1] = offset[0]
        rows.append(point + r * swell[:, None] * offset)
    if closed:
        rows[-1] = rows[0]
    else:
        rows = [np.repeat(p[:1], sides + 1, 0), *rows, np.repeat(p[-1:], sides + 1, 0)]
    return sheet(np.array(rows))


def _ears(outline: Array) -> list[tuple[int, int, int]]:
    """Triangulate a simple anticlockwise polygon by clipping its ears."""

    def cross(o: Array, a: Array, b: Array) -> float:
        return float((a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0]))

    left, triangles = list(range(len(outline))), []
    while len(left) > 3:
        for k in range(len(left)):
            i, j, m = left[k - 1], left[k], left[(k + 1) % len(left)]
            a, b, c = outline[i], outline[j], outline[m]
            if cross(a, b, c) <= 1e-12:
                continue
            rest = outline[[q for q in left if q not in (i, j, m)]]
            sides = [
                (v[0] - u[0]) * (rest[:, 1] - u[1]) - (v[1] - u[1]) * (rest[:, 0] - u[0])
                for u, v in ((a, b), (b, c), (c, a))
            ]
            if not np.any((sides[0] > -1e-12) & (sides[1] > -1e-12) & (sides[2] > -1e-12)):
                break
        else:
            k = 0
            i, j, m = left[k - 1], left[k], left[k + 1]
        triangles.append((i, j, m))
        left.pop(k)
    return [*triangles, (left[0], left[1], left[2])]


def cap(outline: Points) -> Shape:
    """A flat polygon in the xy plane, facing +z."""
    p = np.asarray(outline, dtype=float)
    p = p[::-1] if _area(p) < 0 else p
    return Shape(np.column_stack([p, np.zeros(len(p))]), np.array(_ears(p)), p)


def _area(p: Array) -> float:
    """Twice the signed area of a polygon."""
    return float(np.sum(p[:, 0] * np.roll(p[:, 1], -1) - np.roll(p[:, 0], -1) * p[:, 1]))


def extrude(outline: Points, depth: float, bevel: float = 0.0) -> Shape:
    """Give an outline in the xy plane a thickness along z (centred), with chamfered edges."""
    p = np.asarray(outline, dtype=float)
    if _area(p) < 0:
        p = p[::-1]
    n = len(p)
    before, after = p - np.roll(p, 1, 0), np.roll(p, -1, 0) - p
    normals = [np.stack([e[:, 1], -e[:, 0]], 1) / np.linalg.norm(e, axis=1, keepdims=True) for e in (before, after)]
    miter = normals[0] + normals[1]
    miter /= np.maximum(np.einsum("ij,ij->i", miter, normals[0]), 0.35)[:, None]
    inner, half = p - bevel * miter, depth / 2
    levels = [(inner, -half), (p, bevel - half), (p, half - bevel), (inner, half)] if bevel else [(p, -half), (p, half)]
    rows = np.array([np.column_stack([ring, np.full(n, z)]) for ring, z in levels])
    wall = sheet(np.concatenate([rows, rows[:, :1]], axis=1))
    flat = cap(p)
    caps = [Shape(rows[0], flat.faces[:, ::-1], p), Shape(rows[-1], flat.faces, p)]
    return join([wall, *caps])


def upright(outline: Points, depth: float, bevel: float = 0.0) -> Shape:
    """Extrude an outline given as (x, z) along y."""
    return extrude(outline, depth, bevel).turn("x", 90)


def beam(a: Sequence[float], b: Sequence[float], radius: float, sides: int = 10) -> Shape:
    """A round rod between two points."""
    return tube([a, b], radius, sides)


def pebble(radius: float, seed: int, rough: float = 0.15, detail: int = 2) -> Shape:
    """An irregular lump: an icosphere pushed in and out by a few smooth waves."""
    mesh = trimesh.creation.icosphere(subdivisions=detail, radius=1.0)
    rng = np.random.default_rng(seed)
    v = np.asarray(mesh.vertices, dtype=float)
    waves = rng.normal(size=(6, 3)) * 2.2
    height = 1 + rough * np.sin(v @ waves.T + rng.uniform(0, 6, 6)).mean(axis=1) * 2
    return _shape(v * height[:, None] * radius, np.asarray(mesh.faces, dtype=np.int64))
