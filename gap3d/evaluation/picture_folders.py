"""Pictures from all around that somebody else made: a folder with a folder for every object.

``<object>/000.png ...``, or ``<object>/views4/``, ``views8/`` and ``views20/`` with other pictures for every protocol
(pipelines.shaper). A ``transforms.json`` beside the pictures tells their cameras (gap3d.transforms, TRELLIS, NeRF);
without one they are a protocol's, in the order of their names. ``000_depth.png`` is the depth of ``000.png``.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gap3d.depth import depth_range
from gap3d.evaluation.views import AROUND, COUNTS, Filed, View, lacking, number_of, numbers_of
from gap3d.fingerprints import digest_of
from gap3d.images import shown
from gap3d.records import Failure, Status
from gap3d.tars import stamp_of
from gap3d.trellis.turntable import RADIUS

CAMERAS = "transforms.json"
ABOUT = "object.json"  # of pipelines.shaper: whose folder it is
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
DEPTH = "_depth"
MOST = 1 << 24  # bytes of a JSON


@dataclass(frozen=True)
class Listed:
    """A picture of an object's folder, and the camera that it was taken with.

    Attributes:
        number: of the camera in ``AROUND``; None for any other.
        place: where it is.
    """

    number: int | None
    place: Filed


def objects_in(root: Path) -> dict[str, Path]:
    """The folders of objects by object_id: the folder's name, or what its ``object.json`` says.

    Raises:
        ValueError: there are none, two are of one object, or whose one is can't be read.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is no folder: name one with a folder of pictures for every object")
    found: dict[str, Path] = {}
    for place in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            about = read_json(place / ABOUT) if (place / ABOUT).is_file() else {}
        except Failure as error:
            raise ValueError(error.reason) from error
        name = about.get("key") if isinstance(about, dict) else None
        key = shown(name if isinstance(name, str) and name else place.name)
        if key in found:
            raise ValueError(f"{found[key]} and {place} are both of the object {key}")
        found[key] = place
    if not found:
        raise ValueError(f"{root} holds no folder of an object: pictures are looked for in {root}/<object>/000.png")
    return found


def views_in(
    place: Path, object_id: str, count: int, digest: Callable[[Path], str] = stamp_of, expected: bool = False
) -> list[View]:
    """The views that a protocol asks for, in order of yaw; those that are not there say why.

    Args:
        place: the object's folder.
        object_id: whose.
        count: of the protocol.
        digest: stands for the content of a file.
        expected: only the folder ``views<count>`` will do.
    """
    own = place / f"views{count}"
    folder = own if expected or own.is_dir() else place
    try:
        listed = by_cameras(folder) if (folder / CAMERAS).exists() else by_order(folder, count, exact=folder == own)
    except Failure as known:
        return [
            View(object_id, number, f"{object_id}/{number:03d}", status=known.status, reason=known.reason)
            for number in numbers_of(count)
        ]
    found: dict[int | None, list[Filed]] = defaultdict(list)
    for each in listed:
        found[each.number].append(each.place)
    return [view(object_id, number, found[number], digest) for number in numbers_of(count)]


def view(object_id: str, number: int, places: list[Filed], digest: Callable[[Path], str]) -> View:
    """One view, of which one picture should be there."""
    key = f"{object_id}/{number:03d}"
    if len(places) != 1:
        return lacking(object_id, number, [Path(each.picture).name for each in places], key)
    (place,) = places
    stamps = [digest(Path(path)) if path else "" for path in (place.picture, place.depth)]
    if not stamps[0]:
        reason = f"there is no {shown(place.picture)}, which {CAMERAS} names"
        return View(object_id, number, key, status=Status.MISSING, reason=reason)
    cameras = [place.pose, place.fov, place.depth_min, place.depth_max]
    return View(object_id, number, key, digest_of([stamps, cameras]), place)


