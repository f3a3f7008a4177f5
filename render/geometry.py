"""Many instances of few meshes: their common bounds, and the one normalised mesh they make. Pure NumPy."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

VERTICES_PER_CHUNK = 2**20


@dataclass
class Part:
    """One evaluated mesh and where it stands: vertices float64 [V, 3], faces int32 [F, 3], matrices [4, 4] each."""

    vertices: np.ndarray
    faces: np.ndarray
    matrices: list[list[tuple[float, ...]]] = field(default_factory=list)

    def poses(self, turn: np.ndarray) -> np.ndarray:
        """Object to turned world, float64 [instances, 4, 4]."""
        return turn @ np.array(self.matrices, dtype=np.float64).reshape(-1, 4, 4)


def in_order(parts: list[Part]) -> list[Part]:
    """Parts, their triangles and their instances in an order that their content alone decides.

    Some importers give them in that of addresses in memory; points are sampled from the surface in this order, and the
    same object has to have the same ones in every run.
    """
    for part in parts:
        part.matrices.sort()
        part.faces = faces_in_order(part.faces)
    return sorted(
        parts, key=lambda p: (len(p.faces), len(p.vertices), hashlib.sha256(p.vertices.data).digest(), p.matrices)
    )


def faces_in_order(faces: np.ndarray) -> np.ndarray:
    """Triangles int32 [F, 3], each with its corners in rising order, sorted by them.

    The winding goes: of two faces on the same corners Blender drops one, now the one, now the other.
    """
    turned = np.sort(faces, axis=1)
    return turned[np.lexsort((turned[:, 2], (turned[:, 0].astype(np.int64) << 32) | turned[:, 1]))]


def bounds(parts: list[Part], turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner, float64 [3], over the turned bounding boxes of all instances (docs/method.md 2.1)."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for part in parts:
        ends = np.stack([part.vertices.min(axis=0), part.vertices.max(axis=0)])
        corners = np.array([(ends[i, 0], ends[j, 1], ends[k, 2], 1.0) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        world = np.einsum("nij,cj->nci", part.poses(turn)[:, :3], corners).reshape(-1, 3)
        low, high = np.minimum(low, world.min(axis=0)), np.maximum(high, world.max(axis=0))
    return low, high


@dataclass(frozen=True, eq=False)
class Geometry:
    """The normalised mesh: vertices float32 [V, 3], faces int32 [F, 3]."""

    vertices: np.ndarray
    faces: np.ndarray


def chunks(part: Part, turn: np.ndarray) -> Iterator[np.ndarray]:
    """Turned world vertices of a part's instances, some instances at a time: float64 [instances * V, 3]."""
    poses = part.poses(turn)
    step = max(1, VERTICES_PER_CHUNK // len(part.vertices))
    for start in range(0, len(poses), step):
        some = poses[start : start + step]
        world = part.vertices @ some[:, :3, :3].transpose(0, 2, 1) + some[:, None, :3, 3]
        yield world.reshape(-1, 3)


def gather(parts: list[Part], turn: np.ndarray, scale: float, offset: np.ndarray) -> Geometry:
    """Write all instances into one normalised mesh."""
    vertices = np.empty((sum(len(part.vertices) * len(part.matrices) for part in parts), 3), np.float32)
    faces = np.empty((sum(len(part.faces) * len(part.matrices) for part in parts), 3), np.int32)
    vertex, face = 0, 0
    for part in parts:
        firsts = vertex + len(part.vertices) * np.arange(len(part.matrices), dtype=np.int32)
        for world in chunks(part, turn):
            vertices[vertex : vertex + len(world)] = world * scale + offset
            vertex += len(world)
        count = len(part.faces) * len(firsts)
        np.add(part.faces, firsts[:, None, None], out=faces[face : face + count].reshape(len(firsts), -1, 3))
        face += count
    return Geometry(vertices, faces)
