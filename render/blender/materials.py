"""Vertex colours: a mesh that has them and nothing else to be painted with is painted with them.

What each importer of Blender 4.5 makes of a file's colours, seen with files made for it:

- ply ("Col"), obj ("Color", both ``v x y z r g b`` and ``#MRGB``), usd ("displayColor", every interpolation), abc, fbx
  and dae (the file's own name): an attribute of linear colours and no material, so that Blender shows grey. abc does
  not mark the attribute as the one to render. Colours of a ply's faces are not read, nor those of an stl.
- glb and gltf: the importer multiplies COLOR_0 into the base colour, with a material and without.

A mesh with a material keeps it as Blender shows it: in fbx, dae, obj and usd files that have both, the material's
colour is what is seen. A .blend is its author's: nothing is added to it. Runs in the child process alone.
"""

from collections.abc import Iterable

import bpy


def show_vertex_colours(objects: Iterable[bpy.types.Object]) -> None:
    """Give every mesh that has colours, and no material on any object, a material that shows them; opaque."""
    meshes: dict[bpy.types.Mesh, bool] = {}
    for item in objects:
        if item.type == "MESH":
            bare = not any(slot.material for slot in item.material_slots)
            meshes[item.data] = bare and meshes.get(item.data, True)
    painted: dict[str, bpy.types.Material] = {}
    for mesh in (mesh for mesh, bare in meshes.items() if bare and len(mesh.color_attributes)):
        attribute = colours_of(mesh)
        if attribute not in painted:
            painted[attribute] = material_of(attribute)
        if not len(mesh.materials):
            mesh.materials.append(None)
        for slot in range(len(mesh.materials)):
            mesh.materials[slot] = painted[attribute]


def colours_of(mesh: bpy.types.Mesh) -> str:
    """The colour attribute that is rendered, else the first."""
    chosen = mesh.attributes.default_color_name
    return chosen if chosen in mesh.color_attributes else mesh.color_attributes[0].name


def material_of(attribute: str) -> bpy.types.Material:
    """Blender's standard surface in the colours of an attribute."""
    material = bpy.data.materials.new("vertex colours")
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    output = tree.nodes.new("ShaderNodeOutputMaterial")
    surface = tree.nodes.new("ShaderNodeBsdfPrincipled")
    surface.inputs["Metallic"].default_value = 0.0
    surface.inputs["Roughness"].default_value = 0.5
    surface.inputs["IOR"].default_value = 1.5  # the specular of 0.5 of Blender 3.0
    colours = tree.nodes.new("ShaderNodeVertexColor")
    colours.layer_name = attribute
    tree.links.new(colours.outputs["Color"], surface.inputs["Base Color"])
    tree.links.new(surface.outputs["BSDF"], output.inputs["Surface"])
    return material
