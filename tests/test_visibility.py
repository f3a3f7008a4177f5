"""View selection against truths it does not share code with: closed forms, brute force and Blender."""

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import CAMERAS, SETTINGS, arrays, bumpy, soup

from gap3d import embree
from gap3d.embree import Scene, require_embree
from gap3d.records import Failure, Status, SystemicFault
from gap3d.seeds import generator
from gap3d.settings import ViewSettings
from gap3d.visibility import sample_surface, select_view, triangle_areas


def convex_entry(vertices, faces, origin, points):
    """Distance at which the ray from an origin outside to each point enters a convex body: clipping by half-spaces."""
    a, b, c = (vertices[corner].astype(np.float64) for corner in faces.T)
    normals = np.cross(b - a, c - a)
    directions = (points - origin) / np.linalg.norm(points - origin, axis=1, keepdims=True)
    slopes = directions @ normals.T
    distances = ((a - origin) * normals).sum(axis=1) / slopes
    return np.where(slopes < 0, distances, -np.inf).max(axis=1)


def brute_force(vertices, faces, origin, points):
    """First hit of every ray by Moeller-Trumbore in float64, and which rays float32 can decide.

    It cannot where a ray passes within 1e-5 of an edge or meets a triangle edge-on.
    """
    a, b, c = (vertices[corner].astype(np.float64) for corner in faces.T)
    edge1, edge2 = b - a, c - a
    towards = points.astype(np.float64) - origin
    directions = (towards / np.linalg.norm(towards, axis=1, keepdims=True))[:, None]
    p = np.cross(directions, edge2)
    determinant = (p * edge1).sum(-1)
    s = origin - a
    u = (p * s).sum(-1) / determinant
    q = np.cross(s, edge1)
    v = (directions * q).sum(-1) / determinant
    t = (edge2 * q).sum(-1) / determinant
    margin = np.minimum(np.minimum(u, v), 1 - u - v)
    first = np.where((margin >= 0) & (t > 0), t, np.inf).min(axis=1)
    grazing = determinant / np.linalg.norm(np.cross(edge1, edge2), axis=-1)
    return first, (np.abs(margin).min(axis=1) > 1e-5) & (np.abs(grazing).min(axis=1) > 1e-4)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: f"yaw{camera.yaw:.0f}")
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("box", trimesh.creation.box((1.0, 0.4, 0.7))),
        ("ellipsoid", trimesh.creation.icosphere(subdivisions=3).apply_transform(np.diag([1, 0.5, 0.3, 1]))),
        ("cone", trimesh.creation.cone(0.4, 1.0, sections=37)),
    ],
)
def test_of_a_convex_body_exactly_the_points_before_the_entry_are_seen(name, mesh, camera):
    vertices, faces = arrays(mesh)
    points = sample_surface(vertices, faces, 5000, np.random.default_rng(1))
    entry = convex_entry(vertices, faces, camera.position, points)
    beyond = np.linalg.norm(points - camera.position, axis=1) - SETTINGS.tolerance - entry
    clear = np.abs(beyond) > 2e-6
    assert clear.mean() > 0.999
    seen = Scene(vertices, faces).visible(camera, points, SETTINGS.tolerance)
    np.testing.assert_array_equal(seen[clear], (beyond <= 0)[clear] & camera.inside_frame(points)[clear])
    assert seen.any()
    assert not seen.all()


def test_the_visible_share_of_a_sphere_is_the_share_of_its_cap():
    vertices, faces = arrays(trimesh.creation.icosphere(subdivisions=6))
    choice = select_view(vertices, faces, SETTINGS, "sphere")
    # From distance d a sphere of radius r shows the share (1 - r/d) / 2; the tolerance shows a rim more, of
    # points whose chord is shorter than it: cos of the angle to the ray > -tolerance / 2r.
    expected = (1 - 0.5 / SETTINGS.radius) / 2
    sigma = np.sqrt(expected * (1 - expected) / SETTINGS.points)
    np.testing.assert_allclose(np.array(choice.counts) / choice.points, expected, atol=4 * sigma + 1e-3)


