"""What the scene is: geometry against closed forms, and the same bytes every time."""

import numpy as np
import pytest
from blender_files import QUICK, Gltf, pixels, ply_of_boxes, run_blender
from shared_data import DATA, needs_data

from gap3d.cameras import look_at_origin
from gap3d.records import Failure, Status
from gap3d.settings import Limits, RenderSettings
from render.job import FILE_TYPES, Model, View
from render.worker import Blender

IN_BLENDER = {"content", "cycles", "depth", "device", "importers", "materials", "scene", "textures"}
VIEW = View(look_at_origin(25.0, 30.0, 2.0), 40.0)


def test_every_type_has_an_importer_that_this_blender_knows():
    program = """
import bpy
from render.blender import importers
assert sorted(importers.IMPORTERS) == sorted(FILE_TYPES), sorted(importers.IMPORTERS)
for operator in ("wm.obj_import", "wm.stl_import", "wm.ply_import", "wm.usd_import", "wm.alembic_import",
                 "wm.collada_import", "wm.fbx_import", "wm.open_mainfile", "import_scene.gltf"):
    group, name = operator.split(".")
    getattr(getattr(bpy.ops, group), name).get_rna_type()
"""
    run_blender(program, FILE_TYPES=FILE_TYPES)


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


def assert_spans(mesh, low, high):
    """The mesh is what the box from low to high (of the file, Z up) becomes, and the box is where it is said to be."""
    low, high = np.array(low, float), np.array(high, float)
    scale = 1 / (high - low).max()
    assert mesh.scale == pytest.approx(scale, rel=1e-5)
    assert mesh.offset == pytest.approx(tuple(-scale * (low + high) / 2), abs=1e-5)
    np.testing.assert_allclose(mesh.vertices.min(axis=0), -scale * (high - low) / 2, atol=1e-5)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), scale * (high - low) / 2, atol=1e-5)


def test_several_roots_with_scaled_children_are_one_object_and_a_far_empty_is_none_of_it(blender, tmp_path):
    nodes = [
        {"mesh": 0},
        {"translation": [4, 0, 0], "scale": [2, 2, 2], "children": [2]},
        {"mesh": 0, "translation": [0, 1, 0]},
        {"translation": [1000, 0, 0]},
    ]
    mesh = blender.load(Gltf().write(tmp_path / "a.gltf", nodes, [0, 1, 3]))
    # glTF's Y is Blender's Z, its Z is Blender's -Y. The child's cube: x 4 to 6, y (up) 2 to 4, z 0 to 2.
    assert_spans(mesh, (0, -2, 0), (6, 0, 4))
    assert mesh.triangles == 24


def animated(gltf: Gltf, node: int) -> None:
    """At the first key, which differs from the node's own pose, the node is at x = 3; a second later at x = 50."""
    times, places = gltf.add("f", [[0.0], [1.0]], "SCALAR"), gltf.add("f", [[3, 0, 0], [50, 0, 0]], "VEC3")
    target = {"node": node, "path": "translation"}
    gltf.document["animations"] = [
        {"channels": [{"sampler": 0, "target": target}], "samplers": [{"input": times, "output": places}]}
    ]


def test_of_an_animated_object_the_first_frame_counts(blender, tmp_path):
    gltf = Gltf()
    animated(gltf, 1)
    nodes = [{"mesh": 0}, {"mesh": 0, "translation": [0, 20, 0]}]
    mesh = blender.load(gltf.write(tmp_path / "a.gltf", nodes, [0, 1]))
    assert mesh.animated
    assert_spans(mesh, (0, -1, 0), (4, 0, 1))


def test_of_a_skinned_object_the_pose_of_the_first_frame_counts(blender, tmp_path):
    gltf = Gltf()
    animated(gltf, 2)
    joints, weights = gltf.add("B", [[0, 0, 0, 0]] * 8, "VEC4"), gltf.add("f", [[1, 0, 0, 0]] * 8, "VEC4")
    skinned = {"attributes": gltf.cube | {"JOINTS_0": joints, "WEIGHTS_0": weights}}
    skinned["indices"] = gltf.document["meshes"][0]["primitives"][0]["indices"]
    gltf.document["meshes"].append({"primitives": [skinned]})
    gltf.document["skins"] = [{"joints": [2]}]
    mesh = blender.load(gltf.write(tmp_path / "a.gltf", [{"mesh": 0}, {"mesh": 1, "skin": 0}, {}], [0, 1, 2]))
    assert_spans(mesh, (0, -1, 0), (4, 0, 1))


