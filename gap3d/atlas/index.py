"""The rows of a committed dataset and their tokens, read where the index says that they lie."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from gap3d.dataset import TargetBatch, TargetPart
from gap3d.store import ALL, Store

COLUMNS = ("object_id", "captions", "split", "licence", "identifier", "target_shard", "target_part", "target_row")


@dataclass(frozen=True, slots=True)
class Row:
    """One image of the dataset; ``position`` is its row in the part."""

    key: str
    object_id: str
    captions: tuple[str, ...]
    split: str
    licence: str
    identifier: str
    shard: str
    part: str
    position: int


def rows_of(store: Store) -> list[Row]:
    """All rows of the index, by key."""
    held = store.read(store.manifest("dataset", ALL), COLUMNS)
    return [
        Row(
            key=key,
            object_id=row["object_id"],
            captions=tuple(row["captions"] or ()),
            split=row["split"] or "",
            licence=row["licence"] or "",
            identifier=row["identifier"] or "",
            shard=row["target_shard"],
            part=row["target_part"],
            position=row["target_row"],
        )
        for key, row in sorted(held.items())
    ]


def sample(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """At most so many of the rows, drawn without order, in the order in which they come here."""
    if len(rows) <= most:
        return list(rows)
    drawn = np.random.default_rng(seed).choice(len(rows), most, replace=False)
    return [rows[index] for index in sorted(drawn.tolist())]


def by_part(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by shard and part, in the order in which they lie there."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.shard, row.part, row.position)):
        found.setdefault((row.shard, row.part), []).append(row)
    return found


def makers_of(store: Store, rows: Iterable[Row]) -> list[tuple[dict[str, Any], list[Row]]]:
    """What the parts say of themselves (``tokens``, ``encoder``, ``settings``), each with its rows, the most first."""
    found: dict[bytes, list[Row]] = {}
    for (shard, part), held in by_part(rows).items():
        schema = pq.read_schema(store.shard("targets", shard) / part)
        found.setdefault(schema.metadata[b"gap3d"], []).extend(held)
    return [(json.loads(text), held) for text, held in sorted(found.items(), key=lambda item: -len(item[1]))]


def batches(store: Store, rows: Iterable[Row]) -> Iterator[TargetBatch]:
    """The targets of these rows, a row group at a time; what is not asked for is not read.

    Raises:
        OSError, ValueError: a part is gone, or holds other rows than the index says.
    """
    for (shard, name), found in by_part(rows).items():
        other = f"targets/{shard}/{name} holds other rows than the index says: make the dataset again"
        with TargetPart(store.shard("targets", shard) / name) as part:
            groups: dict[int, list[tuple[int, str]]] = {}
            for row in found:
                try:
                    group, place = part.find(row.position)
                except IndexError as error:
                    raise ValueError(other) from error
                groups.setdefault(group, []).append((place, row.key))
            for group, wanted in groups.items():
                batch = part.read(group)
                if len(wanted) < len(batch.keys):
                    batch = batch.rows([place for place, _ in wanted])
                if batch.keys != [key for _, key in wanted]:
                    raise ValueError(other)
                yield batch


def cls_of(store: Store, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensor]]:
    """CLS tokens of these rows: (their indices, float32 [n, C]), some at a time; no other token is read.

    Raises:
        OSError, ValueError: see ``batches``.
    """
    places = {row.key: index for index, row in enumerate(rows)}
    for (shard, part), found in by_part(rows).items():
        wanted = {row.position: row.key for row in found}
        start = 0
        with pq.ParquetFile(store.shard("targets", shard) / part, memory_map=True) as file:
            for table in file.iter_batches(batch_size=1024, columns=["key", "cls"]):
                here = [offset for offset in range(len(table)) if start + offset in wanted]
                keys = table.column("key").to_pylist()
                if any(keys[offset] != wanted[start + offset] for offset in here):
                    raise ValueError(
                        f"targets/{shard}/{part} holds other rows than the index says: make the dataset again"
                    )
                start += len(table)
                numbers = np.array(table.column("cls").flatten(), dtype=np.float32).reshape(len(table), -1)
                if here:
                    yield [places[keys[offset]] for offset in here], torch.from_numpy(numbers[here])
