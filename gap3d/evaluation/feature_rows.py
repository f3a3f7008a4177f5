"""Stored features of objects: one a picture, or one a cloud, as a stage of features has them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gap3d.fingerprints import digest_of
from gap3d.manifest import LedgerRow
from gap3d.parts import read_rows
from gap3d.records import Failure, Status
from gap3d.store import Store

AT_ONCE = 256  # objects in memory: 8 MB at 4 pictures and 2048 channels
COLUMN = "feature"


class FeatureRows:
    """The features of objects by one extractor.

    Args:
        store: the collection.
        stage: of the features.
        members: for each object the keys of its rows, all of them wanted, and as many of each object.

    Attributes:
        per_object: rows of an object.
    """

    def __init__(self, store: Store, stage: str, members: Mapping[str, Sequence[str]]) -> None:
        self.store = store
        self.stage = stage
        self.members = members
        self.per_object = max((len(keys) for keys in members.values()), default=0)
        self._rows: dict[str, tuple[str, LedgerRow]] = {}
        for shard in store.shards:
            self._rows |= {key: (shard, row) for key, row in store.manifest(stage, shard).rows.items()}

    def failure(self, name: str) -> Failure | None:
        """Why an object's features are not all there; None where they are."""
        keys = self.members.get(name)
        if keys is None:
            return Failure(Status.MISSING, f"collection {self.store.collection} has no pictures of {name}")
        for key in keys:
            if key not in self._rows:
                return Failure(Status.MISSING, f"{self.stage} has no row {key}")
            _, row = self._rows[key]
            if row.status is not Status.OK or row.part is None:
                return Failure(row.status, f"{key}: {row.reason or row.status}")
        return None

    def batches(self, names: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Features of some objects after others, in the order of the names: float32 [n, V, D], n of them at a time.

        Args:
            names: of objects without failure; one may be named several times.
        """
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            found = self._read([key for name in dict.fromkeys(some) for key in self.members[name]])
            yield np.stack([np.stack([found[key] for key in self.members[name]]) for name in some])

    def _read(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        by_part: dict[tuple[str, str], list[LedgerRow]] = {}
        for key in keys:
            shard, row = self._rows[key]
            by_part.setdefault((shard, str(row.part)), []).append(row)
        found: dict[str, NDArray[np.float32]] = {}
        for (shard, part), rows in by_part.items():
            path = self.store.shard(self.stage, shard) / part
            table = read_rows(path, [row.part_row or 0 for row in rows], ["key", COLUMN])
            values = np.asarray(table.column(COLUMN).combine_chunks().flatten(), dtype=np.float32)
            for name, row, value in zip(
                table.column("key").to_pylist(), rows, values.reshape(len(rows), -1), strict=True
            ):
                if name != row.key:
                    raise ValueError(f"{path} row {row.part_row} is {name}, not {row.key}: run `pipelines.verify`")
                found[row.key] = value
        return found

    @cached_property
    def description(self) -> dict[str, Any]:
        """What made the features: extractor, weights and their hash, preprocessing; empty where there are none."""
        for shard, row in self._rows.values():
            if row.part:
                said = pq.read_schema(self.store.shard(self.stage, shard) / row.part).metadata or {}
                found: dict[str, Any] = json.loads(said.get(b"gap3d", b"{}")).get("extractor", {})
                return found
        return {}

    @property
    def width(self) -> int:
        """D; 0 where there are none."""
        return int(self.description.get("width", 0))

    def digest(self, names: Sequence[str]) -> str:
        """Of the features of these objects, and of why there are none; their order does not matter."""
        keys = sorted({key for name in names for key in self.members.get(name, (name,))})
        rows = [(key, self._rows[key][1].digest if key in self._rows else "") for key in keys]
        return digest_of([self.description, rows])
