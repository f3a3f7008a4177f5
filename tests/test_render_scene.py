"""What the scene is: geometry, colours and pixels against closed forms, and the same bytes every time."""

import ast
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from gap3d.cameras import look_at_origin
from gap3d.settings import Limits, RenderSettings
from render.job import FILE_TYPES, Model, View
from render.worker import Blender

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
CUBE_CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
CUBE_QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data set is not at {DATA}")


def ply_of_boxes(path: Path, *boxes: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Model:
    """A PLY (Z up, no axis conversion) of boxes given by lowest corner and size."""
    vertices = np.concatenate([np.array(low) + CUBE_CORNERS * size for low, size in boxes])
    faces = [[8 * n + corner for corner in quad] for n in range(len(boxes)) for quad in CUBE_QUADS]
    header = f"ply\nformat ascii 1.0\nelement vertex {len(vertices)}\nproperty float x\nproperty float y\n"
    header += f"property float z\nelement face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    rows = [" ".join(map(str, vertex)) for vertex in vertices] + [f"4 {' '.join(map(str, face))}" for face in faces]
    path.write_text(header + "\n".join(rows) + "\n")
    return Model(path.parent, path.name, "ply")


@pytest.fixture(scope="module")
def blender():
    with Blender(Limits(), threads=2) as shared:
        yield shared


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(BytesIO(png)))


def test_every_type_has_an_importer_that_this_blender_knows():
    program = """
        import bpy
        from render import scene
        assert sorted(scene.IMPORTERS) == sorted(FILE_TYPES), sorted(scene.IMPORTERS)
        for operator in ("wm.obj_import", "wm.stl_import", "wm.ply_import", "wm.usd_import", "wm.alembic_import",
                         "wm.collada_import", "wm.fbx_import", "wm.open_mainfile", "import_scene.gltf"):
            group, name = operator.split(".")
            getattr(getattr(bpy.ops, group), name).get_rna_type()
    """
    source = "\n".join(line[8:] for line in program.splitlines()).replace("FILE_TYPES", repr(FILE_TYPES))
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True, capture_output=True, timeout=120)


def test_only_the_scene_imports_blender():
    found = set()
    for path in (ROOT / "render").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("bpy", "mathutils") for name in names):
                found.add(path.name)
    assert found == {"scene.py"}


def test_two_separate_boxes_are_normalised_as_one_object(blender, tmp_path):
    mesh = blender.load(ply_of_boxes(tmp_path / "a.ply", ((0, 0, 0), (1, 1, 1)), ((9, 3, 0), (1, 1, 2))))
    assert mesh.vertices.dtype == np.float32 and mesh.faces.dtype == np.int32
    assert mesh.triangles == len(mesh.faces) == 24
    assert mesh.scale == pytest.approx(0.1)
    assert mesh.offset == pytest.approx((-0.5, -0.2, -0.1))
    np.testing.assert_allclose(mesh.vertices.min(axis=0), (-0.5, -0.2, -0.1), atol=1e-6)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), (0.5, 0.2, 0.1), atol=1e-6)


@pytest.mark.parametrize("axis", ["X", "-X", "Y", "-Y", "Z", "-Z"])
def test_up_axis_turns_the_named_axis_up(blender, tmp_path, axis):
    # A slab at the origin, and a needle that points along the axis.
    number, sign = "XYZ".index(axis[-1]), -1 if axis[0] == "-" else 1
    low, size = np.full(3, -0.5), np.ones(3)
    needle_low, needle_size = np.full(3, -0.05), np.full(3, 0.1)
    needle_low[number], needle_size[number] = (0.0 if sign > 0 else -4.0), 4.0
    model = ply_of_boxes(tmp_path / "a.ply", (tuple(low), tuple(size)), (tuple(needle_low), tuple(needle_size)))
    mesh = blender.load(Model(model.tree, model.main, "ply", axis))
    top = mesh.vertices[mesh.vertices[:, 2] > 0.49]
    assert len(top) == 4 and np.ptp(top[:, :2], axis=0).max() < 0.03


