"""Stored features by object: of its pictures, or of its cloud; taken in any order, and as often as one likes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gap3d.evaluation.features import Features
from gap3d.fingerprints import digest_of
from gap3d.manifest import LedgerRow
from gap3d.parts import read_rows
from gap3d.records import Failure, Status, SystemicFault

AT_ONCE = 1 << 28  # bytes in memory: 8192 objects of 4 pictures and 2048 channels


class FeatureRows:
    """The features of objects by one extractor.

    Args:
        features: of pictures, with the keys object/view, or of clouds, with object_ids.
        per_object: rows that an object has to have.
    """

    def __init__(self, features: Features, per_object: int) -> None:
        self.features = features
        self.per_object = per_object
        self.members: dict[str, list[str]] = {}
        self._folders: dict[str, Path] = {}
        for held in features.manifests:
            for key in sorted(held.rows):
                self.members.setdefault(key if per_object == 1 else key.rpartition("/")[0], []).append(key)
                self._folders[key] = features.store.shard(features.stage, held.shard)

    def failure(self, name: str) -> Failure | None:
        """Why an object's features are not all there; None where they are."""
        keys = self.members.get(name, ())
        if len(keys) != self.per_object:
            words = (
                f"{self.features.store.collection} has {len(keys)} of {self.per_object} rows of {self.features.stage}"
            )
            return Failure(Status.MISSING, f"{words} of {name}")
        lacking = [row for row in map(self.features.rows.__getitem__, keys) if row.part is None]
        return Failure(lacking[0].status, f"{lacking[0].key}: {lacking[0].reason}") if lacking else None

    def batches(self, names: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Features of some objects after others, in the order of the names: float32 [n, V, D], n of them at a time.

        Args:
            names: of objects without failure; one may be named several times.
        """
        # Names are in another order than rows: each time all parts are read, so few times.
        many = max(1, AT_ONCE // max(1, 4 * self.per_object * self.width))
        for start in range(0, len(names), many):
            some = names[start : start + many]
            found = self._read([key for name in dict.fromkeys(some) for key in self.members[name]])
            yield np.stack([np.stack([found[key] for key in self.members[name]]) for name in some])

    def _read(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        by_part: dict[Path, list[LedgerRow]] = {}
        for key in keys:
            row = self.features.rows[key]
            by_part.setdefault(self._folders[key] / str(row.part), []).append(row)
        found: dict[str, NDArray[np.float32]] = {}
        for path, rows in by_part.items():
            table = read_rows(path, [row.part_row or 0 for row in rows], ["key", "feature"])
            if table.column("key").to_pylist() != [row.key for row in rows]:
                raise SystemicFault(f"{path}: rows are not where the manifest says: run `python -m pipelines.verify`")
            values = np.asarray(table.column("feature").combine_chunks().flatten(), dtype=np.float32)
            found |= {row.key: value for row, value in zip(rows, values.reshape(len(rows), -1), strict=True)}
        return found

    @property
    def description(self) -> dict[str, Any]:
        """What made the features: extractor, weights and their hash, preprocessing; empty where there are none."""
        found: dict[str, Any] = self.features.about.get("extractor", {})
        return found

    @property
    def width(self) -> int:
        """D; 0 where there are none."""
        return int(self.description.get("width", 0))

    def digest(self, names: Sequence[str]) -> str:
        """Of the features of these objects, and of why there are none; their order does not matter."""
        keys = sorted({key for name in names for key in self.members.get(name, (name,))})
        rows = self.features.rows
        return digest_of([[key, rows[key].digest if key in rows else ""] for key in keys])