def test_lights_and_cameras_of_a_file_change_no_byte_of_the_picture(blender, tmp_path):
    plain = blender.load(Gltf().write(tmp_path / "a.gltf", [{"mesh": 0}], [0]))
    picture = blender.render(VIEW, QUICK).png
    gltf = Gltf()
    lights = [{"type": "point", "intensity": 1e6, "color": [1, 0, 0]}, {"type": "directional", "intensity": 1e4}]
    gltf.document |= {
        "extensionsUsed": ["KHR_lights_punctual"],
        "extensions": {"KHR_lights_punctual": {"lights": lights}},
        "cameras": [{"type": "perspective", "perspective": {"yfov": 0.3, "znear": 0.1}}],
    }
    lamps = [{"translation": [0, 9, 3], "extensions": {"KHR_lights_punctual": {"light": n}}} for n in range(2)]
    lit = blender.load(gltf.write(tmp_path / "b.gltf", [{"mesh": 0}, *lamps, {"camera": 0}], [0, 1, 2, 3]))
    assert blender.render(VIEW, QUICK).png == picture
    assert (lit.scale, lit.offset, lit.objects) == (plain.scale, plain.offset, plain.objects)


def test_alpha_is_straight_and_the_background_is_clear(blender, tmp_path):
    blender.load(ply_of_boxes(tmp_path / "a.ply", ((0, 0, 0), (1, 1, 1))))
    image = pixels(blender.render(VIEW, RenderSettings(resolution=64, samples=16, denoise=False)).png)
    assert image[image[..., 3] == 0].max() <= 1  # Blender dithers what it clears, too
    assert (image[..., 3] == 255).any()
    edge = image[(image[..., 3] > 0) & (image[..., 3] < 128)]
    whole = image[image[..., 3] == 255]
    # Were it multiplied by alpha, the edge would be at most half as bright as the darkest face.
    assert len(edge) and np.median(edge[:, :3].max(axis=1)) > 0.7 * whole[:, :3].max(axis=1).min()


def test_points_without_faces_are_a_point_cloud(blender, tmp_path):
    header = (
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    (tmp_path / "a.ply").write_text(header + "0 0 0\n1 0 0\n0 1 2\n")
    with pytest.raises(Failure) as caught:
        blender.load(Model(tmp_path, "a.ply", "ply"))
    assert (caught.value.status, caught.value.reason) == (Status.POINT_CLOUD, "3 points, no faces")


@pytest.mark.parametrize("extension", ["EXT_meshopt_compression", "KHR_texture_basisu", "VENDOR_new_compression"])
def test_what_a_file_requires_and_blender_lacks_is_unsupported_by_name(blender, tmp_path, extension):
    gltf = Gltf()
    gltf.document |= {"extensionsUsed": [extension], "extensionsRequired": [extension]}
    with pytest.raises(Failure) as caught:
        blender.load(gltf.write(tmp_path / "a.gltf", [{"mesh": 0}], [0]))
    assert caught.value.status is Status.UNSUPPORTED and extension in caught.value.reason


@needs_data
@pytest.mark.parametrize(
    ("path", "triangles"),
    [
        ("objects/BabylonJS/MeshesLibrary/TeapotsGalore/TeapotsGalore.gltf", 7656770),  # by instancing
        ("objects/assimp/assimp/test/models/BLEND/SuzanneSubdiv_252.blend", 251904),  # by a modifier
        ("objects/BabylonJS/MeshesLibrary/Demos/retargeting/riggedMesh.glb", 11034),  # bone shapes do not count
    ],
)
def test_instances_and_modifiers_are_in_the_mesh_in_little_time(path, triangles):
    file = DATA / path
    with Blender(Limits(), threads=2) as blender:
        mesh = blender.load(Model(file.parent, file.name, file.suffix[1:]))
    assert mesh.triangles == triangles
    assert np.abs(mesh.vertices).max() <= 0.5 + 1e-5
    assert mesh.costs["mesh"] < 10


def test_the_idle_lamp_lights_nothing(blender, tmp_path):
    blender.load(ply_of_boxes(tmp_path / "a.ply", ((0, 0, 0), (1, 1, 1)), ((1.5, 0, 0), (1, 1, 3))))
    settings = RenderSettings(resolution=32, samples=1024, threshold=0, denoise=False)
    for pitch in (30.0, -50.0):  # from below, too, where the lamp stands
        view = View(look_at_origin(25.0, pitch, 2.0), 40.0)
        images = []
        for idle in (True, False):
            png = blender.render(view, settings.model_copy(update={"idle_light": idle, "seed": int(idle)})).png
            images.append(pixels(png).astype(float))
        whole = images[0][..., 3] == 255
        difference = (images[0] - images[1])[whole][:, :3]
        # Its 1000 W, turned around, would make these faces brighter by tens of levels.
        assert abs(difference.mean()) < 0.3 and np.abs(difference).mean() < 3


@needs_data
@pytest.mark.parametrize(
    "path", ["Zeyu-Li/free-blender-models/build/tank.fbx", "pmndrs/market-assets/files/models/helicopter/model.gltf"]
)
def test_a_mesh_comes_out_in_the_same_order_every_time(path):
    file = DATA / "objects" / path
    with Blender(Limits(), threads=1, trees=DATA) as blender:
        meshes = [blender.load(Model(file.parent, file.name, file.suffix[1:])) for _ in range(4)]
    for mesh in meshes[1:]:
        assert np.array_equal(mesh.vertices, meshes[0].vertices) and np.array_equal(mesh.faces, meshes[0].faces)