def test_corners_of_a_cube_are_rendered_within_half_a_pixel_of_the_closed_form(blender, tmp_path):
    resolution, fov, side = 128, 60.0, 0.02
    # Two opposite corners of a unit cube, each marked by a tiny box; alone, they span the bounding box.
    ends = (((0, 0, 0), (side,) * 3), ((1 - side,) * 3, (side,) * 3))
    blender.load(ply_of_boxes(tmp_path / "a.ply", *ends))
    pose = look_at_origin(25.0, 30.0, 2.0)
    image = blender.render(View(pose, fov), RenderSettings(resolution=resolution, samples=16, denoise=False))
    alpha = pixels(image.png)[..., 3].astype(float)
    rows, columns = np.mgrid[:resolution, :resolution] + 0.5
    focal = resolution / 2 / np.tan(np.radians(fov) / 2)
    for corner in (-0.5 + side / 2, 0.5 - side / 2):
        x, y, z, _ = np.linalg.inv(pose) @ (corner, corner, corner, 1.0)
        column, row = resolution / 2 + focal * x / -z, resolution / 2 - focal * y / -z
        near = alpha * ((abs(columns - column) < 6) & (abs(rows - row) < 6))
        assert near.sum() > 128  # half a pixel of it is seen at least
        assert (near * columns).sum() / near.sum() == pytest.approx(column, abs=0.5)
        assert (near * rows).sum() / near.sum() == pytest.approx(row, abs=0.5)


def test_alpha_is_straight_and_the_background_is_clear(blender, tmp_path):
    blender.load(ply_of_boxes(tmp_path / "a.ply", ((0, 0, 0), (1, 1, 1))))
    view = View(look_at_origin(25.0, 30.0, 2.0), 40.0)
    image = pixels(blender.render(view, RenderSettings(resolution=64, samples=16, denoise=False)).png)
    assert image[image[..., 3] == 0].max() <= 1  # Blender dithers what it clears, too
    assert (image[..., 3] == 255).any()
    edge = image[(image[..., 3] > 0) & (image[..., 3] < 128)]
    whole = image[image[..., 3] == 255]
    # Were it multiplied by alpha, the edge would be at most half as bright as the darkest face.
    assert len(edge) and np.median(edge[:, :3].max(axis=1)) > 0.7 * whole[:, :3].max(axis=1).min()


BLEND = """
import bpy
bpy.ops.wm.read_homefile(use_factory_startup=True)
cube = bpy.data.objects["Cube"]
for name, hide in (("viewport", "hide_viewport"), ("render", "hide_render")):
    other = cube.copy()
    other.location = (10, 0, 0)
    setattr(other, hide, True)
    bpy.context.collection.objects.link(other)
hidden = bpy.data.collections.new("hidden")
bpy.context.scene.collection.children.link(hidden)
far = cube.copy()
far.location = (0, 10, 0)
hidden.objects.link(far)
hidden.hide_render = True
twin = bpy.data.objects.new("twin", None)
twin.instance_type, twin.instance_collection = "COLLECTION", bpy.data.collections["Collection"]
twin.location = (6, 0, 0)
bpy.context.scene.collection.objects.link(twin)
scene = bpy.context.scene
scene.world = bpy.data.worlds.new("red")
scene.world.color = (1, 0, 0)
scene.view_settings.view_transform, scene.view_settings.exposure = "Standard", 3
scene.render.resolution_percentage, scene.render.use_border, scene.render.border_max_x = 50, True, 0.5
scene.render.film_transparent = False
scene.use_nodes = True
scene.node_tree.nodes.clear()
bpy.ops.wm.save_as_mainfile(filepath=PATH)
"""


