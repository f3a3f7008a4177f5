"""What survives of a .blend: objects, materials and world; and nothing of one object in the next."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from blender_files import QUICK, pixels, ply_of_boxes, run_blender

from gap3d.cameras import Camera, look_at_origin
from gap3d.settings import Limits, RenderSettings
from render.job import Model, View
from render.worker import Blender

VIEW = View(look_at_origin(25.0, 30.0, 2.0), 40.0)

AWKWARD = """
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
bpy.ops.wm.save_as_mainfile(filepath=PATH)
"""

# A cube at each corner of a triangle, which the viewport shows and a render does not.
INSTANCED = """
import bpy
bpy.ops.wm.read_homefile(use_factory_startup=True)
mesh = bpy.data.meshes.new("triangle")
mesh.from_pydata([(0, 0, 0), (6, 0, 0), (0, 3, -9)], [], [(0, 1, 2)])
triangle = bpy.data.objects.new("triangle", mesh)
bpy.context.scene.collection.objects.link(triangle)
triangle.instance_type = "VERTS"
triangle.show_instancer_for_render, triangle.show_instancer_for_viewport = False, True
bpy.data.objects["Cube"].parent = triangle
bpy.ops.wm.save_as_mainfile(filepath=PATH)
"""

# A cube that moves and one that is smoothed, in a clean file; then everything is changed that is no object, material
# or world, and it is saved again. Nested settings are all changed, whatever they are.
TWINS = """
import bpy
from pathlib import Path
bpy.ops.wm.read_homefile(use_factory_startup=True)
scene = bpy.context.scene
cube = bpy.data.objects["Cube"]
smooth = cube.copy()
smooth.data = cube.data.copy()
smooth.modifiers.new("smooth", "SUBSURF").render_levels = 3
bpy.context.collection.objects.link(smooth)
for frame, place in ((1, 3.0), (2, 9.0)):
    smooth.location.x = place
    smooth.keyframe_insert("location", frame=frame)
cube.data.materials[0].use_nodes = True
cube.data.materials[0].node_tree.nodes["Principled BSDF"].inputs[0].default_value = (0.1, 0.2, 0.8, 1)
bpy.ops.wm.save_as_mainfile(filepath=str(Path(FOLDER) / "clean.blend"))

KEPT = {"frame_start", "frame_end", "fps", "fps_base"}  # the first frame and the speed are of the animation

def spoil(target):
    for each in target.bl_rna.properties:
        if each.is_readonly or each.identifier in KEPT or getattr(each, "is_array", False):
            continue
        value = getattr(target, each.identifier)
        others = []
        if each.type == "BOOLEAN":
            others = [not value]
        elif each.type in ("INT", "FLOAT"):
            others = [value * 0.5 + 0.25, each.hard_min, each.hard_max]
            others = [value + 1, value - 1] if each.type == "INT" else others
            others = [min(max(other, each.hard_min), each.hard_max) for other in others]
        elif each.type == "ENUM":
            others = [item.identifier for item in each.enum_items if item.identifier != value]
            others += ["Standard", "AUTOMATIC"]  # of lists that are made when they are asked for
        for other in others:
            try:
                setattr(target, each.identifier, other)
                break
            except TypeError:
                continue

layer = scene.view_layers[0]
for target in (scene.cycles, scene.cycles_curves, layer.cycles, layer, scene.view_settings, scene.render):
    spoil(target)
layer.use = scene.render.use_compositing = scene.render.use_sequencer = True
scene.render.engine = "CYCLES"
scene.view_settings.view_transform, scene.view_settings.exposure = "Standard", 3
scene.render.use_simplify, scene.render.simplify_subdivision_render = True, 0
scene.render.use_border, scene.render.border_max_x, scene.render.resolution_percentage = True, 0.5, 50
scene.render.use_motion_blur, scene.render.use_freestyle, scene.render.use_stamp = True, True, True
scene.render.filepath = str(Path(FOLDER) / "written" / "by_scene_")
override = bpy.data.materials.new("override")
layer.material_override = override
layer.world_override = bpy.data.worlds.new("override")
lamp = bpy.data.objects.new("lamp", bpy.data.lights.new("lamp", "SUN"))
lamp.data.energy = 1000
scene.collection.objects.link(lamp)
scene.use_nodes = True
tree = scene.node_tree
tree.nodes.clear()
passes, invert = tree.nodes.new("CompositorNodeRLayers"), tree.nodes.new("CompositorNodeInvert")
composite, output = tree.nodes.new("CompositorNodeComposite"), tree.nodes.new("CompositorNodeOutputFile")
output.base_path = str(Path(FOLDER) / "written")
tree.links.new(passes.outputs["Image"], invert.inputs["Color"])
tree.links.new(invert.outputs[0], composite.inputs["Image"])
tree.links.new(invert.outputs[0], output.inputs[0])
scene.sequence_editor_create()
strip = scene.sequence_editor.strips.new_effect("strip", "COLOR", channel=1, frame_start=1, frame_end=50)
strip.color = (0, 1, 0)
for name in ("A", "Z"):
    other = bpy.data.scenes.new(name)
    huge = cube.copy()
    huge.scale = (50, 50, 50)
    other.collection.objects.link(huge)
