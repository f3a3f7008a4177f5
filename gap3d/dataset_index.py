"""The index of a dataset, read once and kept: which images there are, with their captions, and where their targets lie.

Parts are never changed, so a reader that holds an index keeps a consistent dataset while the next one is made (``gc``
leaves it the grace period to finish).
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap3d import manifest
from gap3d.schemas import DATASET, TARGET_ROWS
from gap3d.store import ALL, Store
from gap3d.target_parts import TargetBatch, TargetPart

DESCRIBED = ("key", "object_id", "view", "captions")
LYING = ("target_shard", "target_part", "target_row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image of the dataset, by the columns of the index (``schemas.DATASET``)."""

    key: str
    object_id: str
    view: int
    captions: tuple[str, ...]
    split: str
    rank: int
    licence: str
    source: str
    identifier: str
    target: str
    target_shard: str
    target_part: str
    target_row: int


@dataclass(frozen=True)
class Places:
    """The good rows of a dataset, in the order in which their targets lie in the store.

    Attributes:
        place: the collection's folder or URL.
        parts: of the targets, by path below ``place``.
        part: int32 [rows], index into ``parts``.
        row: int32 [rows], position in the part.
        entry: int64 [rows], row of ``table``.
        table: key, object_id, view, captions.
        digest: of what is read, and from where.
    """

    place: str
    parts: list[str]
    part: NDArray[np.int32]
    row: NDArray[np.int32]
    entry: NDArray[np.int64]
    table: pa.Table
    digest: str

    def __len__(self) -> int:
        return len(self.entry)

    def path(self, part: int) -> str:
        """Path or URL of a part."""
        return f"{self.place}/{self.parts[part]}"

    def blocks(self) -> NDArray[np.int64]:
        """Rows of each row group, int64 [blocks], as parts of this package are written."""
        ids = np.stack([self.part, self.row // TARGET_ROWS], axis=1)
        changes = np.flatnonzero((ids[1:] != ids[:-1]).any(axis=1)) + 1
        return np.diff([0, *changes, len(ids)]).astype(np.int64) if len(ids) else np.zeros(0, np.int64)


@dataclass(frozen=True)
class DatasetIndex:
    """The good rows of a dataset.

    Attributes:
        place: the collection's folder or URL.
        table: the columns that were asked for.
        split: of these rows; None where they are of all.
        splits: number of good rows by split, also of those that were not asked for.
    """

    place: str
    table: pa.Table
    split: str | None
    splits: Mapping[str, int]

    def rows(self) -> list[Row]:
        """All rows, by key; of an index with all columns."""
        found = []
        for record in self.table.sort_by("key").to_pylist():
            texts = {name: record[name] or "" for name in ("split", "licence", "source", "identifier")}
            found.append(Row(**{**record, **texts, "captions": tuple(record["captions"] or ())}))
        return found

    def places(self) -> Places:
        """Where the targets lie.

        Raises:
            ValueError: there is no row.
        """
        if not self.table.num_rows:
            of = f" of the split {self.split!r}" if self.split is not None else ""
            there = ", ".join(f"{count} of {name!r}" for name, count in sorted(self.splits.items()))
            has = f"it has {there}" if there else "`python -m pipelines.line` makes them, and tells what became of each"
            raise ValueError(f"the dataset index of {self.place} has no good row{of}: {has}")
        table = self.table
        paths = pc.binary_join_element_wise("targets", table["target_shard"], table["target_part"], "/")
        parts = sorted(paths.unique().to_pylist())
        part = pc.index_in(paths, pa.array(parts)).to_numpy().astype(np.int32)
        row = table["target_row"].to_numpy().astype(np.int32)
        entry = np.lexsort((row, part))
        part, row = part[entry], row[entry]
        state = hashlib.sha256("\n".join([str(self.split), *parts]).encode())
        state.update(part.tobytes())
        state.update(row.tobytes())
        return Places(self.place, parts, part, row, entry, table.select(DESCRIBED), state.hexdigest()[:32])


def load(
    collection: Store | Path | str, split: str | None = None, columns: Sequence[str] = DATASET.columns.names
) -> DatasetIndex:
    """The index of a collection as it is committed now.

    Args:
        collection: a store's collection, its folder (``<store>/<collection>``), or the URL of that folder.
        split: ``train`` or ``validation``; None takes all.
        columns: that are kept.

    Raises:
        ValueError: there is no index, or it is damaged.
    """
    place = str(collection.folder if isinstance(collection, Store) else collection).rstrip("/")
    place = place if "://" in place else str(Path(place).expanduser().absolute())
    fs, root = fsspec.core.url_to_fs(place)
    folder = f"{root}/dataset/{ALL}"
    try:
        committed = fs.cat_file(f"{folder}/{manifest.NAME}")
    except FileNotFoundError as error:
        raise ValueError(f"{place} has no dataset index: run `python -m pipelines.dataset` first") from error
    held = manifest.parse(io.BytesIO(committed), f"{place}/dataset/{ALL}/{manifest.NAME}", "dataset", ALL)
    names = list(dict.fromkeys([*columns, "split"]))
    tables, splits = [pa.schema([DATASET.columns.field(name) for name in columns]).empty_table()], Counter[str]()
    for part in sorted(held.parts):
        table = pq.read_table(
            io.BytesIO(fs.cat_file(f"{folder}/{part}")), columns=names, page_checksum_verification=True
        )
        live = np.zeros(table.num_rows, bool)
        live[[row.part_row for row in held.rows.values() if row.part == part]] = True
        splits.update(table["split"].filter(pa.array(live)).to_pylist())
        if split is not None:
            live &= pc.equal(table["split"], split).to_numpy(zero_copy_only=False)
        tables.append(table.filter(pa.array(live)).select(columns))
    return DatasetIndex(place, pa.concat_tables(tables, promote_options="permissive"), split, splits)


def places(collection: Store | Path | str, split: str | None = None) -> Places:
    """Where the targets of a collection lie, with captions; of the index no other column is kept.

    Raises:
        ValueError: there is no index, or it is damaged, or it has no row of that split.
    """
    return load(collection, split, (*DESCRIBED, *LYING)).places()


def sample(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """At most so many of the rows, drawn without order, in the order in which they come here."""
    if len(rows) <= most:
        return list(rows)
    drawn = np.random.default_rng(seed).choice(len(rows), most, replace=False)
    return [rows[index] for index in sorted(drawn.tolist())]


def by_part(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by shard and part, in the order in which they lie there."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.target_shard, row.target_part, row.target_row)):
        found.setdefault((row.target_shard, row.target_part), []).append(row)
    return found


def makers_of(store: Store, rows: Iterable[Row]) -> list[tuple[dict[str, Any], list[Row]]]:
    """What the parts say of themselves (``tokens``, ``encoder``, ``settings``), each with its rows, the most first."""
    found: dict[str, list[Row]] = {}
    for (shard, part), held in by_part(rows).items():
        said = json.loads(pq.read_schema(store.shard("targets", shard) / part).metadata[b"gap3d"])
        found.setdefault(json.dumps(said, sort_keys=True), []).extend(held)
    return [(json.loads(text), held) for text, held in sorted(found.items(), key=lambda item: -len(item[1]))]


def moved(shard: str, part: str) -> ValueError:
    """For a part that is not what the index was made from."""
    return ValueError(f"targets/{shard}/{part} holds other rows than the index says: make the dataset again")


def batches(store: Store, rows: Iterable[Row]) -> Iterator[TargetBatch]:
    """The targets of these rows, a row group at a time; what is not asked for is not read.

    Raises:
        OSError, ValueError: a part is gone, or holds other rows than the index says.
    """
    for (shard, name), found in by_part(rows).items():
        with TargetPart(store.shard("targets", shard) / name) as part:
            groups: dict[int, list[tuple[int, str]]] = {}
            for row in found:
                try:
                    group, place = part.find(row.target_row)
                except IndexError as error:
                    raise moved(shard, name) from error
                groups.setdefault(group, []).append((place, row.key))
            for group, wanted in groups.items():
                batch = part.read(group)
                if len(wanted) < len(batch.keys):
                    batch = batch.rows([place for place, _ in wanted])
                if batch.keys != [key for _, key in wanted]:
                    raise moved(shard, name)
                yield batch


def cls_of(store: Store, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensor]]:
    """CLS tokens of these rows: (their indices, float32 [n, C]), some at a time; no other token is read.

    Raises:
        OSError, ValueError: see ``batches``.
    """
    order = {row.key: index for index, row in enumerate(rows)}
    for (shard, part), found in by_part(rows).items():
        wanted = {row.target_row: row.key for row in found}
        start = 0
        with pq.ParquetFile(store.shard("targets", shard) / part, memory_map=True) as file:
            for table in file.iter_batches(batch_size=1024, columns=["key", "cls"]):
                here = [offset for offset in range(len(table)) if start + offset in wanted]
                keys = table.column("key").to_pylist()
                if any(keys[offset] != wanted[start + offset] for offset in here):
                    raise moved(shard, part)
                start += len(table)
                numbers = np.array(table.column("cls").flatten(), dtype=np.float32).reshape(len(table), -1)
                if here:
                    yield [order[keys[offset]] for offset in here], torch.from_numpy(numbers[here])