@given(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3), st.floats(0.05, 0.2), st.sampled_from(CAMERAS))
@settings(max_examples=25, deadline=None)
def test_a_box_throws_its_shadow_on_the_plane_below(x, y, size, camera):
    low, high = np.array([x - size, y - size, -0.1]), np.array([x + size, y + size, 0.2])
    box = trimesh.creation.box(bounds=[low, high])
    plane = np.array([[-0.5, -0.5, -0.3], [0.5, -0.5, -0.3], [0.5, 0.5, -0.3], [-0.5, 0.5, -0.3]])
    vertices = np.concatenate([plane, box.vertices]).astype(np.float32)
    faces = np.concatenate([[[0, 1, 2], [0, 2, 3]], np.asarray(box.faces) + 4]).astype(np.int32)
    points = sample_surface(plane.astype(np.float32), faces[:2], 2000, np.random.default_rng(0))
    towards = points.astype(np.float64) - camera.position
    with np.errstate(divide="ignore"):
        slabs = np.sort([(low - camera.position) / towards, (high - camera.position) / towards], axis=0)
    gap = slabs[1].min(axis=1) - slabs[0].max(axis=1)  # positive: the segment crosses all three slabs at once
    clear = np.abs(gap) > 1e-5
    assert clear.mean() > 0.99
    shadow = Scene(vertices, faces).occluded(camera.position, points, SETTINGS.tolerance)
    np.testing.assert_array_equal(shadow[clear], gap[clear] > 0)


@pytest.mark.parametrize("seed", range(8))
def test_embree_equals_brute_force(seed):
    vertices, faces = soup(seed)
    points = sample_surface(vertices, faces, 1000, np.random.default_rng(seed))
    scene = Scene(vertices, faces)
    for camera in CAMERAS:
        first, decidable = brute_force(vertices, faces, camera.position, points)
        slack = first - (np.linalg.norm(points - camera.position, axis=1) - SETTINGS.tolerance)
        clear = (np.abs(slack) > 2e-6) & decidable
        assert clear.mean() > 0.95
        occluded = scene.occluded(camera.position, points, SETTINGS.tolerance)
        np.testing.assert_array_equal(occluded[clear], slack[clear] < 0)


def test_a_turned_object_has_the_same_scores_from_turned_yaws():
    vertices, faces = bumpy()
    turned = np.stack([-vertices[:, 1], vertices[:, 0], vertices[:, 2]], axis=1)
    before = select_view(vertices, faces, SETTINGS, "object")
    after = select_view(turned, faces, SETTINGS, "object")
    assert len(set(before.counts)) == 4
    assert after.counts == (before.counts[3], *before.counts[:3])
    assert after.camera.yaw == (before.camera.yaw + 90) % 360


def test_the_samples_of_a_turned_mesh_are_the_turned_samples():
    vertices, faces = bumpy()
    turned = np.stack([-vertices[:, 1], vertices[:, 0], vertices[:, 2]], axis=1)
    before = sample_surface(vertices, faces, 5000, generator("object", 0))
    after = sample_surface(turned, faces, 5000, generator("object", 0))
    np.testing.assert_array_equal(after, np.stack([-before[:, 1], before[:, 0], before[:, 2]], axis=1))


def test_faces_are_two_sided():
    vertices, faces = bumpy()
    inside_out = np.ascontiguousarray(faces[:, ::-1])
    points = sample_surface(vertices, faces, 5000, np.random.default_rng(0))
    for camera in CAMERAS:
        one = Scene(vertices, faces).visible(camera, points, SETTINGS.tolerance)
        other = Scene(vertices, inside_out).visible(camera, points, SETTINGS.tolerance)
        assert (one != other).sum() <= 5  # rays that meet the silhouette edge-on, beyond float32


