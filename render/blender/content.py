"""What of an imported scene is shown, and the meshes that it evaluates to. Runs in the child process alone."""

import bpy
import numpy as np

from gap3d.records import Failure, Status
from render.geometry import Part, in_order

MESH_LIKE = frozenset({"MESH", "CURVE", "SURFACE", "META", "FONT"})
# Lights and cameras are ours; grease pencil is drawn by the GPU, even under Cycles.
NOT_STAGED = frozenset({"LIGHT", "LIGHT_PROBE", "CAMERA", "SPEAKER", "GPENCIL", "GREASEPENCIL"})


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
        if item.show_instancer_for_viewport != item.show_instancer_for_render:
            item.show_instancer_for_viewport = item.show_instancer_for_render
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
        particles.display_percentage, particles.display_method = 100, "RENDER"
        particles.child_percent, particles.display_step = particles.rendered_child_count, particles.render_step


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
    return in_order([part for part in parts.values() if len(part.faces)]), points


def is_animated() -> bool:
    """Whether anything that was imported moves with time."""
    return bool(bpy.data.actions) or any(
        any(modifier.type == "MESH_SEQUENCE_CACHE" for modifier in item.modifiers)
        or any(constraint.type == "TRANSFORM_CACHE" for constraint in item.constraints)
        for item in bpy.data.objects
    )
