"""Features in a collection: rows of what extractors saw in pictures and clouds, for distances and scores."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gap3d.evaluation.extractors import Name
from gap3d.manifest import LedgerRow, Manifest
from gap3d.records import Failure, Status
from gap3d.store import Store

ROWS = 1024  # read at once
COLUMNS = ("key", "object_id", "yaw", "feature")


def stage_of(name: Name) -> str:
    """The stage that has an extractor's rows."""
    return f"features-{name}"


@dataclass(frozen=True)
class Batch:
    """Some rows.

    Attributes:
        keys: object/view of pictures, object_id of clouds.
        objects: object_id of each.
        yaws: degrees, float64 [B]; NaN for clouds.
        features: float32 [B, D].
    """

    keys: list[str]
    objects: list[str]
    yaws: NDArray[np.float64]
    features: NDArray[np.float32]


class Features:
    """The features of a collection's objects by one extractor.

    Args:
        store: the collection.
        name: of the extractor.

    Raises:
        ValueError: it has none, or not all.
    """

    def __init__(self, store: Store, name: Name) -> None:
        self.store = store
        self.stage = stage_of(name)
        program = "cloud_features" if name == "pointnet" else "picture_features"
        for held in self.manifests:
            if not held.complete:
                raise ValueError(
                    f"{self.stage} of shard {held.shard} of {store.collection} is not complete: run "
                    f"`python -m pipelines.{program}` first"
                )

    @cached_property
    def manifests(self) -> list[Manifest]:
        """By shard."""
        return [self.store.manifest(self.stage, shard) for shard in self.store.shards]

    @cached_property
    def rows(self) -> dict[str, LedgerRow]:
        """Every expected row by key, good or not: its digest is that of the feature."""
        return {key: held.rows[key] for held in self.manifests for key in sorted(held.rows)}

    @property
    def failures(self) -> dict[str, Failure]:
        """Why there is no feature, by key."""
        return {key: Failure(row.status, row.reason) for key, row in self.rows.items() if row.status is not Status.OK}

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the parts say: ``extractor`` (``Frozen.description``), ``source``, and how clouds were made.

        Of the newest part; empty where there is no good row.
        """
        newest = max((row for row in self.rows.values() if row.part), key=lambda row: row.finished_at, default=None)
        if newest is None:
            return {}
        held = next(held for held in self.manifests if newest.key in held.rows)
        schema = pq.read_schema(self.store.shard(self.stage, held.shard) / str(newest.part))
        return json.loads(schema.metadata[b"gap3d"])

    def batches(self) -> Iterator[Batch]:
        """The good rows, a few at a time, in the order of shards and parts: that of the same rows is the same."""
        for held in self.manifests:
            live = {(row.part, row.part_row) for row in held.rows.values() if row.part}
            for part in sorted(held.parts):
                start = 0
                with pq.ParquetFile(
                    self.store.shard(self.stage, held.shard) / part, memory_map=True, page_checksum_verification=True
                ) as file:
                    names = [name for name in COLUMNS if name in file.schema_arrow.names]
                    for table in file.iter_batches(batch_size=ROWS, columns=names):
                        kept = [row for row in range(len(table)) if (part, start + row) in live]
                        start += len(table)
                        if not kept:
                            continue
                        taken = table.take(kept)
                        flat = taken.column("feature").flatten().to_numpy(zero_copy_only=False)
                        yaws = taken.column("yaw").to_numpy(zero_copy_only=False) if "yaw" in names else None
                        yield Batch(
                            taken.column("key").to_pylist(),
                            taken.column("object_id").to_pylist(),
                            np.full(len(taken), np.nan) if yaws is None else yaws,
                            flat.reshape(len(taken), -1),
                        )

    def table(self) -> Batch:
        """All good rows at once, by key: 40 MB of 1250 objects from four sides at 2048 numbers."""
        found = list(self.batches())
        if not found:
            return Batch([], [], np.empty(0), np.empty((0, 0), np.float32))
        keys = [key for batch in found for key in batch.keys]
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
        objects = [each for batch in found for each in batch.objects]
        return Batch(
            [keys[index] for index in order],
            [objects[index] for index in order],
            np.concatenate([batch.yaws for batch in found])[order],
            np.concatenate([batch.features for batch in found])[order],
        )
