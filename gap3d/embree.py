"""The door to Embree: one BVH over one mesh, and rays against it.

The library is the one that the embreex wheel carries. It is called through its C interface: embreex's own
classes copy a mesh number by number through Python objects, which takes several times as long as building
its BVH (``benchmarks/visibility.py``).
"""

import ctypes
import ctypes.util
import functools
import importlib.util
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gap3d.cameras import Camera
from gap3d.records import Failure, Status, SystemicFault

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]
BoolArray = NDArray[np.bool_]

# From embree4/rtcore.h, the same in every 4.x.
EMBREE_MAJOR = 4
PROPERTY_VERSION = 0
GEOMETRY_TRIANGLE = 0
BUFFER_INDEX, BUFFER_VERTEX = 0, 1
FORMAT_UINT3, FORMAT_FLOAT3 = 0x5003, 0x9003
SCENE_FLAG_ROBUST = 1 << 2
ERROR_OUT_OF_MEMORY = 4
PACKET = 16  # rays per call of rtcOccluded16
PACKET_FIELDS = 12  # RTCRay16 is 12 arrays of 16 four-byte numbers
PACKET_BYTES = PACKET_FIELDS * PACKET * 4
ORIGIN, DIRECTION, TFAR, MASK = slice(0, 3), slice(4, 7), 8, 9  # the others (nearest distance, time ...) are 0
ALIGNMENT = 64


def as_mesh(vertices: ArrayLike, faces: ArrayLike) -> tuple[Float32Array, Int32Array]:
    """Contiguous float32 [V, 3] and int32 [F, 3], the indices proven to be inside; copies only if it must."""
    vertices = np.ascontiguousarray(vertices, dtype=np.float32)
    faces = np.ascontiguousarray(faces, dtype=np.int32)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"a mesh is vertices [V, 3] and faces [F, 3], not {vertices.shape} and {faces.shape}")
    # Embree would read past the vertices without asking. Seen as unsigned, a negative index is a huge one.
    if faces.size and faces.view(np.uint32).max() >= len(vertices):
        raise ValueError(f"a face refers to vertices {faces.min()} to {faces.max()} of {len(vertices)}")
    return vertices, faces


class Scene:
    """One Embree BVH over one mesh, for two-sided visibility queries.

    Args:
        vertices: float32 [V, 3].
        faces: int32 [F, 3].
        threads: of the build, 0 for all cores; the first scene in a process decides.

    Raises:
        Failure: ``out_of_memory`` if the BVH does not fit.
        SystemicFault: Embree is missing.
    """

    def __init__(self, vertices: ArrayLike, faces: ArrayLike, threads: int = 0) -> None:
        vertices, faces = as_mesh(vertices, faces)
        embree, device = _device(threads)
        self._embree = embree
        self._handle = embree.rtcNewScene(device)
        self._close = weakref.finalize(self, embree.rtcReleaseScene, self._handle)
        # Robust: a ray through an edge that two triangles share must not slip between them.
        embree.rtcSetSceneFlags(self._handle, SCENE_FLAG_ROBUST)
        geometry = embree.rtcNewGeometry(device, GEOMETRY_TRIANGLE)
        for kind, layout, array in ((BUFFER_VERTEX, FORMAT_FLOAT3, vertices), (BUFFER_INDEX, FORMAT_UINT3, faces)):
            buffer = embree.rtcSetNewGeometryBuffer(geometry, kind, 0, layout, array.strides[0], len(array))
            if array.size and not buffer:
                embree.rtcReleaseGeometry(geometry)
                self._raise_error(device, len(faces))
            ctypes.memmove(buffer, array.ctypes.data, array.nbytes)
        embree.rtcCommitGeometry(geometry)
        embree.rtcAttachGeometry(self._handle, geometry)
        embree.rtcReleaseGeometry(geometry)
        embree.rtcCommitScene(self._handle)
        self._raise_error(device, len(faces))

    def _raise_error(self, device: int, triangles: int) -> None:
        code = self._embree.rtcGetDeviceError(device)
        if code == ERROR_OUT_OF_MEMORY:
            raise Failure(Status.OUT_OF_MEMORY, f"Embree ran out of memory on {triangles} triangles")
        if code:
            raise RuntimeError(f"Embree error {code} on {triangles} triangles")

    def visible(self, camera: Camera, points: ArrayLike, tolerance: float) -> BoolArray:
        """Which points the camera sees: inside the frame, and nothing before them.

        Args:
            camera: the observer.
            points: world coordinates [N, 3].
            tolerance: a hit counts as the point itself unless it is nearer than the distance less this.

        Returns:
            bool [N].
        """
        points = np.asarray(points)
        seen = camera.inside_frame(points)
        seen[seen] = ~self.occluded(camera.position, points[seen], tolerance)
        return seen

    def occluded(self, origin: ArrayLike, points: ArrayLike, tolerance: float) -> BoolArray:
        """Whether a surface lies between an origin [3] and each point [N, 3], nearer than distance less tolerance."""
        # Embree's float32 origin, so that the directions start where the rays do.
        origin = np.asarray(origin, dtype=np.float32)
        towards = np.asarray(points, dtype=np.float64) - origin
        x, y, z = towards.T
        distances = np.sqrt(x * x + y * y + z * z)
        with np.errstate(invalid="ignore"):  # a point at the origin: its reach is negative, the ray is not cast
            return self.blocked(origin, towards / distances[:, None], distances - tolerance)

    def blocked(self, origin: ArrayLike, directions: ArrayLike, reach: ArrayLike) -> BoolArray:
        """Whether each ray hits anything within its reach.

        Args:
            origin: [3].
            directions: unit vectors [N, 3].
            reach: distances [N]; a ray with a negative reach is not cast.

        Returns:
            bool [N].
        """
        return self.cast(packets(origin, directions, reach))[: len(np.asarray(reach))]

    def cast(self, rays: Float32Array) -> BoolArray:
        """Whether each ray of an array from ``packets`` is blocked, bool [16 * P]; overwrites their reaches."""
        occluded, handle, valid = self._embree.rtcOccluded16, self._handle, _all_valid().ctypes.data
        start = rays.ctypes.data
        for address in range(start, start + rays.nbytes, PACKET_BYTES):
            occluded(valid, handle, address, None)
        return np.isneginf(rays[:, TFAR].ravel())  # Embree's mark of a blocked ray