def test_ties_go_to_the_first_yaw():
    plate = np.array([[-0.4, -0.4, 0], [0.4, -0.4, 0], [0.4, 0.4, 0], [-0.4, 0.4, 0]], dtype=np.float32)
    choice = select_view(plate, [[0, 1, 2], [0, 2, 3]], SETTINGS, "plate")
    assert choice.counts == (5000,) * 4  # seen from above, from everywhere, entirely
    assert (choice.chosen, choice.camera, choice.pinned) == (0, CAMERAS[0], False)


def test_points_outside_the_frame_do_not_count():
    tall = np.array([[0, -0.2, -5], [0, 0.2, -5], [0, 0, 5]], dtype=np.float32)
    counts = select_view(tall, [[0, 1, 2]], SETTINGS, "tall").counts
    assert 0 < max(counts) < 5000


def test_a_pinned_yaw_wins_and_the_scores_stay():
    vertices, faces = bumpy()
    free = select_view(vertices, faces, SETTINGS, "object")
    pinned = select_view(vertices, faces, SETTINGS, "object", pinned_yaw=90.0)
    assert pinned.counts == free.counts
    assert (pinned.chosen, pinned.camera, pinned.pinned) == (1, CAMERAS[1], True)
    odd = select_view(vertices, faces, SETTINGS, "object", pinned_yaw=33.0)
    assert (odd.chosen, odd.camera.yaw, odd.counts) == (None, 33.0, free.counts)


def test_the_object_id_and_the_seed_decide():
    vertices, faces = bumpy()
    first = select_view(vertices, faces, SETTINGS, "a")
    assert select_view(vertices, faces, SETTINGS, "a") == first
    assert select_view(vertices.astype(np.float64), faces.astype(np.int64), SETTINGS, "a") == first
    assert select_view(vertices, faces, SETTINGS, "b").counts != first.counts
    assert select_view(vertices, faces, ViewSettings(seed=1), "a").counts != first.counts
    assert generator("a", 0).random(2).tolist() == [0.681470775858739, 0.423780964516981]


def test_the_number_of_threads_changes_nothing():
    vertices, faces = bumpy(5)
    assert select_view(vertices, faces, SETTINGS, "a", threads=1) == select_view(vertices, faces, SETTINGS, "a")


def test_samples_are_uniform_over_the_surface():
    vertices, faces = soup(3, triangles=30)
    count = 200_000
    points = sample_surface(vertices, faces, count, np.random.default_rng(0))
    a, b, c = (vertices[corner].astype(np.float64) for corner in faces.T)
    normals = np.cross(b - a, c - a)
    areas = np.linalg.norm(normals, axis=1) / 2
    np.testing.assert_allclose(triangle_areas(vertices, faces), areas)
    # Each point lies on a triangle, the triangles get points by area, and within each the mean is the centroid.
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    heights = np.abs(((points[:, None] - a) * normals).sum(-1))
    corners = np.stack([a, b, c], axis=1)
    relative = points[:, None] - a
    gram = np.stack([b - a, c - a], axis=2)
    uv = np.einsum("fij,nfj->nfi", np.linalg.pinv(gram), relative)
    off = np.maximum(heights, -np.minimum(uv.min(-1), 1 - uv.sum(-1)))
    owner = off.argmin(axis=1)
    assert off[np.arange(count), owner].max() < 1e-5
    share = areas / areas.sum()
    counts = np.bincount(owner, minlength=len(faces))
    assert (np.abs(counts - count * share) < 5 * np.sqrt(count * share)).all()
    for triangle in np.flatnonzero(counts > 1000):
        inside = points[owner == triangle]
        spread = corners[triangle].std(axis=0).max() / np.sqrt(len(inside))
        np.testing.assert_allclose(inside.mean(axis=0), corners[triangle].mean(axis=0), atol=5 * spread)


