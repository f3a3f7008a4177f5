"""Point clouds: farthest points against the plain loop, unprojection against projection and known surfaces."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gap3d.cameras import Camera
from gap3d.depth import decode_depth, depth_range, encode_depth
from gap3d.metrics.farthest import farthest_points
from gap3d.metrics.pointclouds import DepthView, cloud_of, normalise, view_of
from gap3d.metrics.unprojection import unproject
from gap3d.records import Failure, Status

SIDE = 48
RADIUS = 0.4
VIEWS = [Camera(yaw, 30.0, 2.0, 40.0) for yaw in np.arange(20) * 18.0]


def plain_loop(points, count, start):
    nearest, chosen = np.full(len(points), np.inf, np.float32), []
    for _ in range(count):
        chosen.append(start)
        x, y, z = (points - points[start]).T
        nearest = np.minimum(nearest, x * x + y * y + z * z)
        nearest[chosen] = -1
        start = int(nearest.argmax())
    return chosen


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 3000), steps=st.sampled_from([0, 3]), flat=st.booleans())
def test_farthest_points_are_those_of_the_plain_loop(seed, count, steps, flat):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)).astype(np.float32)
    if steps:  # on a grid: ties and points in one place
        points = np.round(points * steps) / steps
    if flat:
        points[:, 1] = 0
    wanted, start = int(rng.integers(1, min(count, 60) + 1)), int(rng.integers(count))
    assert farthest_points(points, wanted, start).tolist() == plain_loop(points, wanted, start)


def test_all_points_are_a_permutation_even_where_they_coincide():
    assert sorted(farthest_points(np.zeros((50, 3)), 50, 7)) == list(range(50))


def test_what_cannot_be_sampled_is_refused():
    points = np.zeros((4, 3))
    for count, start in ((0, 0), (5, 0), (1, 4), (1, -1)):
        with pytest.raises(ValueError, match="can't be chosen"):
            farthest_points(points, count, start)
    with pytest.raises(ValueError, match=r"not \[N, 3\]"):
        farthest_points(np.zeros((4, 2)), 1)
    points[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 4 points are not finite"):
        farthest_points(points, 1)


def rays(camera, side=SIDE):
    """Directions of the pixel centres with planar length 1, [H, W, 3]: those whose projection is the centre."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    slope = np.tan(camera.fov_radians / 2)
    x, y = np.meshgrid(axis * slope, -axis * slope)
    return np.stack([x, y, -np.ones_like(x)], -1) @ camera.camera_to_world[:3, :3].T


def sphere_depth(camera, side=SIDE):
    """Planar depth of a sphere about the origin, +inf beside it."""
    d, p = rays(camera, side), camera.position
    a, b, c = (d * d).sum(-1), d @ p, p @ p - RADIUS**2
    root = b * b - a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf).astype(np.float32)


def plane_depth(camera, height=0.1):
    """Planar depth of the plane z = height, where it is within 0.5 of the axis."""
    d, p = rays(camera), camera.position
    depth = (height - p[2]) / d[..., 2]
    hits = p + depth[..., None] * d
    return np.where((np.abs(hits[..., :2]) < 0.5).all(-1) & (depth > 0), depth, np.inf).astype(np.float32)


def sphere_view(camera):
    return DepthView(sphere_depth(camera), camera.camera_to_world, camera.fov_radians)


@pytest.mark.parametrize("camera", VIEWS[:3], ids=lambda camera: f"yaw {camera.yaw}")
def test_a_sphere_and_a_plane_come_back_from_stored_depth(camera):
    low, high = depth_range(camera.radius)
    for depth, distance in (
        (sphere_depth(camera), lambda points: np.abs(np.linalg.norm(points, axis=1) - RADIUS)),
        (plane_depth(camera), lambda points: np.abs(points[:, 2] - 0.1)),
    ):
        stored = decode_depth(encode_depth(depth, low, high), low, high)
        points = unproject(stored, camera.camera_to_world, camera.fov_radians)
        assert len(points) == np.isfinite(depth).sum() > 200
        assert distance(points).max() < 1e-3


def test_points_project_to_the_centres_of_their_pixels():
    camera, depth = VIEWS[4], sphere_depth(VIEWS[4])
    points = unproject(depth, camera.camera_to_world.ravel().tolist(), camera.fov_radians)
    xy, found = camera.project(points, SIDE)
    rows, columns = np.nonzero(np.isfinite(depth))
    np.testing.assert_allclose(xy, np.stack([columns, rows], 1) + 0.5, atol=1e-9)
    np.testing.assert_allclose(found, depth[rows, columns], atol=1e-9)


