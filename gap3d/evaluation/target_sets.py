"""Token sets in the parts of this package, by key and in any order; plain parts are mapped, not read."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from gap3d.features.tokens import PACKED
from gap3d.records import Failure, Status
from gap3d.target_parts import DamagedPart, RowGroup, TargetPart

OPEN_PARTS = 64  # two descriptors each
OPEN_GROUPS = 1024  # mapped row groups: some 32 kB each, for their CLS
HELD_BYTES = 1 << 28  # of row groups that are decoded


class TargetSets:
    """Rows of target parts.

    Args:
        places: part and position in it, by key.

    Attributes:
        keys: in the order in which they lie in the store; in that order each row group is opened once.
        about: what the first sound part says of itself.
        shapes: tokens and width of each kind, of that part.

    Raises:
        OSError, ValueError: all parts are gone or damaged.
    """

    def __init__(self, places: Mapping[str, tuple[Path, int]]) -> None:
        self._places = places
        self.keys = sorted(places, key=lambda key: places[key])
        self._parts: OrderedDict[Path, TargetPart] = OrderedDict()
        self._groups: OrderedDict[tuple[Path, int, bool], RowGroup | DamagedPart] = OrderedDict()
        self.about = self._sound()
        layout = self.about["tokens"]
        width = int(layout["cls"]["shape"][-1])
        self.shapes = {"cls": (1, width)}
        self.shapes |= {name: (int(layout[name]["shape"][0]), width) for name in PACKED}

    def read(self, keys: Iterable[str], kinds: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor] | Failure]]:
        """Token sets of some keys that are there, in any order: by kind [N, C], or why they can't be had."""
        for key in sorted(keys, key=lambda key: self._places[key]):
            try:
                yield key, self._one(key, kinds)
            except DamagedPart as error:
                yield key, Failure(Status.HASH_MISMATCH, str(error))
            except FileNotFoundError:
                words = f"{self._places[key][0]} is gone: make the collection's dataset (or token sets) again"
                yield key, Failure(Status.MISSING, words)

    def close(self) -> None:
        """Close the parts."""
        for part in self._parts.values():
            part.close()
        self._parts.clear()
        self._groups.clear()

    def _one(self, key: str, kinds: Sequence[str]) -> dict[str, Tensor]:
        path, row = self._places[key]
        try:
            number, within = self._part(path).find(row)
        except IndexError as error:
            raise DamagedPart(f"{path}: {error}: run `python -m pipelines.verify`") from error
        group = self._group(path, number, deep=set(kinds) != {"cls"})
        if group.keys[within] != key:
            raise DamagedPart(f"{path} row {row} is {group.keys[within]}: run `python -m pipelines.verify`")
        return {kind: group.cls[within][None] if kind == "cls" else group.tokens(kind, within) for kind in kinds}

    def _sound(self) -> dict[str, Any]:
        """What the first part that can be opened says of itself."""
        fault: Exception = ValueError("there are no token sets")
        for path in sorted({path for path, _ in self._places.values()}):
            try:
                with TargetPart(path) as part:
                    return part.metadata
            except (DamagedPart, FileNotFoundError) as error:
                fault = error
        raise fault

    def _part(self, path: Path) -> TargetPart:
        if path not in self._parts:
            if len(self._parts) >= OPEN_PARTS:
                self._parts.popitem(last=False)[1].close()
            self._parts[path] = TargetPart(path, verify=True)
        self._parts.move_to_end(path)
        return self._parts[path]

    def _group(self, path: Path, number: int, *, deep: bool) -> RowGroup:
        """A row group; its checksums are looked at when it is opened, but of CLS alone, no other token is read."""
        place = (path, number, deep)
        if place not in self._groups:
            part = self._part(path)
            part.verify = deep
            try:
                self._groups[place] = part.open(number)
            except DamagedPart as error:
                self._groups[place] = error  # its other rows need not try again
            while len(self._groups) > OPEN_GROUPS or (len(self._groups) > 1 and self._held() > HELD_BYTES):
                self._groups.popitem(last=False)
        self._groups.move_to_end(place)
        found = self._groups[place]
        if isinstance(found, DamagedPart):
            raise found
        return found

    def _held(self) -> int:
        return sum(group.nbytes for group in self._groups.values() if isinstance(group, RowGroup))


def of_parts(paths: Sequence[Path]) -> dict[str, tuple[Path, int]]:
    """Places of all rows of some parts.

    Raises:
        ValueError: a key stands twice, or a file can't be read.
    """
    found: dict[str, tuple[Path, int]] = {}
    for path in paths:
        for row, key in enumerate(keys_of(path)):
            if key in found:
                raise ValueError(f"the key {key!r} stands in {found[key][0]} and again in {path}: remove one of them")
            found[key] = (path, row)
    return found


def keys_of(path: Path) -> list[str]:
    """The keys of a Parquet file, as texts.

    Raises:
        ValueError: it is none, or a row has no key.
    """
    with parquet(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        column = file.read(["key"]).column("key") if "key" in names else None
    if column is None:
        there = ", ".join(names[:8])
        raise ValueError(f"{path} has no column key, only {there}: one key a row says whose tokens they are")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise ValueError(f"{path} row {row} has no key")
    return [str(key) for key in column.to_pylist()]


@contextmanager
def parquet(path: Path) -> Iterator[None]:
    """Say of which file Arrow's errors are; a disk that fails says so itself.

    Raises:
        ValueError: it is no Parquet file, or damaged.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        words = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} can't be read as Parquet ({words}): write it again") from error
