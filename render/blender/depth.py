"""Planar depth of the image that is rendered: Blender's z pass, out through a file and into an array.

Passes can't be read from memory; the compositor's File Output node is the way out that leaves the colours alone.
Runs in the child process alone.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bpy
import numpy as np

BEYOND = 1e9
"""Cycles writes 1e10 where nothing is hit; the camera's far clip is nearer than this by far."""


@contextmanager
def written_to(scene: bpy.types.Scene, path: Path | None) -> Iterator[None]:
    """Within it, a render of the scene also writes float32 [H, W] to an .npy file; None: it does not.

    The values are distances along the viewing direction (not along the ray), +inf where the background is seen. A
    pixel has the depth of one point in it, no mean.
    """
    scene.use_nodes = scene.render.use_compositing = path is not None
    if path is None:
        yield
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        connect(scene, folder)
        yield
        (file,) = Path(folder).iterdir()
        depth = read(file)
    with path.open("wb") as out:  # np.save appends .npy to other names
        np.save(out, depth)


def connect(scene: bpy.types.Scene, folder: str) -> None:
    """Colours go through as they are, z goes to a file in the folder."""
    tree = scene.node_tree
    tree.nodes.clear()
    layer = tree.nodes.new("CompositorNodeRLayers")
    layer.scene = scene
    composite = tree.nodes.new("CompositorNodeComposite")
    tree.links.new(layer.outputs["Image"], composite.inputs["Image"])
    output = tree.nodes.new("CompositorNodeOutputFile")
    # Not in the slot's path: an absolute one loses its leading slash there.
    output.base_path = folder
    output.format.file_format, output.format.color_mode = "OPEN_EXR", "BW"
    output.format.color_depth, output.format.exr_codec = "32", "NONE"
    output.format.color_management = "FOLLOW_SCENE"
    output.file_slots[0].path = "z"
    output.file_slots[0].save_as_render = False
    tree.links.new(layer.outputs["Depth"], output.inputs[0])


def read(file: Path) -> np.ndarray:
    """The values of an EXR of one channel, float32 [H, W], first row on top."""
    image = bpy.data.images.load(str(file))
    try:
        image.colorspace_settings.name = "Non-Color"
        width, height = image.size
        values = np.empty(width * height * image.channels, np.float32)
        image.pixels.foreach_get(values)
    finally:
        bpy.data.images.remove(image)
    depth = values.reshape(height, width, -1)[::-1, :, 0]
    return np.where(depth < BEYOND, depth, np.float32(np.inf))
