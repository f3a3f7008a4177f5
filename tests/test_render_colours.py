"""Vertex colours show, in every file type that has them; and no material that a file brings is touched."""

import colorsys

import numpy as np
import pytest
from blender_files import QUICK, Gltf, pixels, run_blender

from gap3d.cameras import look_at_origin
from render.job import Model, View

# Two squares side by side in the XZ plane of Blender, seen from -Y: the left one red, the right one green.
SQUARES = [(x + dx, z) for x in (0, 1) for z in (0, 1) for dx in (0, 1)]
FACES = ((0, 1, 3, 2), (4, 5, 7, 6))
COLOURS = [(1.0, 0.0, 0.0)] * 4 + [(0.0, 0.5, 0.0)] * 4
NAMES = ["bytes.ply", "floats.ply", "a.obj", "a.usda", "by_face.usda", "a.usdz", "a.abc", "a.fbx", "a.dae"]
NAMES += ["bare.gltf", "white.gltf"]
FRONT = View(look_at_origin(270.0, 0.0, 2.0), 40.0)

EXPORTS = """
import bpy
bpy.ops.wm.read_homefile(use_factory_startup=True)
for item in list(bpy.data.objects):
    bpy.data.objects.remove(item)
mesh = bpy.data.meshes.new("squares")
mesh.from_pydata([(x, 0, z) for x, z in SQUARES], [], FACES)
paint = mesh.color_attributes.new("Paint", "BYTE_COLOR", "CORNER")
for corner, value in zip(mesh.loops, paint.data):
    value.color = (*COLOURS[corner.vertex_index], 1)
item = bpy.data.objects.new("squares", mesh)
bpy.context.collection.objects.link(item)
item.select_set(True)
bpy.ops.wm.alembic_export(filepath=FOLDER + "/a.abc", vcolors=True)
bpy.ops.export_scene.fbx(filepath=FOLDER + "/a.fbx", use_selection=True, colors_type="SRGB")
bpy.ops.wm.collada_export(filepath=FOLDER + "/a.dae")
bpy.ops.wm.usd_export(filepath=FOLDER + "/a.usdz")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same two squares in every type that can colour its vertices."""
    folder = tmp_path_factory.mktemp("colours")
    run_blender(EXPORTS, SQUARES=SQUARES, FACES=FACES, COLOURS=COLOURS, FOLDER=str(folder))
    header = "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    header += "".join(f"property {{kind}} {name}\n" for name in ("red", "green", "blue"))
    header += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    faces = "".join(f"4 {' '.join(map(str, face))}\n" for face in FACES)
    for name, kind in (("bytes", "uchar"), ("floats", "float")):
        rows = [(x, 0, z, *(c if kind == "float" else round(255 * c) for c in colour)) for (x, z), colour in ROWS]
        body = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        (folder / f"{name}.ply").write_text(header.format(kind=kind) + body + faces)
    write_obj(folder, "a.obj", colours=True, material=False)
    write_usda(folder / "a.usda", "vertex", COLOURS)
    write_usda(folder / "by_face.usda", "uniform", [COLOURS[0], COLOURS[4]])
    for name, factor in (("bare", None), ("white", [1, 1, 1, 1])):
        write_gltf(folder / f"{name}.gltf", factor)
    return folder


ROWS = list(zip(SQUARES, COLOURS, strict=True))


def write_obj(folder, name, *, colours, material):
    (folder / "blue.mtl").write_text("newmtl blue\nKd 0 0 1\n")
    rows = [(x, z, 0, *(colour if colours else ())) for (x, z), colour in ROWS]  # Y up
    text = "mtllib blue.mtl\n" if material else ""
    text += "".join(f"v {' '.join(map(str, row))}\n" for row in rows)
    text += "usemtl blue\n" if material else ""
    (folder / name).write_text(text + "".join(f"f {' '.join(str(n + 1) for n in face)}\n" for face in FACES))


def write_usda(path, interpolation, colours):
    path.write_text(f"""#usda 1.0
(
    defaultPrim = "squares"
    upAxis = "Z"
)
def Mesh "squares"
{{
    int[] faceVertexCounts = [4, 4]
    int[] faceVertexIndices = {[n for face in FACES for n in face]}
    point3f[] points = {[(x, 0, z) for x, z in SQUARES]}
    color3f[] primvars:displayColor = {colours} ( interpolation = "{interpolation}" )
}}
""")


def write_gltf(path, factor):
    gltf = Gltf()
    corners = [corner for a, b, c, d in FACES for corner in (a, b, c, a, c, d)]
    places = gltf.add("f", [(x, z, 0) for x, z in SQUARES], "VEC3")  # Y up
    attributes = {"POSITION": places, "COLOR_0": gltf.add("f", COLOURS, "VEC3")}
    primitive = {"attributes": attributes, "indices": gltf.add("H", [[n] for n in corners], "SCALAR")}
    if factor:
        primitive["material"] = 0
        gltf.document["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": factor, "metallicFactor": 0}}]
    gltf.document["meshes"] = [{"primitives": [primitive]}]
    gltf.write(path, [{"mesh": 0}], [0])


def hues(image):
    """Hue in degrees and saturation of the median colour in the left and in the right half of what is covered."""
    columns = np.nonzero((image[..., 3] == 255).any(axis=0))[0]
    found = []
    for half in (columns[: len(columns) // 2 - 1], columns[len(columns) // 2 + 1 :]):
        part = image[:, half][image[:, half, 3] == 255][:, :3]
        hue, _, saturation = colorsys.rgb_to_hls(*(np.median(part, axis=0) / 255))
        found.append((360 * hue, saturation))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_red_and_a_green_half_are_rendered_red_and_green(blender, folder, name):
    blender.load(Model(folder, name, name.rpartition(".")[2]))
    (left, strong), (right, strong_too) = hues(pixels(blender.render(FRONT, QUICK).png))
    # White light on (1, 0, 0) and (0, 0.5, 0) leaves the other two channels equal: the hue stays, whatever the shading.
    assert min(left, 360 - left) < 6 and abs(right - 120) < 6
    assert min(strong, strong_too) > 0.3


def test_where_a_file_brings_a_material_its_vertex_colours_change_nothing(blender, tmp_path):
    pictures = []
    for colours in (True, False):
        write_obj(tmp_path, "a.obj", colours=colours, material=True)
        blender.load(Model(tmp_path, "a.obj", "obj"))
        pictures.append(blender.render(FRONT, QUICK).png)
    assert pictures[0] == pictures[1]
    assert all(abs(hue - 240) < 6 for hue, _ in hues(pixels(pictures[0])))


def test_a_mesh_without_colours_and_without_material_stays_grey(blender, tmp_path):
    write_obj(tmp_path, "a.obj", colours=False, material=False)
    blender.load(Model(tmp_path, "a.obj", "obj"))
    image = pixels(blender.render(FRONT, QUICK).png)
    assert np.ptp(image[image[..., 3] == 255][:, :3].astype(int), axis=1).max() <= 3
