"""Views all around an object: which of its pictures are the 4, 8 or 20 of the evaluation (docs/method.md 2.2 and 8.3).

They are told by their cameras, never by their numbers: any fixed protocol that contains them serves. The 24 cameras of
``AROUND`` contain all three, in the order of their yaw; a view's number is its place among them.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from gap3d.cameras import Camera
from gap3d.manifest import LedgerRow
from gap3d.records import Status
from gap3d.store import Store
from gap3d.trellis.turntable import PROTOCOLS, Turntable

COUNTS = tuple(PROTOCOLS)  # 4: Frechet and kernel distance; 8: CLIP; 20, with depth: clouds
AROUND: tuple[Camera, ...] = tuple(
    sorted({camera for count in COUNTS for camera in Turntable(count, ssaa=1).cameras}, key=lambda camera: camera.yaw)
)
"""The cameras of all protocols, by yaw."""
TOLERANCE = 0.01  # of a pose's numbers: a third of a degree, where neighbours are 9 degrees apart
FOV_TOLERANCE = math.radians(0.1)
_POSES = np.stack([camera.camera_to_world for camera in AROUND])


def numbers_of(count: int) -> tuple[int, ...]:
    """The numbers of a protocol's cameras in ``AROUND``, by yaw.

    Args:
        count: 4, 8, 20, or all of ``AROUND``.

    Raises:
        ValueError: there is no protocol of so many.
    """
    if count == len(AROUND):
        return tuple(range(count))
    if count not in PROTOCOLS:
        raise ValueError(f"no protocol has {count} views: choose of {', '.join(map(str, COUNTS))}")
    return tuple(AROUND.index(camera) for camera in Turntable(count, ssaa=1).cameras)


def number_of(pose: ArrayLike, fov: float) -> int | None:
    """Which camera of ``AROUND`` a picture was taken with; None for any other.

    Args:
        pose: camera to world, [4, 4] or its 16 numbers row by row; -Z forward, +Y up.
        fov: full field of view, radians.
    """
    matrix = np.asarray(pose, dtype=np.float64)
    if matrix.size != 16 or not abs(fov - AROUND[0].fov_radians) < FOV_TOLERANCE:
        return None
    nearest = np.abs(_POSES - matrix.reshape(4, 4)).max((1, 2))
    found = int(nearest.argmin())
    return found if nearest[found] < TOLERANCE else None


@dataclass(frozen=True)
class Stored:
    """A picture in a row of renders: the file of its part, and the position there."""

    part: str
    row: int


@dataclass(frozen=True)
class Filed:
    """A picture in a file, and its depth in another.

    Attributes:
        picture: path of a PNG, JPEG or WebP.
        pose: camera to world as it was written down, 16 numbers row by row.
        fov: radians.
        depth: path of a 16-bit grey PNG of planar z; empty where there is none.
        depth_min: depth of its value 0.
        depth_max: depth of its value 65535, which is the background's.
    """

    picture: str
    pose: tuple[float, ...]
    fov: float
    depth: str = ""
    depth_min: float = 0.0
    depth_max: float = 0.0


@dataclass(frozen=True)
class View:
    """One of the pictures that a protocol asks for, whether or not it is there.

    Attributes:
        object_id: whose.
        number: of its camera in ``AROUND``.
        key: of the rows that are made of it, object/view.
        digest: of the picture and its depth; empty where there is none.
        place: where they are; None where there is none.
        status: ok, or why there is none.
        reason: in words.
        origin: the earlier stage whose failure it is; empty where the picture was never there.
    """

    object_id: str
    number: int
    key: str
    digest: str = ""
    place: Stored | Filed | None = None
    status: Status = Status.OK
    reason: str = ""
    origin: str = ""

    @property
    def camera(self) -> Camera:
        """It is the protocol's, not as it was written down."""
        return AROUND[self.number]