bpy.context.window.scene = scene
scene.frame_set(2)
bpy.ops.wm.save_as_mainfile(filepath=str(Path(FOLDER) / "spoiled.blend"))
"""

TOLD = """
import bpy, json
from pathlib import Path
from render.blender import scene

DEFAULTS = dict(resolution=8, samples=1, threshold=0.0, denoise=False, prefilter="none", threads=1, fov=40.0,
                denoise_quality="fast", idle_light=True, seed=0)
POSE = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]

def parts(stage):
    layer, camera = stage.scene.view_layers[0], stage.scene.camera
    found = {"cycles": stage.scene.cycles, "curves": stage.scene.cycles_curves, "render": stage.scene.render,
             "image": stage.scene.render.image_settings, "view": stage.scene.view_settings,
             "display": stage.scene.display_settings, "layer": layer, "layer_cycles": layer.cycles}
    found |= {"lens": camera.data, "focus": camera.data.dof} if camera else {}
    return found

def told(stage):
    values = {}
    for part, target in parts(stage).items():
        for each in target.bl_rna.properties:
            if each.type in ("BOOLEAN", "INT", "FLOAT", "ENUM", "STRING") and not getattr(each, "is_array", False):
                values[f"{part}.{each.identifier}"] = getattr(target, each.identifier)
            elif each.type == "POINTER" and not each.is_readonly:
                values[f"{part}.{each.identifier}"] = getattr(getattr(target, each.identifier), "name", None)
    return values

def staged(main, kind):
    scene.reset()
    stage = scene.load(Path(FOLDER), main, kind, None, 10**6)[0]
    stage.render(Path(OUT), None, camera_to_world=POSE, **DEFAULTS)
    return stage

before = told(staged("a.ply", "ply"))
blend = told(staged("spoiled.blend", "blend"))
stage = staged("a.ply", "ply")
"""
SPOIL = TWINS[TWINS.index("KEPT =") : TWINS.index("layer = scene")]
AGAIN = """
for target in parts(stage).values():
    spoil(target)