def test_the_released_errors_pull_corners_in_by_11_percent_and_edges_by_6_and_shift_by_half_a_pixel():
    pose, fov, far = np.eye(4), np.radians(40), np.full((SIDE, SIDE), 2.0)
    exact = unproject(far, pose, fov).reshape(SIDE, SIDE, 3)
    warped = unproject(far, pose, fov, paper=True).reshape(SIDE, SIDE, 3)
    ratio = warped[..., 2] / exact[..., 2]
    assert ratio[0, 0] == pytest.approx(1 - 0.11, abs=0.01)
    assert ratio[0, SIDE // 2] == pytest.approx(1 - 0.06, abs=0.01)
    assert ratio[SIDE // 2, SIDE // 2] == 1  # whose corner is the middle of the picture
    np.testing.assert_allclose(warped[SIDE // 2, SIDE // 2], [0, 0, -2], atol=1e-12)


def test_half_covered_pixels_do_not_count():
    depth, alpha = np.full((2, 2), 1.0), np.array([[255, 254], [128, 0]], np.uint8)
    assert len(unproject(depth, np.eye(4), 0.7, alpha=alpha)) == 1
    assert len(unproject(np.full((2, 2), np.inf), np.eye(4), 0.7)) == 0


@pytest.mark.parametrize(
    ("depth", "fov"), [(np.full((2, 2), np.nan), 0.7), (np.full((2, 2), -1.0), 0.7), (np.ones((2, 2)), 3.2)]
)
def test_impossible_depths_and_lenses_are_refused(depth, fov):
    with pytest.raises(ValueError, match=r"not in front|no camera"):
        unproject(depth, np.eye(4), fov)
    with pytest.raises(ValueError, match="do not fit"):
        unproject(np.ones(3), np.eye(4), 0.7)


def test_twenty_views_of_a_sphere_make_an_even_cloud_of_it():
    found = cloud_of([sphere_view(camera) for camera in VIEWS], "ball", points=300)
    assert found.dtype == np.float32 and found.shape == (300, 3)
    assert np.abs(found.mean(0)).max() < 1e-5
    assert np.linalg.norm(found, axis=1).max() == pytest.approx(1, abs=1e-6)
    # The views from 30 degrees above see no nadir: the mean is above the centre. Fitted, it is the sphere.
    system = np.c_[2 * found, np.ones(300)]
    *centre, rest = np.linalg.lstsq(system, (found.astype(float) ** 2).sum(1), rcond=None)[0]
    radius = np.sqrt(rest + np.square(centre).sum())
    assert np.abs(np.linalg.norm(found - centre, axis=1) - radius).max() / radius < 1e-3
    gaps = np.linalg.norm(found[:, None] - found, axis=-1) + 9 * np.eye(300)
    assert gaps.min() > 0.5 * np.median(gaps.min(1))


def test_a_cloud_depends_on_its_key_and_seed_alone():
    views = [sphere_view(camera) for camera in VIEWS[:4]]
    first, again, key, seed = (
        cloud_of(views, key, expected=4, points=50, presample=500, seed=seed)
        for key, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, key) and not np.array_equal(first, seed)


def test_missing_views_empty_pictures_and_points_in_one_place_are_rows():
    views = [sphere_view(camera) for camera in VIEWS]
    empty = [DepthView(np.full((4, 4), np.inf, np.float32), np.eye(4), 0.7)] * 20
    broken = [DepthView(np.full((64, 64), np.nan, np.float32), np.eye(4), 0.7)] * 20
    for given_views, status, words in (
        (views[:19], Status.MISSING, "19 of 20 views"),
        (empty, Status.EMPTY_RENDER, "0 points"),
        (broken, Status.IMPORT_ERROR, "not in front"),
    ):
        with pytest.raises(Failure, match=words) as caught:
            cloud_of(given_views, "object")
        assert caught.value.status is status
    with pytest.raises(Failure, match="no scale"):
        normalise(np.ones((5, 3)))
    with pytest.raises(Failure, match="no scale"):
        normalise(np.empty((0, 3)))


def test_a_row_of_renders_tells_its_view_and_one_without_depth_what_to_do():
    camera, (low, high) = VIEWS[0], depth_range(2.0)
    depth = sphere_depth(camera)
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[..., 3] = np.where(np.isfinite(depth), 255, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    row = {
        "object_id": "ball",
        "view": 3,
        "png": file.getvalue(),
        "depth": encode_depth(depth, low, high),
        "depth_min": low,
        "depth_max": high,
        "camera_angle_x": camera.fov_radians,
        "transform_matrix": camera.camera_to_world.ravel().tolist(),
    }
    found = view_of(row)
    points = unproject(found.depth, found.camera_to_world, found.fov, alpha=found.alpha)
    assert np.abs(np.linalg.norm(points, axis=1) - RADIUS).max() < 1e-3
    with pytest.raises(Failure, match=r"renders\.depth = true") as caught:
        view_of({**row, "depth": None})
    assert caught.value.status is Status.MISSING
