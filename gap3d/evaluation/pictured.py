"""Whose pictures from all around are compared: a collection's renders, TRELLIS's objects, anybody's folder.

All give the views of a protocol in the same words (``views.View``), and what is made of them lies in ``store``: of
renders in their own collection, else in one of its own.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from gap3d.evaluation.picture_folders import objects_in, views_in
from gap3d.evaluation.views import Filed, Stored, View
from gap3d.fingerprints import shard_of
from gap3d.parts import read_rows
from gap3d.records import Failure, Status, SystemicFault
from gap3d.settings import Limits
from gap3d.store import Store

CAMERA_COLUMNS = ("transform_matrix", "camera_angle_x", "depth", "depth_min", "depth_max")


class Pictured(Protocol):
    """Objects with pictures from all around."""

    store: Store
    """The collection that takes what is made of them."""

    @property
    def about(self) -> Mapping[str, str]:
        """Where the pictures come from, for metadata."""

    def views(self, shard: str, count: int) -> dict[str, list[View]]:
        """The views of a protocol of every object of a shard of ``store``, by object_id, in order of yaw."""


class Pictures:
    """A folder of pictures.

    Args:
        root: with a folder for every object, see ``picture_folders``.
        store: takes what is made of them.
    """

    def __init__(self, root: Path, store: Store) -> None:
        self.root = root.expanduser().absolute()
        self.store = store

    @property
    def about(self) -> Mapping[str, str]:
        """See ``Pictured``."""
        return {"kind": "folder", "name": self.root.name}

    @cached_property
    def objects(self) -> dict[str, Path]:
        """See ``picture_folders.objects_in``."""
        return objects_in(self.root)

    def views(self, shard: str, count: int) -> dict[str, list[View]]:
        """See ``Pictured``; a file counts as changed when its size or time is another."""
        shards = len(self.store.shards)
        mine = {key: place for key, place in self.objects.items() if shard_of(key, shards) == shard}
        return {key: views_in(place, key, count) for key, place in mine.items()}


class Shaped:
    """What TRELLIS made of a collection's prompts (pipelines.trellis).

    Args:
        made: the collection of the prompts.
        stage: that has the rows, ``shapes-<method>``.
        store: takes what is made of the pictures.
    """

    def __init__(self, made: Store, stage: str, store: Store) -> None:
        self.made = made
        self.stage = stage
        self.store = store

    @property
    def about(self) -> Mapping[str, str]:
        """See ``Pictured``."""
        return {"kind": self.stage, "name": self.made.collection}

    def views(self, shard: str, count: int) -> dict[str, list[View]]:
        """See ``Pictured``; an object that could not be made is there with its status."""
        found: dict[str, list[View]] = {}
        shards = len(self.store.shards)
        for each in self.made.shards:
            held = self.made.manifest(self.stage, each)
            data = self.made.read(
                held, ["folder", "files"], (key for key in held.rows if shard_of(key, shards) == shard)
            )
            for key, row in held.rows.items():
                if shard_of(key, shards) != shard:
                    continue
                place = self.made.folder / (data[key]["folder"] if key in data else "")
                hashes = {place / file["path"]: file["sha256"] for file in data.get(key, {}).get("files", [])}
                views = views_in(place, key, count, partial(known_hash, hashes), expected=True)
                if row.status is not Status.OK:
                    origin = row.origin or self.stage
                    views = [
                        View(key, view.number, view.key, status=row.status, reason=row.reason, origin=origin)
                        for view in views
                    ]
                found[key] = views
        return found


def known_hash(hashes: Mapping[Path, str], path: Path) -> str:
    """The hash of a file; empty of one that nobody made."""
    return hashes.get(path, "")


def contents(views: Sequence[View], limits: Limits, *, depth: bool = False) -> list[Mapping[str, Any] | Failure]:
    """The pictures of views that are there, as rows of renders have them: ``png``, and with depth its camera.

    Args:
        views: in whose order they come.
        limits: bytes of a file.
        depth: whether depth and camera are wanted too.

    Raises:
        SystemicFault: a part holds other rows than its manifest says.
    """
    found: dict[int, Mapping[str, Any] | Failure] = {}
    by_part: dict[str, list[int]] = {}
    for index, view in enumerate(views):
        if isinstance(view.place, Stored):
            by_part.setdefault(view.place.part, []).append(index)
        elif isinstance(view.place, Filed):
            try:
                found[index] = of_file(view, view.place, limits, depth)
            except Failure as known:
                found[index] = known
    for part, indices in by_part.items():
        columns = ["key", "object_id", "view", "png", *(CAMERA_COLUMNS if depth else ())]
        rows = read_rows(Path(part), [row_of(views[index]) for index in indices], columns).to_pylist()
        for index, row in zip(indices, rows, strict=True):
            if row["key"] != views[index].key:
                raise SystemicFault(
                    f"{part} row {row_of(views[index])} is {row['key']}, not {views[index].key}: "
                    "run `python -m pipelines.verify`"
                )
            found[index] = row
    return [found[index] for index in range(len(views))]


def row_of(view: View) -> int:
    """Its position in a part."""
    assert isinstance(view.place, Stored)
    return view.place.row


def of_file(view: View, place: Filed, limits: Limits, depth: bool) -> Mapping[str, Any]:
    """A picture of a folder as a row.

    Raises:
        Failure: ``missing``, ``too_large`` or ``unsupported``: a file can't be read.
    """
    row: dict[str, Any] = {"object_id": view.object_id, "view": view.number, "png": bytes_of(place.picture, limits)}
    if depth:
        if not place.depth:
            raise Failure(Status.MISSING, f"{Path(place.picture).name} has no depth picture beside it")
        row |= {
            "transform_matrix": place.pose,
            "camera_angle_x": place.fov,
            "depth": bytes_of(place.depth, limits),
            "depth_min": place.depth_min,
            "depth_max": place.depth_max,
        }
    return row


def bytes_of(path: str, limits: Limits) -> bytes:
    """A file's bytes.

    Raises:
        Failure: see ``of_file``.
    """
    name = Path(path).name
    try:
        if not Path(path).is_file():  # opening a pipe would wait for its writer for ever
            raise Failure(Status.UNSUPPORTED if Path(path).exists() else Status.MISSING, f"{name} is no file")
        if (size := Path(path).stat().st_size) > limits.object_bytes:
            raise Failure(Status.TOO_LARGE, f"{name}: {size} bytes, at most {limits.object_bytes} are taken")
        return Path(path).read_bytes()
    except OSError as error:
        raise Failure(Status.MISSING, f"{name}: {error.strerror}: check that it can be read") from error