spoiled = told(stage)
stage.render(Path(OUT), None, camera_to_world=POSE, **DEFAULTS)
print("@" + json.dumps([before, blend, spoiled, told(stage)]))
"""

# Not read by a final render of one still picture with Cycles: the interface, previews, baking, film, other engines,
# settings of what is switched off, and limits of the screen.
IDLE = re.compile(
    r"cycles\.(name|preview_|use_preview_|bake_type|volume_preview_|sample_subset_length|film_transparent_roughness"
    r"|guiding_|use_guiding_|(use_)?(surface|volume)_guiding|use_deterministic_guiding|rolling_shutter_duration"
    r"|camera_cull_|distance_cull_|fast_gi_method|ao_bounces|debug_bvh_(type|layout)|debug_use_(cpu|cuda|optix|hip_|metal))"
    r"|render\.(preview_|ppm_|fps|motion_blur_|use_high_quality_normals|border_|use_lock_interface|bake|use_bake|stamp_"
    r"|sequencer_gl_|use_sequencer_override|views_format|simplify_|use_simplify_normals|line_thickness"
    r"|compositor_denoise|is_movie_format)"
    r"|image\.(quality|exr_codec|use_jpeg2k|jpeg2k|tiff|use_cineon|cineon|views_format)|view\.white_balance_"
    r"|layer\.(name|active|use_grease_pencil|pass_cryptomatte_depth)|layer_cycles\.name"
    r"|lens\.(name|show_|passepartout|ortho|display_size|panorama|fisheye|latitude|longitude|central|custom|use_fake"
    r"|use_extra|tag|is_runtime|session|users|asset_data)|focus\.(focus_|aperture_|blades)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("blend")


@pytest.fixture(scope="module")
def awkward(folder) -> Model:
    run_blender(AWKWARD, PATH=str(folder / "awkward.blend"))
    return Model(folder, "awkward.blend", "blend")


@pytest.fixture(scope="module")
def twins(folder) -> tuple[Model, Model]:
    """A clean file, and the same objects in a file where everything else is changed."""
    run_blender(TWINS, FOLDER=str(folder))
    return Model(folder, "clean.blend", "blend"), Model(folder, "spoiled.blend", "blend")


def test_hidden_objects_are_gone_and_instances_count(blender, awkward):
    mesh = blender.load(awkward)
    assert mesh.triangles == 24  # the cube and its instance; the two hidden and the hidden collection's are not there
    assert mesh.scale == pytest.approx(1 / 8)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), (0.5, 0.125, 0.125), atol=1e-6)


def test_what_a_geometry_instances_is_in_the_mesh_and_in_the_picture_alike(blender, folder):
    run_blender(INSTANCED, PATH=str(folder / "instanced.blend"))
    mesh = blender.load(Model(folder, "instanced.blend", "blend"))
    assert mesh.triangles == 36
    assert mesh.scale == pytest.approx(1 / 11)  # z from -10 to 1
    np.testing.assert_allclose(mesh.vertices.max(axis=0), np.array((8, 5, 11)) / 22, atol=1e-6)
    camera = Camera(25.0, 30.0, 2.0, 60.0)
    alpha = pixels(blender.render(View(camera.camera_to_world, camera.fov), QUICK).png)[..., 3]
    places, _ = camera.project(mesh.vertices, len(alpha))
    rows, columns = np.nonzero(alpha > 127)
    assert np.abs(places.min(axis=0) - (columns.min(), rows.min())).max() < 1.5
    assert np.abs(places.max(axis=0) - (columns.max() + 1, rows.max() + 1)).max() < 1.5


def test_a_blend_keeps_its_world(blender, awkward):
    blender.load(awkward)
    image = pixels(blender.render(View(look_at_origin(90.0, 30.0, 2.0), 40.0), QUICK).png)
    assert (image[..., 3] == 0).any() and (image[..., 3] == 255).any()
    whole = image[image[..., 3] == 255].astype(int)
    assert whole[:, 0].mean() > whole[:, 2].mean() + 10  # red ambient light


def test_nothing_but_objects_materials_and_world_of_a_blend_changes_the_picture(blender, twins):
    clean, spoiled = twins
    settings = RenderSettings(resolution=64, samples=8, depth=True)
    mesh = blender.load(clean)
    image = blender.render(VIEW, settings)
    assert mesh.scale == pytest.approx(1 / 5, rel=0.05)  # from -1 to 3 and the radius of the smoothed cube: at frame 1
    again = blender.load(spoiled)
    assert np.array_equal(again.vertices, mesh.vertices)
    other = blender.render(VIEW, settings)
    assert other.png == image.png and np.array_equal(other.depth, image.depth)
    assert not (spoiled.tree / "written").exists()


def test_every_setting_is_the_same_after_any_blend_and_none_is_left_to_the_factory(folder, twins, tmp_path):
    ply_of_boxes(folder / "a.ply", ((0, 0, 0), (1, 2, 3)))
    told = run_blender(TOLD + SPOIL + AGAIN, FOLDER=str(folder), OUT=str(tmp_path / "a.png"))
    before, blend, spoiled, again = json.loads(told[told.rindex("@") + 1 :].splitlines()[0])
    of_the_session = {"lens.session_uid"}
    assert not {name for name in before if before[name] != blend[name]} - of_the_session
    changed = {name for name in before if spoiled[name] != before[name]}
    assert len(changed) > 200  # most of what there is can be changed, so what follows says something
    left = {name for name in changed if again[name] != before[name]}
    assert not {name for name in left if not IDLE.match(name)}


def test_the_same_object_is_the_same_bytes_fresh_and_after_others(blender, awkward, tmp_path):
    model = ply_of_boxes(tmp_path / "a.ply", ((0, 0, 0), (1, 2, 3)))
    settings = RenderSettings(resolution=48, samples=4)
    with Blender(Limits(), threads=1, trees=tmp_path.parent) as fresh:
        first_mesh = fresh.load(model)
        first = fresh.render(VIEW, settings)
        for _ in range(2):
            fresh.load(awkward)
            fresh.render(VIEW, settings)
        again_mesh = fresh.load(model)
        again = fresh.render(VIEW, settings)
    assert first.png == again.png
    assert np.array_equal(first_mesh.vertices, again_mesh.vertices)
    blender.load(model)
    assert blender.render(VIEW, settings).png == first.png  # on two threads


LEAK = """
import bpy
from pathlib import Path
from render.blender import scene
kinds = [name for name in dir(bpy.data) if isinstance(getattr(bpy.data, name), bpy.types.bpy_prop_collection)]
def counts():
    scene.reset()
    return {name: len(getattr(bpy.data, name)) for name in kinds}
before = counts()
for main, kind in MODELS:
    scene.load(Path(TREE), main, kind, None, 10**6)
    assert counts() == before, (main, {k: (before[k], v) for k, v in counts().items() if v != before[k]})
"""


def test_a_reset_leaves_nothing_of_the_last_object(awkward):
    ply_of_boxes(awkward.tree / "a.ply", ((0, 0, 0), (1, 2, 3)))
    models = [("awkward.blend", "blend"), ("a.ply", "ply"), ("awkward.blend", "blend")]
    run_blender(LEAK, MODELS=models, TREE=str(awkward.tree))
