"""What view selection costs beside the bare ray caster: ``python -m benchmarks.visibility``.

Every row times the whole ``select_view`` (areas, 5000 samples, BVH, 4 x 5000 rays, choice) against

- *C calls*: the same Embree BVH build and the same packets, already laid out, and nothing else;
- *embreex*: ``TriangleMesh`` and ``EmbreeScene.run(query="OCCLUDED")`` on the same arrays and rays;
- *Blender*: the evaluated depsgraph and a loop of ``scene.ray_cast`` over the same rays (small mesh only).

The rivals get their samples, rays and mesh for nothing. Repeats are interleaved; times are medians of
wall-clock seconds, ratios are medians of the ratios within one repeat. Creating the Blender mesh is not
timed. Other work on the machine moves the times, and much less the ratios.
"""

import statistics
from collections.abc import Callable

import numpy as np
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from benchmarks._arguments import Arguments
from benchmarks._timing import ratio, timed
from gap3d.cameras import Camera
from gap3d.embree import PACKET_BYTES, Scene, packets
from gap3d.seeds import generator
from gap3d.settings import ViewSettings
from gap3d.visibility import sample_surface, select_view

SETTINGS = ViewSettings()


def torus_knot(triangles: int) -> tuple[np.ndarray, np.ndarray]:
    """A (2, 3) torus knot with a rippled tube: much self-occlusion, no two triangles alike."""
    around = max(8, int((triangles / 40) ** 0.5))
    along = triangles // (2 * around)
    t = np.linspace(0, 2 * np.pi, along, endpoint=False)[:, None]
    s = np.linspace(0, 2 * np.pi, around, endpoint=False)[None, :]
    curve = np.stack([np.sin(t) + 2 * np.sin(2 * t), np.cos(t) - 2 * np.cos(2 * t), -np.sin(3 * t)], axis=-1)
    tangent = np.roll(curve, -1, axis=0) - np.roll(curve, 1, axis=0)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
    normal = np.cross(tangent, [0.0, 0.0, 1.0])
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    binormal = np.cross(tangent, normal)
    ripple = 0.45 + 0.05 * np.sin(60 * t) * np.sin(6 * s)
    surface = curve + ripple[..., None] * (np.cos(s)[..., None] * normal + np.sin(s)[..., None] * binormal)
    vertices = surface.reshape(-1, 3)
    i, j = np.meshgrid(np.arange(along), np.arange(around), indexing="ij")
    a, b = i * around + j, (i + 1) % along * around + j
    c, d = (i + 1) % along * around + (j + 1) % around, i * around + (j + 1) % around
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return normalised(vertices), faces.astype(np.int32)


def rippled_sphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    """A sphere with bumps that hide one another."""
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
    vertices = np.asarray(sphere.vertices)
    return normalised(vertices * (1 + 0.1 * np.sin(25 * vertices))), np.asarray(sphere.faces, dtype=np.int32)


def normalised(vertices: np.ndarray) -> np.ndarray:
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    return ((vertices - (low + high) / 2) / (high - low).max()).astype(np.float32)


