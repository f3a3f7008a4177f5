"""Images that a file refers to and that are not there are named, and the object is rendered."""

import zipfile

import numpy as np
import pytest
from blender_files import QUICK, pixels, run_blender

from gap3d.cameras import look_at_origin
from render.job import Model, View
from render.worker import Blender

EXPORTS = """
import bpy, os
USD = dict(export_textures_mode="KEEP", relative_paths=True, convert_world_material=False)
bpy.ops.wm.read_homefile(use_factory_startup=True)
cube = bpy.data.objects["Cube"]
for name in ("Light", "Camera"):
    bpy.data.objects.remove(bpy.data.objects[name])
image = bpy.data.images.new("brick", 8, 8)
image.generated_color = (0, 1, 0, 1)
image.filepath_raw, image.file_format = FOLDER + "/brick.png", "PNG"
image.save()
bpy.data.images.remove(image)
material = cube.data.materials[0]
material.use_nodes = True
texture = material.node_tree.nodes.new("ShaderNodeTexImage")
texture.image = bpy.data.images.load(FOLDER + "/brick.png")
material.node_tree.links.new(texture.outputs[0], material.node_tree.nodes["Principled BSDF"].inputs["Base Color"])
bpy.ops.wm.save_as_mainfile(filepath=FOLDER + "/a.blend", relative_remap=True)
bpy.ops.export_scene.fbx(filepath=FOLDER + "/a.fbx", path_mode="RELATIVE")
bpy.ops.wm.collada_export(filepath=FOLDER + "/a.dae")
bpy.ops.export_scene.gltf(filepath=FOLDER + "/a.gltf", export_format="GLTF_SEPARATE")
bpy.ops.wm.obj_export(filepath=FOLDER + "/a.obj", path_mode="RELATIVE")
bpy.ops.wm.usd_export(filepath=FOLDER + "/a.usda", **USD)
bpy.ops.wm.usd_export(filepath=FOLDER + "/a.usdc", **USD)
bpy.ops.wm.usd_export(filepath=FOLDER + "/a.usdz", convert_world_material=False)
os.rename(FOLDER + "/a.usdc", FOLDER + "/a.usd")
"""
TYPES = ("obj", "gltf", "fbx", "dae", "usda", "usd", "usdz", "blend")
VIEW = View(look_at_origin(25.0, 30.0, 2.0), 40.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every type with its image beside or in it; not where it was exported to, which an absolute path would find."""
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("exported") / "moved"
    run_blender(EXPORTS, FOLDER=str(made))
    return made.rename(folder)


@pytest.fixture(scope="module")
def bereft(exported, tmp_path_factory):
    """The same files without the image."""
    folder = tmp_path_factory.mktemp("bereft")
    for path in exported.iterdir():
        if path.is_file() and path.suffix not in (".png", ".usdz"):
            (folder / path.name).write_bytes(path.read_bytes())
    with zipfile.ZipFile(exported / "a.usdz") as package, zipfile.ZipFile(folder / "a.usdz", "w") as rest:
        for name in package.namelist():
            if not name.endswith(".png"):
                rest.writestr(name, package.read(name))
    return folder


def median(blender: Blender, folder, kind: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of missing textures, and the median colour."""
    mesh = blender.load(Model(folder, f"a.{kind}", kind))
    image = pixels(blender.render(VIEW, QUICK).png)
    return mesh.missing_textures, np.median(image[image[..., 3] == 255][:, :3], axis=0).astype(int)


@pytest.mark.parametrize("kind", TYPES)
def test_a_missing_texture_is_named_and_the_object_is_rendered(blender, bereft, kind):
    missing, (red, green, blue) = median(blender, bereft, kind)
    assert missing == ("brick.png",)
    assert (min(red, blue) > green + 60) == (kind != "dae")  # Blender's pink, or the material's plain colour


@pytest.mark.parametrize("kind", TYPES)
def test_a_texture_that_is_there_is_seen_and_not_missed(blender, exported, kind):
    missing, (red, green, blue) = median(blender, exported, kind)
    assert missing == ()
    assert green > max(red, blue) + 60
