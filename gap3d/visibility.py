"""Least-occluded view selection (paper A.1.2, specification 2.3).

Sample the surface, look at every sample from each candidate camera, take the camera that sees most.
The rays are cast by the Embree library that the embreex wheel carries. It is called through its C
interface: embreex's own classes copy a mesh number by number through Python objects, which takes several
times as long as building its BVH (``benchmarks/visibility.py``).
"""

import ctypes
import ctypes.util
import functools
import hashlib
import importlib.util
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gap3d.cameras import Camera
from gap3d.records import Failure, Status, SystemicFault
from gap3d.settings import ViewSettings

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int32Array = NDArray[np.int32]
BoolArray = NDArray[np.bool_]

# Triangles whose areas are computed at a time: the intermediates stay in the cache.
AREA_BLOCK = 16384

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


@dataclass(frozen=True)
class ViewChoice:
    """What view selection found for one object.

    Args:
        counts: visible samples from each candidate yaw, in the order of ``ViewSettings.yaws``.
        chosen: index of the chosen yaw in ``ViewSettings.yaws``; None if a pinned yaw is not among them.
        camera: the chosen camera.
        points: number of surface samples that were cast.
        pinned: the yaw was given, not chosen; the counts are those of the candidates all the same.
    """

    counts: tuple[int, ...]
    chosen: int | None
    camera: Camera
    points: int
    pinned: bool


def select_view(
    vertices: ArrayLike,
    faces: ArrayLike,
    settings: ViewSettings,
    object_id: str,
    pinned_yaw: float | None = None,
    *,
    threads: int = 0,
) -> ViewChoice:
    """Choose the candidate yaw from which most of the surface is seen; ties go to the first.

    Args:
        vertices: float32 [V, 3], the normalised object, in [-0.5, 0.5]^3.
        faces: int32 [F, 3], triangles; seen from both sides.
        settings: points, candidate cameras, tolerance and seed.
        object_id: with the seed, what the samples are drawn from.
        pinned_yaw: degrees; take this yaw whatever the counts say.
        threads: of the BVH build, 0 for all cores; a limit holds if it was the first in the process.

    Returns:
        The counts and the camera.

    Raises:
        Failure: ``no_geometry`` without triangles, ``degenerate`` if they have no finite area.
        SystemicFault: Embree is missing.
        ValueError: the arrays are no triangle mesh.
    """
    vertices, faces = as_mesh(vertices, faces)
    samples = sample_surface(vertices, faces, settings.points, sample_generator(object_id, settings.seed))
    scene = Scene(vertices, faces, threads)
    cameras = [Camera(yaw, settings.pitch, settings.radius, settings.fov) for yaw in settings.yaws]
    counts = tuple(int(scene.visible(camera, samples, settings.tolerance).sum()) for camera in cameras)
    best = int(np.argmax(counts))
    if pinned_yaw is None:
        return ViewChoice(counts, best, cameras[best], len(samples), pinned=False)
    camera = Camera(pinned_yaw, settings.pitch, settings.radius, settings.fov)
    chosen = settings.yaws.index(pinned_yaw) if pinned_yaw in settings.yaws else None
    return ViewChoice(counts, chosen, camera, len(samples), pinned=True)


def sample_generator(object_id: str, seed: int) -> np.random.Generator:
    """The generator of an object's surface samples, the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{object_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))


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


def triangle_areas(vertices: Float32Array, faces: Int32Array) -> Float64Array:
    """Area of each triangle, float64 [F]."""
    columns = [np.ascontiguousarray(column) for column in vertices.T]
    areas = np.empty(len(faces))
    for start in range(0, len(faces), AREA_BLOCK):
        first, second, third = np.ascontiguousarray(faces[start : start + AREA_BLOCK].T)
        edges = []
        for column in columns:
            origin = column.take(first)
            edges.append(
                (
                    # float64 from here on: float32 products would give a sliver an area it does not have
                    np.subtract(column.take(second), origin, dtype=np.float64),
                    np.subtract(column.take(third), origin, dtype=np.float64),
                )
            )
        (ax, bx), (ay, by), (az, bz) = edges
        x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        np.sqrt(x * x + y * y + z * z, out=areas[start : start + AREA_BLOCK])
    areas *= 0.5
    return areas


def sample_surface(vertices: ArrayLike, faces: ArrayLike, count: int, rng: np.random.Generator) -> Float32Array:
    """Independent points, uniform over the surface (paper A.1.2).

    Args:
        vertices: float32 [V, 3].
        faces: int32 [F, 3].
        count: number of points.
        rng: source of randomness; three times ``count`` uniform numbers are drawn.

    Returns:
        float32 [count, 3], ordered by triangle, so that neighbouring rays visit neighbouring memory.

    Raises:
        Failure: ``no_geometry`` without triangles, ``degenerate`` if they have no finite area.
    """
    vertices, faces = as_mesh(vertices, faces)
    if not len(faces):
        raise Failure(Status.NO_GEOMETRY, "the object has no triangles")
    with np.errstate(invalid="ignore", over="ignore"):
        reached = np.cumsum(triangle_areas(vertices, faces))
    total = reached[-1]
    if not (np.isfinite(total) and total > 0):
        raise Failure(Status.DEGENERATE, f"the surface area of {len(faces)} triangles is {total}")
    draws = np.sort(rng.random(count)) * total
    # A draw may round up to the total; it belongs to the last triangle that has an area.
    last = np.searchsorted(reached, total, side="left")
    triangles = faces[np.minimum(np.searchsorted(reached, draws, side="right"), last)]
    u, v = rng.random((2, count, 1))
    folded = u + v > 1
    u, v = np.where(folded, 1 - u, u), np.where(folded, 1 - v, v)
    a, b, c = (vertices[corner].astype(np.float64) for corner in triangles.T)
    return (a + u * (b - a) + v * (c - a)).astype(np.float32)


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