def rays_of(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origins, unit directions and reaches of every ray that select_view casts at this mesh."""
    samples = sample_surface(vertices, faces, SETTINGS.points, generator("benchmark", SETTINGS.seed))
    rays = []
    for yaw in SETTINGS.yaws:
        camera = Camera(yaw, SETTINGS.pitches[0], SETTINGS.radius, SETTINGS.fov)
        towards = samples[camera.inside_frame(samples)] - camera.position
        distances = np.linalg.norm(towards, axis=1)
        origins = np.broadcast_to(camera.position, towards.shape)
        rays.append((origins, towards / distances[:, None], distances - SETTINGS.tolerance))
    origins, directions, reach = (np.concatenate(parts).astype(np.float32) for parts in zip(*rays, strict=True))
    return origins, directions, reach


def c_calls(vertices: np.ndarray, faces: np.ndarray, rays: tuple) -> Callable[[], Callable[[], int]]:
    origins, directions, reach = rays

    def prepare() -> Callable[[], int]:
        laid_out = packets(origins, directions, reach)
        assert laid_out.nbytes % PACKET_BYTES == 0

        def cast() -> int:
            return int(Scene(vertices, faces).cast(laid_out)[: len(reach)].sum())

        return cast

    return prepare


def embreex_classes(vertices: np.ndarray, faces: np.ndarray, rays: tuple) -> Callable[[], Callable[[], int]]:
    origins, directions, reach = rays

    def prepare() -> Callable[[], int]:
        def cast() -> int:
            scene = EmbreeScene(robust=True)
            TriangleMesh(scene, vertices, faces)
            return int((scene.run(origins, directions, dists=reach, query="OCCLUDED") >= 0).sum())

        return cast

    return prepare


def blender_loop(vertices: np.ndarray, faces: np.ndarray, rays: tuple) -> Callable[[], Callable[[], int]]:
    import bpy
    from mathutils import Vector

    def prepare() -> Callable[[], int]:
        for leftover in list(bpy.data.objects):
            bpy.data.objects.remove(leftover)
        mesh = bpy.data.meshes.new("mesh")
        mesh.from_pydata(vertices.tolist(), [], faces.tolist())
        scene = bpy.context.scene
        scene.collection.objects.link(bpy.data.objects.new("object", mesh))
        casts = [(Vector(o), Vector(d), float(r)) for o, d, r in zip(*rays, strict=True)]

        def cast() -> int:
            depsgraph = bpy.context.evaluated_depsgraph_get()
            return sum(scene.ray_cast(depsgraph, o, d, distance=r)[0] for o, d, r in casts)

        return cast

    return prepare


def main() -> None:
    """Print one table."""
    parser = Arguments(__doc__)
    parser.add_size("--repeats", 9, 1)
    parser.add_size("--most", 2_000_000, 100_000, "leave out meshes of more triangles")
    known = parser.read()
    meshes = [
        ("torus knot", torus_knot(60_000)),
        ("rippled sphere", rippled_sphere(6)),
        ("torus knot", torus_knot(1_000_000)),
        ("rippled sphere", rippled_sphere(8)),
    ]
    rivals = [("C calls", c_calls), ("embreex", embreex_classes), ("Blender", blender_loop)]
    print(f"{'mesh':<16}{'triangles':>10}{'select_view':>13}" + "".join(f"{n:>11}{'ratio':>8}" for n, _ in rivals))
    for name, (vertices, faces) in meshes:
        if len(faces) > known.most:
            continue
        rays = rays_of(vertices, faces)
        taking_part = [rival for rival in rivals if rival[0] != "Blender" or len(faces) < 100_000]
        makers = [make(vertices, faces, rays) for _, make in taking_part]
        ours: list[float] = []
        theirs: list[list[float]] = [[] for _ in makers]
        blocked: set[int] = set()
        visible = len(rays[2]) - sum(select_view(vertices, faces, SETTINGS, "benchmark").counts)
        for _ in range(known.repeats):
            ours.append(timed(lambda: select_view(vertices, faces, SETTINGS, "benchmark")))  # noqa: B023
            for maker, seconds in zip(makers, theirs, strict=True):
                cast = maker()
                seconds.append(timed(lambda: blocked.add(cast())))  # noqa: B023
        ratios = [ratio(ours, each) for each in theirs]
        cells = "".join(f"{statistics.median(s) * 1e3:>8.1f} ms{r:>8.3f}" for s, r in zip(theirs, ratios, strict=True))
        print(f"{name:<16}{len(faces):>10}{statistics.median(ours) * 1e3:>10.1f} ms{cells}")
        assert all(abs(hits - visible) <= 0.005 * len(rays[2]) for hits in blocked), "the rivals disagree"


if __name__ == "__main__":
    main()
