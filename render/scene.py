"""Blender itself: import an object, normalise it, extract its mesh, light and render it.

The only module that imports bpy; it runs in the child process alone. What the scene is comes from the paper's
renderer, TRELLIS' Blender script (specification 2.1 and decisions 28 to 30). A file gives its objects, materials and
(a .blend) its world; everything else is set here, in a new scene. The file's objects are not touched: they stand in a
collection that one empty instances, and the empty carries the normalisation. Unlike parenting every root to an empty,
that stays exact for objects that also occur in instanced collections, or are held by constraints or drivers.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix

from gap3d.records import Failure, Status
from render.geometry import Geometry, Part, bounds, gather
from render.job import last_words

VERSION: str = bpy.app.version_string

Operator = Callable[[str], set[str]]

IMPORTERS: Mapping[str, Operator] = MappingProxyType(
    {
        "obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
        "glb": lambda path: bpy.ops.import_scene.gltf(filepath=path, merge_vertices=True, import_shading="NORMALS"),
        "gltf": lambda path: bpy.ops.import_scene.gltf(filepath=path, merge_vertices=True, import_shading="NORMALS"),
        # A dome light would replace the factory World, which lights every object of these types alike.
        "usdz": lambda path: bpy.ops.wm.usd_import(filepath=path, create_world_material=False),
        "usd": lambda path: bpy.ops.wm.usd_import(filepath=path, create_world_material=False),
        "usda": lambda path: bpy.ops.wm.usd_import(filepath=path, create_world_material=False),
        # import_scene.fbx (Python) refuses ASCII files, agrees on all others, and takes 3 to 40 times as long.
        "fbx": lambda path: bpy.ops.wm.fbx_import(filepath=path),
        "stl": lambda path: bpy.ops.wm.stl_import(filepath=path),
        "dae": lambda path: bpy.ops.wm.collada_import(filepath=path),
        "ply": lambda path: bpy.ops.wm.ply_import(filepath=path),
        "abc": lambda path: bpy.ops.wm.alembic_import(filepath=path),
        "blend": lambda path: bpy.ops.wm.open_mainfile(filepath=path, load_ui=False, use_scripts=False),
    }
)

MESH_LIKE = frozenset({"MESH", "CURVE", "SURFACE", "META", "FONT"})
# Lights and cameras are ours; grease pencil is drawn by the GPU, even under Cycles.
NOT_STAGED = frozenset({"LIGHT", "LIGHT_PROBE", "CAMERA", "SPEAKER", "GPENCIL", "GREASEPENCIL"})

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


def reset() -> None:
    """Back to the factory scene without its objects; the factory World (grey 0.05, strength 1) stays."""
    bpy.ops.wm.read_homefile(use_factory_startup=True, load_ui=False)
    for name in ("objects", "meshes", "materials", "images", "lights", "cameras", "collections"):
        data = getattr(bpy.data, name)
        data_blocks = list(data)
        bpy.data.batch_remove(data_blocks)


def failure_of(text: str, hidden: tuple[str, ...]) -> Failure:
    """The typed failure for an importer's error text."""
    if any(words in text for words in ("MemoryError", "bad_alloc", "Malloc returns null", "Calloc returns null")):
        status = Status.OUT_OF_MEMORY
    elif any(words in text for words in ("is not available on this addon version", "not supported", "unsupported")):
        status = Status.UNSUPPORTED
    else:
        status = Status.IMPORT_ERROR
    return Failure(status, last_words(text, hidden))


def import_file(tree: Path, main: str, file_type: str) -> None:
    """Run the type's importer in the current scene. Raises Failure(unsupported, import_error or out_of_memory)."""
    if file_type not in IMPORTERS:
        raise Failure(Status.UNSUPPORTED, f"file type {file_type!r} is none of {', '.join(IMPORTERS)}")
    try:
        result = IMPORTERS[file_type](str(tree / main))
    except RuntimeError as error:  # operators report every error so, their own crashes included
        raise failure_of(str(error), (str(tree),)) from error
    if "FINISHED" not in result:
        raise Failure(Status.IMPORT_ERROR, f"the importer gave up: {', '.join(result)}")


