"""The twelve file types: which of Blender's importers reads each, and what its complaints mean.

Runs in the child process alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import bpy

from gap3d.records import Failure, Status
from render.job import last_words

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

FROM_ZERO = frozenset({"glb", "gltf", "dae"})
"""Types whose importers put time 0 at frame 0, and leave the scene to begin at frame 1."""


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
    """Run the type's importer in the current scene, which then begins at the file's first frame.

    Raises Failure(unsupported, import_error or out_of_memory).
    """
    if file_type not in IMPORTERS:
        raise Failure(Status.UNSUPPORTED, f"file type {file_type!r} is none of {', '.join(IMPORTERS)}")
    try:
        result = IMPORTERS[file_type](str(tree / main))
    except RuntimeError as error:  # operators report every error so, their own crashes included
        raise failure_of(str(error), (str(tree),)) from error
    if "FINISHED" not in result:
        raise Failure(Status.IMPORT_ERROR, f"the importer gave up: {', '.join(result)}")
    if file_type in FROM_ZERO:
        bpy.context.scene.frame_start = 0
