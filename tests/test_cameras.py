"""Cameras against Blender itself and against formulas written another way."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gap3d.cameras import Camera, look_at_origin

yaws = st.floats(-720, 720)
pitches = st.floats(-90, 90)
radii = st.floats(0.5, 10)

BLENDER = """
import bpy, json, math, sys
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Vector
scene = bpy.context.scene
target = bpy.data.objects.new("target", None)
scene.collection.objects.link(target)
data = bpy.data.cameras.new("camera")
data.sensor_width = data.sensor_height = 32
camera = bpy.data.objects.new("camera", data)
scene.collection.objects.link(camera)
scene.render.resolution_x = scene.render.resolution_y = 512
track = camera.constraints.new("TRACK_TO")
track.target, track.track_axis, track.up_axis = target, "TRACK_NEGATIVE_Z", "UP_Y"
answers = []
job = json.loads(sys.stdin.read())
for yaw, pitch, radius, fov in job["cameras"]:
    y, p = math.radians(yaw), math.radians(pitch)
    camera.location = [radius * c for c in (math.cos(y) * math.cos(p), math.sin(y) * math.cos(p), math.sin(p))]
    data.lens = 16 / math.tan(math.radians(fov) / 2)
    bpy.context.view_layer.update()
    views = [list(world_to_camera_view(scene, camera, Vector(point))) for point in job["points"]]
    answers.append({"pose": [list(row) for row in camera.matrix_world], "views": views})
print("ANSWER" + json.dumps(answers))
"""

CAMERAS = [
    (0, 30, 2, 40),
    (90, 30, 2, 40),
    (180, 30, 2, 40),
    (270, 30, 2, 40),
    (33.3, -71, 1.7, 60),
    (-450.5, 89.9, 2, 40),
    (200, -89, 3, 20),
    (60, 90, 2, 40),
    (60, -90, 2, 40),
]


def test_pose_and_projection_are_blenders():
    pytest.importorskip("bpy", reason="Blender's Python module is not installed")
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))
    job = json.dumps({"cameras": CAMERAS, "points": points.tolist()})
    result = subprocess.run([sys.executable, "-c", BLENDER], input=job, capture_output=True, text=True, check=True)
    answers = json.loads(result.stdout.split("ANSWER")[1].splitlines()[0])
    for parameters, answer in zip(CAMERAS, answers, strict=True):
        camera = Camera(*parameters)
        np.testing.assert_allclose(camera.camera_to_world, answer["pose"], atol=5e-5, err_msg=str(parameters))
        pixels, depth = camera.project(points, 512)
        views = np.array(answer["views"])  # x and y in [0, 1] from the lower left; planar depth
        np.testing.assert_allclose(pixels, views[:, :2] * [512, -512] + [0, 512], atol=0.02)
        np.testing.assert_allclose(depth, views[:, 2], atol=5e-5)  # Blender keeps float32 matrices


@given(yaws, pitches, radii)
def test_pose_is_a_rotation_that_looks_at_the_origin(yaw, pitch, radius):
    pose = look_at_origin(yaw, pitch, radius)
    rotation, position = pose[:3, :3], pose[:3, 3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(position - radius * rotation[:, 2], 0, atol=1e-12)
    assert rotation[2, 0] == 0  # no roll
    assert rotation[2, 1] >= 0  # and not upside down
    y, p = np.radians([yaw, pitch])
    expected = radius * np.array([np.cos(y) * np.cos(p), np.sin(y) * np.cos(p), np.sin(p)])
    np.testing.assert_allclose(position, expected, atol=1e-11)


@given(st.integers(-360, 360), pitches)
def test_a_quarter_turn_only_exchanges_coordinates(yaw, pitch):
    before, after = look_at_origin(yaw, pitch, 2), look_at_origin(yaw + 90, pitch, 2)
    turn = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(turn @ before, after)


def test_the_pitch_is_continuous_up_to_the_pole():
    np.testing.assert_allclose(look_at_origin(50, 90, 2), look_at_origin(50, 89.9999, 2), atol=1e-5)
    np.testing.assert_allclose(look_at_origin(50, -90, 2), look_at_origin(50, -89.9999, 2), atol=1e-5)


def test_projection_by_hand():
    camera = Camera(0, 0, 2, 90)  # at (2, 0, 0), looking along -x; image right is +y, up is +z
    pixels, depth = camera.project([[0, 0, 0], [0, 1, 0], [0, 0, 2], [1, 0, -1]], 100)
    np.testing.assert_allclose(pixels, [[50, 50], [75, 50], [50, 0], [50, 100]], atol=1e-12)
    np.testing.assert_allclose(depth, [2, 2, 2, 1])


def test_inside_frame():
    camera = Camera(0, 0, 2, 90)
    points = [[0, 0, 0], [0, 1.99, -1.99], [0, 2.01, 0], [0, 0, -2.01], [3, 0, 0], [2, 0, 0]]
    assert camera.inside_frame(points).tolist() == [True, True, False, False, False, False]


def test_points_behind_have_no_pixels():
    pixels, depth = Camera(0, 0, 2, 90).project([[3.0, 0, 0]], 100)
    assert np.isnan(pixels).all()
    assert depth[0] == -1


@pytest.mark.parametrize(
    "parameters", [(0, 90.01, 2, 40), (0, 0, 0, 40), (np.nan, 0, 2, 40), (0, 0, 2, 180), (0, 0, np.inf, 40)]
)
def test_impossible_cameras_are_refused(parameters):
    with pytest.raises(ValueError):
        Camera(*parameters)
