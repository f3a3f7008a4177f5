"""Blender itself: import an object, normalise it, extract its mesh, light and render it.

Runs in the child process alone. What the scene is comes from the paper's renderer, TRELLIS' Blender script
(docs/method.md 2.1, decisions 28 to 30). A file gives its objects, materials and (a .blend) its world; everything
else is set here, in a new scene. The file's objects are not touched: they stand in a collection that one empty
instances, and the empty carries the normalisation. Unlike parenting every root to an empty, that stays exact for
objects that also occur in instanced collections, or are held by constraints or drivers.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix

from gap3d.records import Failure, Status
from render.blender import cycles, depth
from render.blender.content import evaluated_parts, is_animated, show_what_is_rendered, shown_objects
from render.blender.device import Devices
from render.blender.importers import import_file, reset
from render.blender.materials import show_vertex_colours
from render.blender.textures import missing_textures
from render.geometry import Geometry, bounds, gather
from render.job import last_words

__all__ = ["VERSION", "Stage", "load", "reset", "use_device"]

VERSION: str = bpy.app.version_string
devices = Devices()

# Rotations that bring the named axis to +Z, exact.
TO_Z_UP: Mapping[str, tuple[tuple[int, int, int], ...]] = MappingProxyType(
    {
        "Z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        "-Z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
        "Y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
        "-Y": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
        "X": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
        "-X": ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    }
)


def use_device(device: str) -> str:
    """Choose what Cycles renders on: auto, cpu, optix, cuda, hip, oneapi or metal. Raises RuntimeError without it."""
    return str(devices.use(device))


class Stage:
    """The scene that is rendered: the file's objects in one instanced collection, three lights, a camera."""

    def __init__(self, world: bpy.types.World | None) -> None:
        source = bpy.context.scene
        show_what_is_rendered()
        self.objects = shown_objects(source)
        self.scene = bpy.data.scenes.new("stage")
        self.scene.world = world
        self.scene.frame_start, self.scene.frame_end = source.frame_start, source.frame_end
        self.scene.render.fps, self.scene.render.fps_base = source.render.fps, source.render.fps_base
        content = bpy.data.collections.new("content")
        for item in self.objects:
            content.objects.link(item)
        self.holder = self._add("holder", None)
        self.holder.instance_type = "COLLECTION"
        self.holder.instance_collection = content
        bpy.context.window.scene = self.scene
        bpy.data.scenes.remove(source)
        self.scene.frame_set(self.scene.frame_start)

    def _add(self, name: str, data: bpy.types.ID | None) -> bpy.types.Object:
        item = bpy.data.objects.new(name, data)
        self.scene.collection.objects.link(item)
        return item

    def normalise(self, up_axis: str | None, limit: int) -> tuple[Geometry, dict[str, Any]]:
        """Fit the object into [-0.5, 0.5]^3: its longest side becomes 1, its box is centred; give the mesh and facts.

        Raises Failure(point_cloud, no_geometry, degenerate or too_large).
        """
        parts, points = evaluated_parts(self.scene.view_layers[0].depsgraph, limit)
        if not parts:
            if points:
                raise Failure(Status.POINT_CLOUD, f"{points} points, no faces")
            raise Failure(Status.NO_GEOMETRY, f"{len(self.objects)} objects, none with faces")
        turn = np.eye(4)
        turn[:3, :3] = TO_Z_UP[up_axis or "Z"]
        low, high = bounds(parts, turn)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise Failure(Status.DEGENERATE, "non-finite coordinates")
        extent = float((high - low).max())
        if not extent > 0:
            raise Failure(Status.DEGENERATE, "zero extent: all vertices coincide")
        scale = 1.0 / extent
        offset = -scale * (low + high) / 2.0
        fit = np.eye(4)
        fit[:3] = scale * turn[:3]
        fit[:3, 3] = offset
        self.holder.matrix_world = Matrix(fit)
        geometry = gather(parts, turn, scale, offset)
        return geometry, {
            "scale": scale,
            "offset": offset.tolist(),
            "objects": len(self.objects),
            "triangles": len(geometry.faces),
            "points": points,
        }

    def light(self) -> None:
        """The three lights of the paper's renderer, with the defaults of Blender 3.0 (point radius 0.25 m).

        The lower area light keeps its zero rotation, by which it points away from the object.
        """
        for name, kind, energy, position, size in (
            ("point", "POINT", 1000.0, (4.0, 1.0, 6.0), 1.0),
            ("above", "AREA", 10000.0, (0.0, 0.0, 10.0), 100.0),
            ("below", "AREA", 1000.0, (0.0, 0.0, -10.0), 1.0),
        ):
            light = bpy.data.lights.new(name, kind)
            light.energy, light.exposure, light.normalize = energy, 0.0, True
            light.color, light.use_temperature = (1.0, 1.0, 1.0), False
            light.use_shadow = light.cycles.use_multiple_importance_sampling = True
            light.cycles.max_bounces = 1024
            if kind == "POINT":
                light.shadow_soft_size, light.use_soft_falloff = 0.25, True  # as the disc of 3.0
            else:
                light.shape, light.size, light.spread = "SQUARE", 0.25, math.pi
            item = self._add(name, light)
            item.location = position
            item.scale = (size, size, size)
        self.idle = item

    def render(
        self,
        path: Path,
        depth_path: Path | None,
        *,
        camera_to_world: list[list[float]],
        fov: float,
        resolution: int,
        samples: int,
        threshold: float,
        denoise: bool,
        prefilter: str,
        denoise_quality: str,
        idle_light: bool,
        seed: int,
        threads: int,
    ) -> dict[str, Any]:
        """Write one square RGBA PNG, and its planar depth as float32 [H, W] where a path is given for it.

        Args:
            path: of the PNG.
            depth_path: of the .npy; +inf where the background is seen.
            camera_to_world: [4, 4].
            fov: degrees.
            resolution: pixels per side.
            samples: per pixel, at most.
            threshold: of adaptive sampling; 0 switches it off.
            denoise: whether the denoiser runs.
            prefilter: what it does to its guides: none, fast or accurate.
            denoise_quality: high, balanced or fast.
            idle_light: whether the lamp that points away from the object takes part.
            seed: of the sampling.
            threads: of the CPU.

        Returns costs in seconds and the device. Raises Failure(out_of_memory or internal_error).
        """
        started = time.perf_counter()
        self._aim(camera_to_world, fov)
        devices.hold()
        cycles.set_image(self.scene, path, resolution, threads)
        cycles.set_cycles(
            self.scene,
            device=devices.chosen.cycles,
            samples=samples,
            threshold=threshold,
            denoise=denoise,
            prefilter=prefilter,
            denoise_quality=denoise_quality,
            seed=seed,
        )
        self.idle.hide_render = not idle_light
        cycles.set_layer(self.scene.view_layers[0], depth_path is not None)
        before, cpu = time.perf_counter(), time.process_time()
        try:
            with depth.written_to(self.scene, depth_path):
                bpy.ops.render.render(write_still=True)
        except RuntimeError as error:
            status = Status.OUT_OF_MEMORY if "memory" in str(error).lower() else Status.INTERNAL_ERROR
            raise Failure(status, f"render: {last_words(str(error))}") from error
        done, cpu = time.perf_counter(), time.process_time() - cpu
        return {
            "costs": {"render": done - before, "render_cpu": cpu, "other": before - started},
            "device": str(devices.chosen),
        }

    def _aim(self, camera_to_world: list[list[float]], fov: float) -> None:
        if self.scene.camera is None:
            self.scene.camera = self._add("camera", bpy.data.cameras.new("camera"))
        lens = self.scene.camera.data
        lens.type, lens.lens_unit, lens.sensor_fit = "PERSP", "MILLIMETERS", "HORIZONTAL"
        lens.sensor_width = lens.sensor_height = 32.0
        lens.lens = 16.0 / math.tan(math.radians(fov) / 2.0)
        lens.shift_x = lens.shift_y = 0.0
        lens.clip_start, lens.clip_end = 0.1, 1000.0
        lens.dof.use_dof = False
        self.scene.camera.matrix_world = Matrix(camera_to_world)


