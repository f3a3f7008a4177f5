"""View protocols: the cameras of each against closed forms and the definitions in docs/method.md 2.2."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gap3d.protocols import HALF_DIAGONAL, cameras, grid, hammersley_sphere, van_der_corput
from gap3d.settings import ViewSettings
from pipelines.command import load_settings

CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])


def of_preset(name):
    views = load_settings(f"paper,{name}").views
    return views, cameras(views, "object")


@pytest.mark.parametrize(("name", "count"), [("four_views", 4), ("eight_views", 8), ("twenty_views", 20)])
def test_fixed_protocols_look_from_equal_steps_of_yaw_at_pitch_30(name, count):
    views, found = of_preset(name)
    assert len(found) == views.images == count
    assert [camera.yaw for camera in found] == [360 / count * number for number in range(count)]
    assert {(camera.pitch, camera.radius, camera.fov) for camera in found} == {(30.0, 2.0, 40.0)}
    for camera in found:
        np.testing.assert_allclose(camera.position[2], 1.0)  # 2 sin 30
        np.testing.assert_allclose(np.hypot(*camera.position[:2]), math.sqrt(3))


def test_candidates_are_all_yaws_at_each_pitch_in_turn():
    found = grid(ViewSettings(yaws=(0.0, 120.0, 240.0), pitches=(0.0, 45.0)))
    assert [(camera.yaw, camera.pitch) for camera in found] == [
        (0.0, 0.0), (120.0, 0.0), (240.0, 0.0), (0.0, 45.0), (120.0, 45.0), (240.0, 45.0),
    ]  # fmt: skip


def test_the_radical_inverse_mirrors_binary_digits():
    mirrored = [int(f"{number:010b}"[::-1], 2) / 1024 for number in range(1024)]
    np.testing.assert_array_equal(van_der_corput(np.arange(1024)), mirrored)


def test_sphere_gives_a_quarter_of_the_directions_to_the_lower_half():
    views, found = of_preset("sphere")
    assert len(found) == views.images == 150
    below = sum(camera.pitch < 0 for camera in found)
    assert abs(below - 150 / 4) <= 1
    # In each half the directions are uniform in height, hence on the sphere.
    for sign in (-1, 1):
        heights = np.sort([abs(math.sin(math.radians(c.pitch))) for c in found if math.copysign(1, c.pitch) == sign])
        even = (np.arange(len(heights)) + 0.5) / len(heights)
        assert np.abs(heights - even).max() < 1.5 / len(heights)
    # ... and the yaws are as even as a radical inverse makes them: discrepancy of order log(n) / n.
    yaws = np.sort([camera.yaw for camera in found]) / 360
    assert np.abs(yaws - (np.arange(150) + 0.5) / 150).max() < math.log2(150) / 150


@given(count=st.integers(1, 200), offset=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2))
def test_every_hammersley_direction_is_a_camera(count, offset):
    yaws, pitches = hammersley_sphere(count, np.array(offset))
    assert len(yaws) == len(pitches) == count
    assert (yaws >= 0).all() and (yaws <= 360).all() and (np.abs(pitches) <= 90).all()


def test_condition_views_see_the_sphere_about_the_unit_cube_just_whole():
    views, found = of_preset("condition")
    assert len(found) == views.images == 24
    assert len({camera.fov for camera in found}) == 24
    for camera in found:
        assert 10 <= camera.fov <= 70
        assert camera.radius * math.sin(math.radians(camera.fov) / 2) == pytest.approx(HALF_DIAGONAL)
        assert camera.inside_frame(CORNERS).all()
        closer = type(camera)(camera.yaw, camera.pitch, camera.radius, 0.9 * camera.fov)
        # The sphere's outline, seen from there, is out of a narrower frame.
        right = camera.camera_to_world[:3, 0]
        back = camera.camera_to_world[:3, 2]
        lean = HALF_DIAGONAL / camera.radius
        rim = HALF_DIAGONAL * (lean * back + math.sqrt(1 - lean**2) * right)
        assert camera.inside_frame([0.999 * rim]).all() and not closer.inside_frame([rim]).any()


def test_inverse_square_radii_are_uniform():
    views = ViewSettings(protocol="condition", count=4000)
    squares = np.sort([1 / camera.radius**2 for camera in cameras(views, "object")])
    low, high = (math.sin(math.radians(fov) / 2) ** 2 / HALF_DIAGONAL**2 for fov in (10, 70))
    even = low + (high - low) * (np.arange(4000) + 0.5) / 4000
    assert np.abs(squares - even).max() < 0.04 * (high - low)  # Kolmogorov-Smirnov at p = 1e-5


@pytest.mark.parametrize("protocol", ["sphere", "condition"])
def test_drawn_cameras_depend_on_the_object_and_the_seed_alone(protocol):
    views = ViewSettings(protocol=protocol, count=12)
    assert cameras(views, "a") == cameras(views, "a")
    assert cameras(views, "a") != cameras(views, "b")
    assert cameras(views, "a") != cameras(views.model_copy(update={"seed": 1}), "a")


def test_the_least_occluded_view_is_not_known_beforehand():
    with pytest.raises(ValueError, match="select_view"):
        cameras(ViewSettings(), "object")
    assert ViewSettings().images == 1