def by_order(folder: Path, count: int, *, exact: bool) -> list[Listed]:
    """Pictures without cameras: as many as a protocol has, in the order of their names.

    Raises:
        Failure: they are too few, or too many for any protocol: which they are, nobody could tell.
    """
    found = [path for path in pictures(folder) if not path.stem.endswith(DEPTH)]
    if len(found) < count:
        raise Failure(Status.MISSING, f"{len(found)} of {count} pictures in {shown(str(folder))}, and no {CAMERAS}")
    wanted = (count,) if exact else (*COUNTS, len(AROUND))
    if len(found) not in wanted or not set(numbers_of(count)) <= set(numbers_of(len(found))):
        raise Failure(
            Status.UNSUPPORTED,
            f"{len(found)} pictures in {shown(str(folder))} where {count} are wanted: without a {CAMERAS} that tells "
            "their cameras they have to be those of one protocol",
        )
    low, high = depth_range(RADIUS)
    made = []
    for number, path in zip(numbers_of(len(found)), found, strict=True):
        camera = AROUND[number]
        depth = path.with_name(f"{path.stem}{DEPTH}.png")
        pose = tuple(camera.camera_to_world.ravel().tolist())
        there = str(depth) if depth.is_file() else ""
        made.append(Listed(number, Filed(str(path), pose, camera.fov_radians, there, low, high)))
    return made


def pictures(folder: Path) -> list[Path]:
    """The picture files of a folder by name, numbers in it by their value.

    Raises:
        Failure: ``missing``: there is no such folder.
    """
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    except OSError as error:
        raise Failure(Status.MISSING, f"{shown(str(folder))}: {error.strerror}") from error
    return sorted(found, key=lambda path: (by_value(path.name), path.name))


def by_value(name: str) -> list[str | int]:
    """A name in pieces, of which every second is a number: isdigit would take more for digits than int reads."""
    return [int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"(\d+)", name))]


def by_cameras(folder: Path) -> list[Listed]:
    """Pictures as their ``transforms.json`` lists them.

    Raises:
        Failure: ``import_error``: it is none; ``forbidden_reference``: it names a file elsewhere.
    """
    content = read_json(folder / CAMERAS)
    try:
        return [listed(folder, frame, content) for frame in content["frames"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        words = f"{type(error).__name__}: {error}"[:200]
        raise Failure(Status.IMPORT_ERROR, f"{shown(str(folder / CAMERAS))} lists no frames: {words}") from error


def listed(folder: Path, frame: Mapping[str, Any], content: Mapping[str, Any]) -> Listed:
    """One frame. Raises what a frame that is none raises."""
    picture = inside(folder, frame["file_path"])
    if not picture.suffix:
        picture = picture.with_suffix(".png")  # as NeRF's own data sets write it
    pose = tuple(float(number) for row in frame["transform_matrix"] for number in row)
    fov = float(frame["camera_angle_x"] if "camera_angle_x" in frame else content["camera_angle_x"])
    if len(pose) != 16 or not all(map(math.isfinite, (*pose, fov))):
        raise ValueError(f"a camera of {len(pose)} numbers")
    low, high = (
        float(frame["depth"][end]) if "depth" in frame else each
        for end, each in zip(("min", "max"), depth_range(RADIUS), strict=True)
    )
    named = frame.get("depth_path")
    depth = inside(folder, named) if named else picture.with_name(f"{picture.stem}{DEPTH}.png")
    there = str(depth) if depth.is_file() else ""
    return Listed(number_of(pose, fov), Filed(str(picture), pose, fov, there, low, high))


def inside(folder: Path, name: str) -> Path:
    """A file of the folder.

    Raises:
        Failure: ``forbidden_reference``: it lies elsewhere.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise Failure(Status.FORBIDDEN_REFERENCE, f"{CAMERAS} names {shown(name)[:200]}, which is not beside it")
    return folder / path


def read_json(path: Path) -> Any:
    """A small JSON file.

    Raises:
        Failure: ``import_error``: it is none.
    """
    try:
        if path.stat().st_size > MOST:
            raise ValueError("too long")
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Failure(Status.IMPORT_ERROR, f"{shown(str(path))} is no JSON: {error}"[:300]) from error