@pytest.fixture(scope="module")
def awkward_blend(tmp_path_factory) -> Model:
    path = tmp_path_factory.mktemp("blend") / "awkward.blend"
    program = BLEND.replace("PATH", repr(str(path)))
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)
    return Model(path.parent, path.name, "blend")


def test_hidden_objects_are_gone_and_instances_count(blender, awkward_blend):
    mesh = blender.load(awkward_blend)
    assert mesh.triangles == 24  # the cube and its instance; the two hidden and the hidden collection's are not there
    assert mesh.scale == pytest.approx(1 / 8)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), (0.5, 0.125, 0.125), atol=1e-6)


def test_a_blend_keeps_its_world_and_nothing_else_of_its_settings(blender, awkward_blend):
    blender.load(awkward_blend)
    view = View(look_at_origin(90.0, 30.0, 2.0), 40.0)
    image = pixels(blender.render(view, RenderSettings(resolution=32, samples=4, denoise=False)).png)
    assert image.shape == (32, 32, 4)
    assert (image[..., 3] == 0).any() and (image[..., 3] == 255).any()
    whole = image[image[..., 3] == 255].astype(int)
    assert whole[:, 0].mean() > whole[:, 2].mean() + 10  # red ambient light


def test_the_same_object_is_the_same_bytes_fresh_and_after_others(blender, awkward_blend, tmp_path):
    model = ply_of_boxes(tmp_path / "a.ply", ((0, 0, 0), (1, 2, 3)))
    view, settings = View(look_at_origin(25.0, 30.0, 2.0), 40.0), RenderSettings(resolution=48, samples=4)
    with Blender(Limits(), threads=1) as fresh:
        first_mesh = fresh.load(model)
        first = fresh.render(view, settings)
        for _ in range(2):
            fresh.load(awkward_blend)
            fresh.render(view, settings)
        again_mesh = fresh.load(model)
        again = fresh.render(view, settings)
    assert first.png == again.png
    assert np.array_equal(first_mesh.vertices, again_mesh.vertices)
    blender.load(model)
    assert blender.render(view, settings).png == first.png  # on two threads


LEAK = """
import bpy
from pathlib import Path
from render import scene
kinds = [name for name in dir(bpy.data) if isinstance(getattr(bpy.data, name), bpy.types.bpy_prop_collection)]
def counts():
    scene.reset()
    return {name: len(getattr(bpy.data, name)) for name in kinds}
before = counts()
for main, kind in MODELS:
    scene.load(Path(TREE), main, kind, None, 10**6)
    assert counts() == before, (main, {k: (before[k], v) for k, v in counts().items() if v != before[k]})
"""


def test_a_reset_leaves_nothing_of_the_last_object(awkward_blend):
    ply_of_boxes(awkward_blend.tree / "a.ply", ((0, 0, 0), (1, 2, 3)))
    models = [("awkward.blend", "blend"), ("a.ply", "ply"), ("awkward.blend", "blend")]
    program = LEAK.replace("MODELS", repr(models)).replace("TREE", repr(str(awkward_blend.tree)))
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, timeout=120)


@needs_data
@pytest.mark.parametrize(
    ("path", "triangles"),
    [
        ("objects/BabylonJS/MeshesLibrary/TeapotsGalore/TeapotsGalore.gltf", 7656770),  # by instancing
        ("objects/assimp/assimp/test/models/BLEND/SuzanneSubdiv_252.blend", 251904),  # by a modifier
        ("objects/BabylonJS/MeshesLibrary/Demos/retargeting/riggedMesh.glb", 11034),  # bone shapes do not count
    ],
)
def test_instances_and_modifiers_are_in_the_mesh_in_little_time(blender, path, triangles):
    file = DATA / path
    mesh = blender.load(Model(file.parent, file.name, file.suffix[1:]))
    assert mesh.triangles == triangles
    assert np.abs(mesh.vertices).max() <= 0.5 + 1e-5
    assert mesh.costs["mesh"] < 10
