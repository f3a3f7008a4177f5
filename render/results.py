"""Reads what a child wrote, as one reads a stranger's files: no links, no pickles, sizes and contents checked."""

import math
import os
import re
import stat
import struct
from io import BufferedReader, BytesIO
from typing import Any, BinaryIO

import numpy as np
import PIL.Image

from gap3d.records import Failure, Status
from render.job import Garbled, Mesh

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NPY_MAGIC = b"\x93NUMPY\x01\x00"
NPY_HEADER = re.compile(
    rb"\{'descr': '(<[fi]4)', 'fortran_order': False, 'shape': \(((?:\d{1,15}, ?){1,2}\d{0,15})\), \} *\n"
)
MINIMUM_AREA = 1e-6
"""Of a surface whose longest side is 1: what rounding to float32 leaves of collinear triangles."""
FACES_PER_CHUNK = 2**20


def open_result(folder: int, name: str, most_bytes: int) -> BufferedReader:
    """Open a regular file in the folder (a descriptor), removing its name. Raises Garbled."""
    try:
        # O_NONBLOCK: opening a pipe put there instead would wait for its writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        os.unlink(name, dir_fd=folder)
    except OSError as error:
        raise Garbled(f"result {name}: {error.strerror}") from error
    file = os.fdopen(descriptor, "rb")
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 0 or state.st_size > most_bytes:
        file.close()
        raise Garbled(f"result {name}: not one regular file of at most {most_bytes} bytes")
    return file


def header_of(file: BinaryIO, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """dtype and shape of an .npy file, read up to its data. Raises Garbled for a header that np.save does not write.

    NumPy's own reader evaluates the header as a Python literal, which a stranger can make fail in many ways.
    """
    head = file.read(10)
    text = file.read(int.from_bytes(head[8:], "little")) if head[:8] == NPY_MAGIC else b""
    if (written := NPY_HEADER.fullmatch(text)) is None:
        raise Garbled(f"result {name}: not the header of a plain array")
    shape = tuple(int(length) for length in written[2].replace(b",", b" ").split())
    return np.dtype(written[1].decode()), shape


def take_array(
    folder: int, name: str, dtype: type[np.generic], shape: tuple[int | None, ...], most_bytes: int
) -> np.ndarray:
    """Read and remove an .npy file of the given dtype and shape, None for any length of an axis. Raises Garbled."""
    with open_result(folder, name, most_bytes) as file:
        found, told = header_of(file, name)
        fits = len(told) == len(shape) and all(
            size >= 0 and wanted in (None, size) for size, wanted in zip(told, shape, strict=True)
        )
        if found != np.dtype(dtype) or not fits:
            raise Garbled(f"result {name}: {found} {told} instead of {np.dtype(dtype)} {shape}")
        size = math.prod(told) * found.itemsize
        if os.fstat(file.fileno()).st_size != file.tell() + size:
            raise Garbled(f"result {name}: its size does not fit its shape {told}")
        array = np.empty(told, found)
        if file.readinto(array.data.cast("B") if size else bytearray()) != array.nbytes:
            raise Garbled(f"result {name}: it shrank while it was read")
        return array


def take_depth(folder: int, name: str, resolution: int) -> np.ndarray:
    """Read and remove a depth image: positive, +inf for the background. Raises Garbled."""
    header = 1024
    depth = take_array(folder, name, np.float32, (resolution, resolution), header + 4 * resolution**2)
    if not (depth > 0).all():  # no number is not greater than 0
        raise Garbled(f"result {name}: a depth that is not in front of the camera")
    return depth


def take_bytes(folder: int, name: str, most_bytes: int) -> bytes:
    """Read and remove a file. Raises Garbled."""
    with open_result(folder, name, most_bytes) as file:
        return file.read(most_bytes)


def critical_chunks(png: bytes) -> bytes:
    """The PNG without its metadata: Cycles writes the render time there, and the same pixels must be the same bytes.

    Raises Garbled if it is not a chain of PNG chunks that ends with IEND.
    """
    kept = [png[:8]]
    start = 8
    while start < len(png):
        (length,) = struct.unpack(">I", png[start : start + 4].ljust(4, b"\xff"))
        kind = png[start + 4 : start + 8]
        end = start + 12 + length
        if png[:8] != PNG_SIGNATURE or end > len(png):
            raise Garbled("an image that is no PNG")
        if kind in (b"IHDR", b"IDAT", b"IEND"):  # all that a plain picture has
            kept.append(png[start:end])
        start = end
        if kind == b"IEND":
            return b"".join(kept)
    raise Garbled("an image cut short")


def check_image(png: bytes, resolution: int) -> None:
    """Decode an image. Raises Garbled unless it is a whole RGBA PNG of the size, Failure(empty_render) if all clear."""
    try:
        with PIL.Image.open(BytesIO(png), formats=["PNG"]) as image:
            if image.size != (resolution, resolution) or image.mode != "RGBA":
                raise Garbled(f"an image {image.mode} {image.size} instead of RGBA {(resolution, resolution)}")
            visible = image.getchannel("A").getextrema()[1]
    # What Pillow raises for broken PNGs: UnidentifiedImageError is an OSError, broken chunks are SyntaxErrors.
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise Garbled(f"an image that is no PNG: {error}") from error
    if visible == 0:
        raise Failure(Status.EMPTY_RENDER, "every pixel is fully transparent")


def surface_area(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Total area of triangles; vertices float [V, 3], faces int [F, 3]."""
    total = 0.0
    for start in range(0, len(faces), FACES_PER_CHUNK):
        a, b, c = (vertices[faces[start : start + FACES_PER_CHUNK, corner]] for corner in range(3))
        normals = np.cross(b - a, c - a)
        total += 0.5 * float(np.sqrt(np.einsum("ij,ij->i", normals, normals)).sum(dtype=np.float64))
    return total


def check_mesh(mesh: Mesh) -> None:
    """Raises Garbled for a mesh that contradicts itself.

    Raises Failure(no_geometry, point_cloud or degenerate) for one without surface.
    """
    if not (np.isfinite([mesh.scale, *mesh.offset]).all() and mesh.scale > 0) or mesh.triangles != len(mesh.faces):
        raise Garbled("facts that do not fit the mesh")
    if not all(0 <= count < 2**31 for count in (mesh.objects, mesh.triangles, mesh.points)):
        raise Garbled("numbers that nothing can have")
    if not len(mesh.faces) and mesh.points:
        raise Failure(Status.POINT_CLOUD, f"{mesh.points} points, no faces")
    if not len(mesh.faces):
        raise Failure(Status.NO_GEOMETRY, f"{mesh.objects} objects, none with faces")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise Garbled("face indices out of range")
    if not np.isfinite(mesh.vertices).all():
        raise Failure(Status.DEGENERATE, "non-finite coordinates")
    if surface_area(mesh.vertices, mesh.faces) < MINIMUM_AREA:
        raise Failure(Status.DEGENERATE, "zero area")
