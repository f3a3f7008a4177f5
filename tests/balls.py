"""Collections of renders of spheres from all around, in closed form: pictures, planar depth and cameras, no Blender."""

import io

import numpy as np
from folders import small
from PIL import Image
from stores import TOGETHER, write

from gap3d.depth import depth_range, encode_depth
from gap3d.evaluation.views import AROUND, Rendered
from gap3d.records import Status
from gap3d.schemas import CATALOG, RENDERS
from gap3d.store import Store

SIDE = 48
WEIGHTS = dict.fromkeys(("inception", "dinov2", "clip", "clip_large", "pointnet"), "random-small")


def depth_of(camera, radius=0.4, side=SIDE):
    """Planar depth of a sphere about the origin, +inf beside it, [H, W]."""
    axis = ((np.arange(side) + 0.5) / side * 2 - 1) * np.tan(camera.fov_radians / 2)
    x, y = np.meshgrid(axis, -axis)
    d, p = np.stack([x, y, -np.ones_like(x)], -1) @ camera.camera_to_world[:3, :3].T, camera.position
    a, b, c = (d * d).sum(-1), d @ p, p @ p - radius**2
    root = b * b - a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf).astype(np.float32)


def picture_of(depth, colour):
    """The bytes of an RGBA picture: nearer is brighter."""
    seen = np.isfinite(depth)
    shade = np.where(seen, 2.5 - np.where(seen, depth, 0), 0)[..., None]
    pixels = np.concatenate([shade * np.asarray(colour) * 160, seen[..., None] * 255.0], axis=-1).clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def row_of(object_id, view, camera, radius=0.4, colour=(1.0, 0.6, 0.3)):
    """A renders row of a sphere."""
    depth = depth_of(camera, radius)
    return render_of(object_id, view, camera, picture_of(depth, colour), depth)


def render_of(object_id, view, camera, png, depth):
    """A renders row of any picture and planar depth [H, W]."""
    low, high = depth_range(camera.radius)
    return {
        **{field.name: None for field in RENDERS.columns if field.name != "key"},
        "object_id": object_id,
        "view": view,
        "png": png,
        "width": depth.shape[1],
        "height": depth.shape[0],
        "yaw": camera.yaw,
        "pitch": camera.pitch,
        "radius": camera.radius,
        "camera_angle_x": camera.fov_radians,
        "transform_matrix": camera.camera_to_world.ravel().tolist(),
        "scale": 1.0,
        "offset": [0.0, 0.0, 0.0],
        "depth": encode_depth(depth, low, high),
        "depth_min": low,
        "depth_max": high,
    }


def balls(names, cameras=AROUND):
    """Renders rows by key: spheres of one size, each of its own colour."""
    return {
        f"{name}/{view:03d}": row_of(name, view, camera, colour=np.random.default_rng(number).random(3) * 0.8 + 0.2)
        for number, name in enumerate(names)
        for view, camera in enumerate(cameras)
    }


def commit(root, rows, name="balls-around"):
    """A collection of one shard with these renders, and with captioned objects in its catalog."""
    store = Store(root, name, 1)
    blank = {field.name: None for field in CATALOG.columns if field.name != "key"}
    objects = sorted({key.partition("/")[0] for key in rows})
    write(
        store,
        {key: {**blank, "sha256": f"{key}!", "captions": ["a ball"], "stamp": ""} for key in objects},
        TOGETHER,
        "catalog",
        CATALOG,
    )
    write(store, rows, TOGETHER, "renders", RENDERS)
    return store


def views_of(store, count):
    """A protocol's views of every object of a collection of renders, by object_id."""
    rendered = Rendered(store)
    return {key: views for shard in store.shards for key, views in rendered.views(shard, count).items()}


def whole(views):
    """An object's views, none of which lacks its picture."""
    assert [view.reason for view in views if view.status is not Status.OK] == []
    return views


def settings_of(root, **values):
    """Settings whose true objects are those of ``commit``, with small extractors, computed without Ray."""
    evaluation = {
        **WEIGHTS,
        "true": "balls-around",
        "dinov2_size": 28,
        "points": 600,
        "presample": 4000,
        **values.pop("evaluation", {}),
    }
    compute = {"workers": 0, "encoder_threads": 1, **values.pop("compute", {})}
    return small(root, root, catalog={"shards": 1}, evaluation=evaluation, compute=compute, **values)
