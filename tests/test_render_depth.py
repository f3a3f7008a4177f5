"""Depth is planar z: against planes and a box, and it changes nothing else."""

import numpy as np
import pytest
from blender_files import QUICK, ply_of_boxes

from gap3d.cameras import Camera, look_at_origin
from gap3d.metrics.unprojection import unproject
from gap3d.settings import Limits, RenderSettings
from render.job import Model, View
from render.worker import Blender

DEPTH = QUICK.model_copy(update={"depth": True})
BOX = ((0, 0, 0), (1, 1, 1))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def blender(tmp_path_factory, scratch):
    trees = tmp_path_factory.getbasetemp()
    with Blender(Limits(), threads=2, scratch_root=scratch, trees=trees) as shared:
        yield shared


@pytest.mark.parametrize("fov", [10.0, 40.0])
def test_a_plane_seen_from_2_is_2_away_everywhere_and_the_background_is_infinite(blender, tmp_path, fov):
    header = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "plane.ply").write_text(header + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n")
    blender.load(Model(tmp_path, "plane.ply", "ply"))
    depth = blender.render(View(look_at_origin(0.0, 90.0, 2.0), fov), DEPTH).depth
    assert depth.dtype == np.float32 and depth.shape == (64, 64)
    half = min(1.0, 0.5 / (2 * np.tan(np.radians(fov) / 2)))  # of the frame, that the plane covers
    inside, outside = int(32 * half) - 1, int(np.ceil(32 * half)) + 1
    corners = depth[32 - inside : 32 + inside, 32 - inside : 32 + inside]
    np.testing.assert_allclose(corners, 2.0, atol=1e-5)  # a ray's length would be 2.3 in the corners at 40 degrees
    beyond = np.ones_like(depth, bool)
    beyond[max(0, 32 - outside) : 32 + outside, max(0, 32 - outside) : 32 + outside] = False
    assert np.isposinf(depth[beyond]).all() and beyond.any() == (fov == 40.0)


@pytest.mark.parametrize("fov", [10.0, 40.0])
def test_the_near_face_of_a_box_lies_half_its_depth_before_its_middle(blender, tmp_path, fov):
    blender.load(ply_of_boxes(tmp_path / "a.ply", BOX))
    depth = blender.render(View(look_at_origin(0.0, 0.0, 4.0), fov), DEPTH).depth
    np.testing.assert_allclose(depth[24:40, 24:40], 3.5, atol=1e-5)


def test_every_pixel_unprojects_to_the_surface_the_right_way_up(blender, tmp_path):
    low = np.array((0.2, -0.3, 0.1))
    blender.load(ply_of_boxes(tmp_path / "a.ply", (tuple(low), (0.5, 1.0, 0.3)), (tuple(low), (0.1, 0.1, 1.0))))
    camera = Camera(25.0, 30.0, 2.0, 40.0)
    depth = blender.render(View(camera.camera_to_world, camera.fov), DEPTH).depth
    rows, columns = np.nonzero(np.isfinite(depth))
    z = depth[rows, columns].astype(float)
    focal = 32 / np.tan(np.radians(camera.fov) / 2)
    local = np.stack([(columns + 0.5 - 32) * z / focal, (32 - rows - 0.5) * z / focal, -z], axis=1)
    points = local @ camera.camera_to_world[:3, :3].T + camera.position
    np.testing.assert_allclose(unproject(depth, camera.camera_to_world, camera.fov_radians), points, atol=1e-9)
    middle = low + np.array((0.25, 0.5, 0.5))
    away = [distance_to_box(points + middle, low, size) for size in ((0.5, 1.0, 0.3), (0.1, 0.1, 1.0))]
    # A pixel's depth is that of one point in it, up to half a pixel (0.012 here) beside its middle.
    assert len(z) > 300 and np.quantile(np.min(away, axis=0), 0.97) < 0.02


def distance_to_box(points: np.ndarray, low: np.ndarray, size: tuple[float, float, float]) -> np.ndarray:
    """Of each point to the surface of a box."""
    half = np.array(size) / 2
    beside = np.abs(points - low - half) - half
    return np.abs(np.linalg.norm(np.maximum(beside, 0), axis=1) + np.minimum(beside.max(axis=1), 0))


def test_depth_changes_no_byte_of_the_picture_and_leaves_no_file(blender, scratch, tmp_path):
    blender.load(ply_of_boxes(tmp_path / "a.ply", BOX))
    view = View(look_at_origin(25.0, 30.0, 2.0), 40.0)
    settings = RenderSettings(resolution=64, samples=8)
    without = blender.render(view, settings)
    files = sorted(scratch.rglob("*"))
    with_depth = blender.render(view, settings.model_copy(update={"depth": True}))
    assert with_depth.png == without.png and without.depth is None
    assert sorted(scratch.rglob("*")) == files
    assert blender.render(view, settings).png == without.png  # and is switched off again