def packets(origins: ArrayLike, directions: ArrayLike, reach: ArrayLike) -> Float32Array:
    """Lay rays out as Embree's RTCRay16.

    Args:
        origins: [3] or [N, 3].
        directions: unit vectors [N, 3].
        reach: distances [N]; a ray with a negative reach is not cast.

    Returns:
        float32 [ceil(N / 16), 12, 16], aligned; the rays that fill the last packet up are not cast.
    """
    directions, reach = np.asarray(directions), np.asarray(reach)
    rows = np.zeros((-(-len(reach) // PACKET) * PACKET, PACKET_FIELDS), dtype=np.float32)
    rows[:, TFAR] = -1.0
    rows[: len(reach), ORIGIN] = origins
    rows[: len(reach), DIRECTION] = directions
    rows[: len(reach), TFAR] = reach
    rows[:, MASK].view(np.uint32)[:] = 0xFFFFFFFF
    memory = np.empty(rows.nbytes + ALIGNMENT, dtype=np.uint8)
    skip = -memory.ctypes.data % ALIGNMENT
    rays = memory[skip : skip + rows.nbytes].view(np.float32).reshape(-1, PACKET_FIELDS, PACKET)
    rays[:] = rows.reshape(-1, PACKET, PACKET_FIELDS).transpose(0, 2, 1)
    return rays


@functools.cache
def _all_valid() -> Int32Array:
    """Sixteen times -1, aligned: the packet mask under which every ray is cast."""
    memory = np.full(PACKET + ALIGNMENT // 4, -1, dtype=np.int32)
    skip = -memory.ctypes.data % ALIGNMENT // 4
    return memory[skip : skip + PACKET]


def require_embree(threads: int = 0) -> str:
    """Prove that Embree is there and works, by casting one ray at a triangle and one past it.

    Returns:
        Its version, for the fingerprint.

    Raises:
        SystemicFault: it is missing, of another major version, or wrong.
    """
    embree, device = _device(threads)
    triangle = np.array([[0, -1, -1], [0, 1, -1], [0, 0, 1]], dtype=np.float32)
    hit, miss = Scene(triangle, [[0, 1, 2]], threads).blocked([1, 0, 0], [[-1, 0, 0], [1, 0, 0]], [2, 2])
    if not hit or miss:
        raise SystemicFault("Embree gives wrong answers on this machine; reinstall the package embreex")
    version = int(embree.rtcGetDeviceProperty(device, PROPERTY_VERSION))
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


@functools.cache
def _device(threads: int) -> tuple[ctypes.CDLL, int]:
    """The Embree library and a device of so many threads, kept for the life of the process."""
    embree = _library()
    device = embree.rtcNewDevice(f"threads={threads}".encode())
    if not device:
        raise SystemicFault(f"Embree cannot start on this machine (error {embree.rtcGetDeviceError(None)})")
    version = embree.rtcGetDeviceProperty(device, PROPERTY_VERSION)
    if version // 10000 != EMBREE_MAJOR:
        raise SystemicFault(f"Embree {version} is not {EMBREE_MAJOR}.x: pip install 'embreex>=4.4,<5'")
    return embree, device


@functools.cache
def _library() -> ctypes.CDLL:
    """The Embree library with the signatures of the functions used here (embree4/rtcore.h)."""
    package = importlib.util.find_spec("embreex")
    if package is None or package.origin is None:
        raise SystemicFault("Embree is missing: pip install 'embreex>=4.4,<5'")
    folder = Path(package.origin).parent
    bundled = [
        path
        for place in (folder.parent / "embreex.libs", folder / ".dylibs")
        for path in sorted(place.glob("*embree4*"))
    ]
    path = str(bundled[0]) if bundled else ctypes.util.find_library("embree4")
    if path is None:
        raise SystemicFault(f"no Embree library beside {folder} nor on the system: reinstall the package embreex")
    try:
        embree = ctypes.CDLL(path)
    except OSError as error:
        raise SystemicFault(f"the Embree library does not load ({error}): reinstall the package embreex") from error
    pointer, integer, unsigned, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
    for name, result, arguments in (
        ("rtcNewDevice", pointer, (ctypes.c_char_p,)),
        ("rtcGetDeviceProperty", ctypes.c_ssize_t, (pointer, integer)),
        ("rtcGetDeviceError", integer, (pointer,)),
        ("rtcNewScene", pointer, (pointer,)),
        ("rtcSetSceneFlags", None, (pointer, integer)),
        ("rtcNewGeometry", pointer, (pointer, integer)),
        ("rtcSetNewGeometryBuffer", pointer, (pointer, integer, unsigned, integer, size, size)),
        ("rtcCommitGeometry", None, (pointer,)),
        ("rtcAttachGeometry", unsigned, (pointer, pointer)),
        ("rtcReleaseGeometry", None, (pointer,)),
        ("rtcCommitScene", None, (pointer,)),
        ("rtcReleaseScene", None, (pointer,)),
        ("rtcOccluded16", None, (pointer, pointer, pointer, pointer)),
    ):
        function = getattr(embree, name)
        function.restype, function.argtypes = result, arguments
    return embree
