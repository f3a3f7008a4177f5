"""View selection against Blender's own ray casting."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from meshes import CAMERAS, SETTINGS, arrays, bumpy, soup
from shared_data import DATA, needs_data

from gap3d.embree import Scene
from gap3d.seeds import generator
from gap3d.visibility import sample_surface

OBJECTS = DATA / "objects"


# Blender's own ray casting, and proof that Embree works in a process that holds Blender.
BLENDER = """
import sys
import bpy
import numpy as np
from mathutils import Vector
from mathutils.bvhtree import BVHTree
from gap3d.embree import require_embree
require_embree()
data = np.load(sys.argv[1])
answers = {}
for name in {key.split("/")[0] for key in data.files}:
    tree = BVHTree.FromPolygons(data[name + "/vertices"].tolist(), data[name + "/faces"].tolist(), all_triangles=True)
    for index, origin in enumerate(data[name + "/origins"]):
        reaches = []
        for point in data[name + "/points"]:
            towards = Vector(point) - Vector(origin)
            hit = tree.ray_cast(Vector(origin), towards.normalized())
            reaches.append(np.inf if hit[3] is None else hit[3])
        answers[f"{name}/{index}"] = np.array(reaches)
np.savez(sys.argv[2], **answers)
"""


def real_meshes():
    """A few small files of the shared objects that trimesh reads, by name."""
    found = {}
    for suffix in ("obj", "stl", "ply", "glb"):
        files = sorted(OBJECTS.rglob(f"*.{suffix}"), key=lambda path: (path.stat().st_size, path.name))
        good = []
        for path in files:
            if not 5_000 < path.stat().st_size < 4_000_000:
                continue
            try:
                mesh = trimesh.load(path, force="mesh", process=False, skip_materials=True)
            except Exception:  # noqa: BLE001 - whatever a reader says about a hostile file; another one will do
                continue
            if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces) > 100 and np.ptp(mesh.vertices, axis=0).max() > 0:
                good.append((path.stem, mesh))
        found.update((f"{suffix}-{name}".replace("/", "_"), mesh) for name, mesh in good[-3:])
    return found


def compare_with_blender(meshes, folder):
    pytest.importorskip("bpy", reason="Blender's Python module is not installed")
    data, ours = {}, {}
    for name, (vertices, faces) in meshes.items():
        points = sample_surface(vertices, faces, SETTINGS.points, generator(name, 0))
        scene = Scene(vertices, faces)
        ours[name] = [scene.visible(camera, points, SETTINGS.tolerance) for camera in CAMERAS]
        data |= {f"{name}/vertices": vertices, f"{name}/faces": faces, f"{name}/points": points}
        data[f"{name}/origins"] = np.array([camera.position for camera in CAMERAS])
    np.savez(folder / "in.npz", **data)
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", BLENDER, folder / "in.npz", folder / "out.npz"], check=True, cwd=root)
    blender = np.load(folder / "out.npz")
    for name in meshes:
        points = data[f"{name}/points"]
        for index, camera in enumerate(CAMERAS):
            distances = np.linalg.norm(points - camera.position, axis=1)
            theirs = camera.inside_frame(points) & (blender[f"{name}/{index}"] >= distances - SETTINGS.tolerance)
            apart = (theirs != ours[name][index]).mean()
            assert apart <= 0.005, f"{name}, yaw {camera.yaw}: {apart:.2%} of the points"


def test_blender_agrees_on_made_meshes(tmp_path):
    knot = trimesh.creation.torus(0.35, 0.12, major_sections=90, minor_sections=30)
    meshes = {"bumpy": bumpy(), "soup": soup(1, 400), "torus": arrays(knot), "box": arrays(trimesh.creation.box())}
    compare_with_blender(meshes, tmp_path)


@needs_data
def test_blender_agrees_on_real_meshes(tmp_path):
    meshes = {name: arrays(mesh) for name, mesh in real_meshes().items()}
    assert len(meshes) >= 4
    compare_with_blender(meshes, tmp_path)