def shown_objects(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """The objects that a render of this scene shows: no hidden ones, none of hidden or excluded collections."""
    found: dict[bpy.types.Object, None] = {}

    def visit(layer: bpy.types.LayerCollection) -> None:
        if layer.collection.hide_viewport or layer.collection.hide_render:
            return
        if not layer.exclude:  # the children of an excluded collection may still be included
            found.update(dict.fromkeys(layer.collection.objects))
        for child in layer.children:
            visit(child)

    visit(scene.view_layers[0].layer_collection)
    return [item for item in found if not (item.hide_viewport or item.hide_render or item.type in NOT_STAGED)]


def show_what_is_rendered() -> None:
    """Make the evaluated (viewport) geometry the rendered one: the mesh that is scored is the one in the image."""
    for item in (*bpy.data.objects, *bpy.data.collections):
        if item.hide_render or getattr(item, "type", "") in ("LIGHT", "LIGHT_PROBE"):
            item.hide_viewport = item.hide_render = True
        elif item.hide_viewport:
            item.hide_render = True
    for item in bpy.data.objects:
        for modifier in item.modifiers:
            if modifier.show_viewport != modifier.show_render:
                modifier.show_viewport = modifier.show_render
            if modifier.type in ("SUBSURF", "MULTIRES"):
                modifier.levels = modifier.render_levels
    for curve in bpy.data.curves:
        curve.resolution_u = curve.render_resolution_u or curve.resolution_u
        curve.resolution_v = curve.render_resolution_v or curve.resolution_v
    for ball in bpy.data.metaballs:
        ball.resolution = ball.render_resolution
    for particles in bpy.data.particles:
        particles.display_percentage = 100


def part_of(mesh: bpy.types.Mesh) -> Part:
    """Copy one evaluated mesh out of Blender, triangulated."""
    vertices = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", vertices)
    mesh.calc_loop_triangles()
    faces = np.empty(len(mesh.loop_triangles) * 3, np.int32)
    mesh.loop_triangles.foreach_get("vertices", faces)
    return Part(vertices.reshape(-1, 3).astype(np.float64), faces.reshape(-1, 3))


def evaluated_parts(depsgraph: bpy.types.Depsgraph, limit: int) -> tuple[list[Part], int]:
    """All evaluated meshes with faces, each once with its instances; and the number of points without faces.

    Raises Failure(too_large) as soon as the instances add up to more than ``limit`` triangles.
    """
    parts: dict[int, Part] = {}
    points, triangles = 0, 0
    for instance in depsgraph.object_instances:
        item = instance.object
        if item.type == "POINTCLOUD" and instance.show_self:
            points += len(item.data.points)
        if item.type not in MESH_LIKE or not instance.show_self:
            continue
        key = item.data.as_pointer()
        if (part := parts.get(key)) is None:
            part = parts[key] = part_of(item.data if item.type == "MESH" else item.to_mesh())
        part.matrices.append([tuple(row) for row in instance.matrix_world])
        points += 0 if len(part.faces) else len(part.vertices)
        triangles += len(part.faces)
        if triangles > limit:
            raise Failure(Status.TOO_LARGE, f"more than {limit} triangles with modifiers and instances")
    return [part for part in parts.values() if len(part.faces)], points


def missing_textures() -> list[str]:
    """File names of images that are used and neither packed nor on disk, after a second look for Windows paths."""
    missing: set[str] = set()
    for image in bpy.data.images:
        if image.source != "FILE" or not image.users or image.packed_file:
            continue
        path = bpy.path.abspath(image.filepath, library=image.library)
        if Path(path).is_file():
            continue
        if Path(slashed := path.replace("\\", "/")).is_file():
            image.filepath = slashed
            image.reload()
        else:
            missing.add(PureWindowsPath(path).name)
    return sorted(missing)


def is_animated() -> bool:
    """Whether anything that was imported moves with time."""
    return bool(bpy.data.actions) or any(
        any(modifier.type == "MESH_SEQUENCE_CACHE" for modifier in item.modifiers)
        or any(constraint.type == "TRANSFORM_CACHE" for constraint in item.constraints)
        for item in bpy.data.objects
    )


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

        Raises Failure(no_geometry, degenerate or too_large).
        """
        parts, points = evaluated_parts(self.scene.view_layers[0].depsgraph, limit)
        if not parts:
            seen = f"{points} points, no faces" if points else f"{len(self.objects)} objects, none with faces"
            raise Failure(Status.NO_GEOMETRY, seen)
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
            light.energy = energy
            if kind == "POINT":
                light.shadow_soft_size = 0.25
            else:
                light.shape, light.size = "SQUARE", 0.25
            item = self._add(name, light)
            item.location = position
            item.scale = (size, size, size)

    def render(
        self,
        path: Path,
        *,
        camera_to_world: list[list[float]],
        fov: float,
        resolution: int,
        samples: int,
        denoise: bool,
        threads: int,
    ) -> dict[str, Any]:
        """Write one square RGBA PNG; fov in degrees. Raises Failure(out_of_memory or internal_error)."""
        started = time.perf_counter()
        self._aim(camera_to_world, fov)
        self._set_image(path, resolution, threads)
        self._set_cycles(samples, denoise)
        before, cpu = time.perf_counter(), time.process_time()
        try:
            bpy.ops.render.render(write_still=True)
        except RuntimeError as error:
            status = Status.OUT_OF_MEMORY if "memory" in str(error).lower() else Status.INTERNAL_ERROR
            raise Failure(status, f"render: {last_words(str(error))}") from error
        done, cpu = time.perf_counter(), time.process_time() - cpu
        return {"costs": {"render": done - before, "render_cpu": cpu, "other": before - started}}

    def _aim(self, camera_to_world: list[list[float]], fov: float) -> None:
        if self.scene.camera is None:
            self.scene.camera = self._add("camera", bpy.data.cameras.new("camera"))
        lens = self.scene.camera.data
        lens.sensor_width = lens.sensor_height = 32.0
        lens.lens = 16.0 / math.tan(math.radians(fov) / 2.0)
        lens.clip_start, lens.clip_end = 0.1, 1000.0
        self.scene.camera.matrix_world = Matrix(camera_to_world)

    def _set_image(self, path: Path, resolution: int, threads: int) -> None:
        scene, render = self.scene, self.scene.render
        render.filepath = str(path)
        render.use_file_extension = False
        render.resolution_x = render.resolution_y = resolution
        render.resolution_percentage = 100
        render.pixel_aspect_x = render.pixel_aspect_y = 1.0
        render.film_transparent = True
        render.dither_intensity = 1.0
        render.filter_size = 1.5
        render.use_border = render.use_compositing = render.use_sequencer = render.use_persistent_data = False
        render.threads_mode, render.threads = "FIXED", threads
        render.image_settings.file_format, render.image_settings.color_mode = "PNG", "RGBA"
        render.image_settings.color_depth, render.image_settings.compression = "8", 15
        # Date, host and duration would be written into the PNG: the same image must be the same bytes.
        for name in (each.identifier for each in render.bl_rna.properties if each.identifier.startswith("use_stamp")):
            setattr(render, name, False)
        scene.display_settings.display_device = "sRGB"
        view = scene.view_settings
        view.view_transform, view.look = "Filmic", "None"
        view.exposure, view.gamma = 0.0, 1.0
        view.use_curve_mapping = view.use_white_balance = False

    def _set_cycles(self, samples: int, denoise: bool) -> None:
        self.scene.render.engine = "CYCLES"
        for name, value in (
            ("device", "CPU"),
            ("feature_set", "SUPPORTED"),
            ("samples", samples),
            ("seed", 0),
            ("sampling_pattern", "TABULATED_SOBOL"),
            ("use_adaptive_sampling", True),
            ("adaptive_threshold", 0.01),
            ("adaptive_min_samples", 0),
            ("use_light_tree", False),  # 3.0 had none
            ("pixel_filter_type", "BLACKMAN_HARRIS"),
            ("filter_width", 1.0),
            ("max_bounces", 12),
            ("diffuse_bounces", 1),
            ("glossy_bounces", 1),
            ("transmission_bounces", 3),
            ("transparent_max_bounces", 3),
            ("volume_bounces", 0),
            ("sample_clamp_direct", 0.0),
            ("sample_clamp_indirect", 10.0),
            ("use_fast_gi", False),
            ("use_denoising", denoise),
            ("denoiser", "OPENIMAGEDENOISE"),
            ("denoising_input_passes", "RGB_ALBEDO_NORMAL"),
            ("denoising_prefilter", "ACCURATE"),
            ("denoising_quality", "HIGH"),
            ("denoising_use_gpu", False),
        ):
            setattr(self.scene.cycles, name, value)


def load(
    tree: Path, main: str, file_type: str, up_axis: str | None, limit: int
) -> tuple[Stage, Geometry, dict[str, Any]]:
    """Import an object into the reset Blender, stage, normalise and light it.

    Returns the stage, the mesh, and the fields of ``render.job.Facts``. Raises Failure.
    """
    begun, cpu = time.perf_counter(), time.process_time()
    world = bpy.context.scene.world
    import_file(tree, main, file_type)
    imported, cpu = time.perf_counter(), time.process_time() - cpu
    stage = Stage(bpy.context.scene.world if file_type == "blend" else world)
    staged = time.perf_counter()
    geometry, facts = stage.normalise(up_axis, limit)
    extracted = time.perf_counter()
    stage.light()
    facts |= {"animated": is_animated(), "missing_textures": missing_textures()}
    rest = (staged - imported) + (time.perf_counter() - extracted)
    facts["costs"] = {"import": imported - begun, "import_cpu": cpu, "mesh": extracted - staged, "other": rest}
    return stage, geometry, facts