class Rendered:
    """The renders of a collection as views of the protocols.

    Args:
        store: the collection; it has renders.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def about(self) -> Mapping[str, str]:
        """Where the pictures come from, for metadata."""
        return {"kind": "renders", "name": self.store.collection}

    @cached_property
    def numbers(self) -> dict[str, int | None]:
        """The number in ``AROUND`` of every good render, by key."""
        found: dict[str, int | None] = {}
        for shard in self.store.shards:
            rows = self.store.read(self.store.manifest("renders", shard), ["transform_matrix", "camera_angle_x"])
            found |= {key: number_of(row["transform_matrix"], row["camera_angle_x"]) for key, row in rows.items()}
        return found

    @cached_property
    def cameras(self) -> dict[str, int | None]:
        """The same by the number that the collection gives a view: a fixed protocol's is the same for every object.

        Raises:
            ValueError: it is not, or there is no good render.
        """
        found: dict[str, int | None] = {}
        for key, number in self.numbers.items():
            if found.setdefault(key.rpartition("/")[2], number) != number:
                raise ValueError(
                    f"collection {self.store.collection} is not rendered from fixed cameras: view "
                    f"{key.rpartition('/')[2]} is another one for {key.rpartition('/')[0]}; run "
                    "`python -m pipelines.around`"
                )
        if not found:
            raise ValueError(f"collection {self.store.collection} has no good render: run `python -m pipelines.around`")
        return found

    def require(self, count: int) -> None:
        """Raises ValueError unless the collection is rendered with all of a protocol's cameras."""
        lacking = [AROUND[number].yaw for number in numbers_of(count) if number not in self.cameras.values()]
        if lacking:
            raise ValueError(
                f"collection {self.store.collection} has {count - len(lacking)} of the {count} views of the protocol: "
                f"no camera at yaw {', '.join(f'{yaw:g}' for yaw in lacking)} (pitch 30, radius 2, field of view 40); "
                f"render it with them: `python -m pipelines.around --collection {self.store.collection}`"
            )

    def views(self, shard: str, count: int) -> dict[str, list[View]]:
        """The protocol's views of every object of a shard that has rows of renders, by object_id, in order of yaw.

        A picture that could not be made is there with its status.

        Raises:
            ValueError: see ``require``.
        """
        self.require(count)
        held = self.store.manifest("renders", shard)
        by_object: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for key in sorted(held.rows):
            object_id, _, view = key.rpartition("/")
            number = self.numbers[key] if key in self.numbers else self.cameras.get(view)
            if number is not None:
                by_object[object_id][number].append(key)
        folder = self.store.shard("renders", shard)
        made: dict[str, list[View]] = {}
        for object_id, found in by_object.items():
            made[object_id] = [
                self.view(object_id, number, {key: held.rows[key] for key in found[number]}, str(folder))
                for number in numbers_of(count)
            ]
        return made

    def view(self, object_id: str, number: int, rows: Mapping[str, LedgerRow], folder: str) -> View:
        """One view from the rows with its camera; there should be one."""
        if len(rows) != 1:
            return lacking(object_id, number, rows, f"{object_id}/{number:03d}")
        ((key, row),) = rows.items()
        if row.status is not Status.OK or row.part is None:
            return View(object_id, number, key, "", None, row.status, row.reason, row.origin or "renders")
        return View(object_id, number, key, row.digest, Stored(f"{folder}/{row.part}", row.part_row or 0))


def lacking(object_id: str, number: int, found: Iterable[str], key: str) -> View:
    """A view that is not there, or there more than once."""
    names = sorted(found)
    if names:
        reason = f"{', '.join(names)} are of one camera, and one picture is wanted"
        return View(object_id, number, key, status=Status.UNSUPPORTED, reason=reason)
    reason = f"no picture from yaw {AROUND[number].yaw:g}, pitch 30, radius 2, field of view 40"
    return View(object_id, number, key, status=Status.MISSING, reason=reason)
