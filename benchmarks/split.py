"""Where view selection's time goes, from 1,000 to 5,000,000 triangles, and whether Blender's BVHTree would be faster.

Import and extraction are those of the Blender child (a binary PLY); areas and samples, BVH and 4 x 5000 rays are
Embree's. The rival is ``BVHTree.FromObject`` and its ``ray_cast`` inside Blender, which gets the mesh and the rays for
nothing. Both see the same rays; the share of them on which they agree is in the table.

python -m benchmarks.split [--most 5000000]
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh

from benchmarks._arguments import Arguments
from benchmarks._timing import ratio
from benchmarks.visibility import SETTINGS, rays_of, torus_knot
from gap3d.cameras import Camera
from gap3d.embree import Scene
from gap3d.seeds import generator
from gap3d.settings import Limits
from gap3d.visibility import sample_surface
from render.job import Model
from render.worker import Blender

SIZES = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)
REPEATS = 3

RIVAL = """
import json, sys, time
import bpy
import numpy as np
from mathutils import Vector
from mathutils.bvhtree import BVHTree
data = np.load(sys.argv[1])
mesh = bpy.data.meshes.new("mesh")
vertices, faces = data["vertices"], data["faces"]
mesh.vertices.add(len(vertices))
mesh.vertices.foreach_set("co", vertices.ravel())
mesh.loops.add(faces.size)
mesh.loops.foreach_set("vertex_index", faces.ravel())
mesh.polygons.add(len(faces))
mesh.polygons.foreach_set("loop_start", np.arange(0, faces.size, 3, dtype=np.int32))
mesh.update(calc_edges=True)
item = bpy.data.objects.new("object", mesh)
bpy.context.scene.collection.objects.link(item)
depsgraph = bpy.context.evaluated_depsgraph_get()
rays = [(Vector(o), Vector(d), float(r)) for o, d, r in zip(data["origins"], data["directions"], data["reach"])]
times = []
for _ in range(int(sys.argv[3])):
    started = time.perf_counter()
    tree = BVHTree.FromObject(item, depsgraph)
    built = time.perf_counter()
    blocked = [tree.ray_cast(o, d, r)[3] is not None for o, d, r in rays]
    times.append((built - started, time.perf_counter() - built))
np.save(sys.argv[2], blocked)
print(json.dumps(times))
"""


def best(times: Sequence[Sequence[float]]) -> list[float]:
    """Medians by column."""
    return np.median(np.array(times), axis=0).tolist()


def rival(vertices: np.ndarray, faces: np.ndarray, folder: Path) -> tuple[list[float], np.ndarray]:
    """(build and cast seconds of BVHTree, which rays it found blocked)."""
    origins, directions, reach = rays_of(vertices, faces)
    np.savez(folder / "in.npz", vertices=vertices, faces=faces, origins=origins, directions=directions, reach=reach)
    command = [sys.executable, "-c", RIVAL, str(folder / "in.npz"), str(folder / "out.npy"), str(REPEATS)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = next(line for line in told.splitlines() if line.startswith("[["))
    return best(json.loads(line)), np.load(folder / "out.npy")


def ours(vertices: np.ndarray, faces: np.ndarray) -> tuple[list[float], np.ndarray]:
    """(sample, build and cast seconds of Embree, which rays it found blocked)."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        samples = sample_surface(vertices, faces, SETTINGS.points, generator("benchmark", SETTINGS.seed))
        sampled = time.perf_counter()
        scene = Scene(vertices, faces)
        built = time.perf_counter()
        blocked = []
        for yaw in SETTINGS.yaws:
            camera = Camera(yaw, SETTINGS.pitches[0], SETTINGS.radius, SETTINGS.fov)
            inside = samples[camera.inside_frame(samples)]
            blocked.append(scene.occluded(camera.position, inside, SETTINGS.tolerance))
        times.append((sampled - started, built - sampled, time.perf_counter() - built))
    return best(times), np.concatenate(blocked)


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_size("--most", SIZES[-1], SIZES[0], "triangles of the largest mesh")
    most = parser.read().most
    names = ("import", "extract", "sample", "BVH", "cast", "BVHTree", "its cast")
    print(f"{'triangles':>10}" + "".join(f"{name:>10}" for name in names) + f"{'Embree/BVHTree':>16}{'agree':>9}")
    with tempfile.TemporaryDirectory() as scratch, Blender(Limits(recycle_after=1), 2, trees=Path(scratch)) as blender:
        folder = Path(scratch)
        for size in SIZES:
            if size > most:
                continue
            vertices, faces = torus_knot(size)
            trimesh.Trimesh(vertices, faces, process=False).export(folder / "mesh.ply")
            mesh = blender.load(Model(folder, "mesh.ply", "ply"))
            vertices, faces = mesh.vertices, mesh.faces
            (sample, build, cast), blocked = ours(vertices, faces)
            (their_build, their_cast), their_blocked = rival(vertices, faces, folder)
            seconds = (mesh.costs["import"], mesh.costs["mesh"], sample, build, cast, their_build, their_cast)
            agree = (blocked == their_blocked).mean()
            reached = ratio([build + cast], [their_build + their_cast])
            print(
                f"{len(faces):>10}" + "".join(f"{s * 1e3:>8.1f}ms" for s in seconds) + f"{reached:>16.3f}{agree:>9.4f}"
            )


if __name__ == "__main__":
    main()