def test_triangles_without_area_get_no_samples():
    vertices, faces = soup(0, triangles=2)
    nothing = np.array([[0, 0, 0], [3, 3, 3], [4, 4, 4]])
    faces = np.concatenate([nothing[:1], faces[:1], nothing[:2], faces[1:], nothing[2:]]).astype(np.int32)
    flat = triangle_areas(vertices, faces) == 0
    assert flat.tolist() == [True, False, True, True, False, True]
    points = sample_surface(vertices, faces, 1000, np.random.default_rng(0))
    kept = sample_surface(vertices, faces[~flat], 1000, np.random.default_rng(0))
    np.testing.assert_array_equal(points, kept)
    select_view(vertices, faces, SETTINGS, "partly flat")


@pytest.mark.parametrize(
    ("vertices", "status"),
    [
        ([[0, 0, 0], [0.25, 0.25, 0.25], [0.5, 0.5, 0.5]], Status.DEGENERATE),
        ([[0.1, 0.2, 0.3]] * 3, Status.DEGENERATE),
        ([[0, 0, 0], [0, 1, 0], [np.nan, 0, 0]], Status.DEGENERATE),
        ([[0, 0, 0], [0, np.inf, 0], [1, 0, 0]], Status.DEGENERATE),
    ],
)
def test_a_surface_without_finite_area_fails(vertices, status):
    with pytest.raises(Failure) as caught:
        select_view(np.array(vertices), [[0, 1, 2]], SETTINGS, "x")
    assert caught.value.status is status


def test_no_triangles_fail():
    with pytest.raises(Failure) as caught:
        select_view(np.zeros((3, 3)), np.zeros((0, 3), np.int32), SETTINGS, "x")
    assert caught.value.status is Status.NO_GEOMETRY


@pytest.mark.parametrize("faces", [[[0, 1, 3]], [[0, 1, -1]], [[0, 1]], [0, 1, 2]])
def test_indices_outside_the_mesh_never_reach_embree(faces):
    with pytest.raises(ValueError, match="vert"):
        Scene(np.zeros((3, 3)), faces)


def test_a_point_at_the_origin_of_the_rays_is_not_occluded():
    vertices, faces = bumpy(2)
    assert Scene(vertices, faces).occluded([2, 0, 0], [[2, 0, 0], [-2, 0, 0]], 1e-3).tolist() == [False, True]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 33])
def test_packets_of_any_length(count):
    vertices, faces = bumpy(3)
    points = sample_surface(vertices, faces, 33, np.random.default_rng(0))
    scene = Scene(vertices, faces)
    alone = [bool(scene.occluded([2, 0, 0], point[None], 1e-3)[0]) for point in points[:count]]
    assert scene.occluded([2, 0, 0], points[:count], 1e-3).tolist() == alone


def test_embree_is_there():
    assert require_embree().startswith("4.")


def test_without_embree_the_fault_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embree.importlib.util, "find_spec", lambda name: None)
    embree._library.cache_clear()
    embree._device.cache_clear()
    try:
        with pytest.raises(SystemicFault, match="pip install 'embreex"):
            require_embree()
    finally:
        embree._library.cache_clear()
        embree._device.cache_clear()


def test_occlusion_equals_the_first_hit_of_embreex():
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    vertices, faces = bumpy()
    reference = EmbreeScene(robust=True)
    TriangleMesh(reference, vertices, faces)
    points = sample_surface(vertices, faces, 5000, np.random.default_rng(0))
    for camera in CAMERAS:
        towards = points - camera.position
        distances = np.linalg.norm(towards, axis=1)
        origins = np.tile(camera.position.astype(np.float32), (len(points), 1))
        directions = (towards / distances[:, None]).astype(np.float32)
        first = reference.run(origins, directions, query="DISTANCE")
        occluded = Scene(vertices, faces).occluded(camera.position, points, SETTINGS.tolerance)
        slack = first - (distances - SETTINGS.tolerance)
        clear = np.abs(slack) > 2e-6
        np.testing.assert_array_equal(occluded[clear], slack[clear] < 0)
