"""A rendered pixel is where gap3d's own projection puts its point, for the cameras of every protocol."""

import numpy as np
import pytest
from blender_files import QUICK, pixels, ply_of_boxes

from gap3d.cameras import Camera
from gap3d.protocols import cameras
from gap3d.settings import Limits, ViewSettings
from render.job import View
from render.worker import Blender

SIZE = 96
SIDE = 0.04
# The first two span the box; the third tells left from right.
MARKERS = np.array([(-0.5, -0.5, -0.5), (0.5, 0.5, 0.5), (0.5, -0.2, 0.3)])
REACH = 7  # pixels about a marker that hold it and its blurred edge


def circle(count: int) -> ViewSettings:
    return ViewSettings(protocol="fixed", yaws=tuple(360.0 * n / count for n in range(count)))


PROTOCOLS = {
    "four": circle(4),
    "eight": circle(8),
    "twenty": circle(20),
    "sphere": ViewSettings(protocol="sphere"),
    "condition": ViewSettings(protocol="condition"),
    "steep": ViewSettings(protocol="fixed", yaws=(10.0, 200.0), pitches=(-89.0, 89.0), fov=40.0),
}


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A Blender that has loaded three tiny boxes, centred (as far as the box allows) at the markers."""
    folder = tmp_path_factory.mktemp("markers")
    with Blender(Limits(), threads=2, trees=folder) as blender:
        lows = np.clip(MARKERS - SIDE / 2, -0.5, 0.5 - SIDE)
        mesh = blender.load(ply_of_boxes(folder / "a.ply", *((tuple(low), (SIDE,) * 3) for low in lows.tolist())))
        assert mesh.scale == pytest.approx(1) and mesh.offset == pytest.approx((0, 0, 0), abs=1e-6)
        yield blender, lows + SIDE / 2


def seen(alpha: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The middle of what is near a place in pixels (x, y)."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    near = alpha * ((abs(columns - place[0]) < REACH) & (abs(rows - place[1]) < REACH))
    assert near.sum() > 255, "nothing is there"
    return np.array([(near * columns).sum(), (near * rows).sum()]) / near.sum()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_known_point_is_rendered_where_it_is_projected(marked, protocol):
    blender, points = marked
    views = cameras(PROTOCOLS[protocol], "an object")
    checked = 0
    for camera in views[:: max(1, len(views) // 20)]:
        alpha = picture(blender, camera)
        places, _ = camera.project(points, SIZE)
        for index, place in enumerate(places):
            others = np.delete(places, index, axis=0)
            apart = (np.abs(others - place).max(axis=1) > 2 * REACH).all()  # else they run into each other
            if apart and (place > REACH).all() and (place < SIZE - REACH).all():
                assert np.abs(seen(alpha, place) - place).max() < 0.5, camera
                checked += 1
    assert checked >= len(views[:: max(1, len(views) // 20)])


def picture(blender: Blender, camera: Camera) -> np.ndarray:
    """Alpha of a quick render, float [H, W]."""
    settings = QUICK.model_copy(update={"resolution": SIZE, "samples": 16})
    return pixels(blender.render(View(camera.camera_to_world, camera.fov), settings).png)[..., 3].astype(float)