def factory_world() -> bpy.types.World:
    """The World of Blender's factory scene, as it was in 3.0: it lights all objects but those of a .blend."""
    world = bpy.context.scene.world
    world.use_nodes = True
    background = next(node for node in world.node_tree.nodes if node.type == "BACKGROUND")
    background.inputs["Color"].default_value = (*[0.05087609] * 3, 1.0)
    background.inputs["Strength"].default_value = 1.0
    world.cycles.sampling_method = "AUTOMATIC"
    return world


def load(
    tree: Path, main: str, file_type: str, up_axis: str | None, limit: int
) -> tuple[Stage, Geometry, dict[str, Any]]:
    """Import an object into the reset Blender, stage, normalise and light it.

    Returns the stage, the mesh, and the fields of ``render.job.Facts``. Raises Failure.
    """
    begun, cpu = time.perf_counter(), time.process_time()
    world = factory_world()
    import_file(tree, main, file_type)
    imported, cpu = time.perf_counter(), time.process_time() - cpu
    if file_type != "blend":
        show_vertex_colours(bpy.data.objects)
    stage = Stage(bpy.context.scene.world if file_type == "blend" else world)
    staged = time.perf_counter()
    geometry, facts = stage.normalise(up_axis, limit)
    extracted = time.perf_counter()
    stage.light()
    facts |= {"animated": is_animated(), "missing_textures": missing_textures(tree, main, file_type)}
    rest = (staged - imported) + (time.perf_counter() - extracted)
    facts["costs"] = {"import": imported - begun, "import_cpu": cpu, "mesh": extracted - staged, "other": rest}
    return stage, geometry, facts
