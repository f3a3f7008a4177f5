"""Images that an object refers to and that are not there.

Such an object is rendered all the same, as Blender itself shows it: pink where the texture should be, and in the
material's plain colour for a dae, whose importer drops the texture. Runs in the child process alone.
"""

import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import bpy

from gap3d import references
from gap3d.records import Failure

DROPPED = frozenset({"dae", "usd", "usda", "usdz"})
"""Types whose importers leave no trace of an image that they don't find: the file itself is asked."""


def missing_textures(tree: Path, main: str, file_type: str) -> list[str]:
    """File names, sorted, after a second look for Windows paths."""
    missing = {PureWindowsPath(path).name for image in bpy.data.images for path in absent(image)}
    if file_type == "usdz":
        missing.update(absent_in_package(tree / main))
    elif file_type in DROPPED:
        missing.update(absent_in_file(tree, main))
    return sorted(missing)


def absent(image: bpy.types.Image) -> Iterator[str]:
    """The path of an image that is used and neither packed nor on disk; one of its files is enough."""
    if image.source not in ("FILE", "SEQUENCE", "TILED") or not image.users or image.packed_files:
        return
    path = bpy.path.abspath(image.filepath, library=image.library)
    tiles = [tile.number for tile in image.tiles] if image.source == "TILED" else [0]
    if any(readable(Path(path.replace("<UDIM>", str(number)))) for number in tiles):
        return
    if readable(Path(slashed := path.replace("\\", "/"))):
        image.filepath = slashed
        image.reload()
        return
    yield path


def readable(path: Path) -> bool:
    """Whether a file can be opened: the sandbox does not hide that one outside the tree exists."""
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def absent_in_file(tree: Path, main: str) -> Iterator[str]:
    """Names of images that a file, or a layer of it, names and that the tree does not hold."""
    try:
        found = references.closure(tree, main)
    except Failure:  # a reference that leads out of the tree: nothing is read from there, here or in Blender
        return
    yield from (PurePosixPath(path).name for path in found.missing if is_texture(path))


def absent_in_package(file: Path) -> Iterator[str]:
    """The same for a package of USD layers."""
    with zipfile.ZipFile(file) as package:
        held = {PurePosixPath(name).name for name in package.namelist()}
        for entry in package.infolist():
            layer = entry.filename.lower().endswith(references.LAYER_SUFFIXES) and entry.file_size
            if layer and entry.compress_type == zipfile.ZIP_STORED:  # else it is no USD package, and may be a bomb
                with mmap.mmap(-1, entry.file_size) as data:
                    data.write(package.read(entry))
                    names = [PurePosixPath(found.text).name for found in references.of_usd(data)]
                yield from (name for name in names if is_texture(name) and name not in held)


def is_texture(path: str) -> bool:
    """Whether a path is an image's, by its name."""
    return path.lower().endswith(references.TEXTURE_SUFFIXES)
