"""The index of a dataset, read once and kept: which images there are, with their captions, and where their targets lie.

Parts are never changed, so a reader that holds an index keeps a consistent dataset while the next one is made (``gc``
leaves it the grace period to finish).
"""

import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gap3d import manifest
from gap3d.schemas import TARGET_ROWS
from gap3d.store import ALL, Store

DESCRIBED = ("key", "object_id", "view", "captions")


@dataclass(frozen=True)
class Index:
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


def load(collection: Store | Path | str, split: str | None = None) -> Index:
    """The index of a collection as it is committed now.

    Args:
        collection: a store's collection, its folder (``<store>/<collection>``), or the URL of that folder.
        split: ``train`` or ``validation``; None takes all.

    Raises:
        ValueError: there is no index, or no row of that split, or the index is damaged.
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
    names = [*DESCRIBED, "split", "target_shard", "target_part", "target_row"]
    tables, splits = [], Counter[str]()
    for part in sorted(held.parts):
        table = pq.read_table(
            io.BytesIO(fs.cat_file(f"{folder}/{part}")), columns=names, page_checksum_verification=True
        )
        live = np.zeros(table.num_rows, bool)
        live[[row.part_row for row in held.rows.values() if row.part == part]] = True
        splits.update(table["split"].filter(pa.array(live)).to_pylist())
        if split is not None:
            live &= pc.equal(table["split"], split).to_numpy(zero_copy_only=False)
        tables.append(table.filter(pa.array(live)))
    table = pa.concat_tables(tables) if tables else None
    if table is None or not table.num_rows:
        of = f" of the split {split!r}" if split is not None else ""
        there = ", ".join(f"{count} of {name!r}" for name, count in sorted(splits.items()))
        has = f"it has {there}" if there else "`python -m pipelines.line` makes them, and tells what became of each"
        raise ValueError(f"the dataset index of {place} has no good row{of}: {has}")
    return arranged(place, table, split)


def arranged(place: str, table: pa.Table, split: str | None) -> Index:
    """The rows of an index, sorted by where their targets lie."""
    paths = pc.binary_join_element_wise("targets", table["target_shard"], table["target_part"], "/")
    parts = sorted(paths.unique().to_pylist())
    part = pc.index_in(paths, pa.array(parts)).to_numpy().astype(np.int32)
    row = table["target_row"].to_numpy().astype(np.int32)
    entry = np.lexsort((row, part))
    part, row = part[entry], row[entry]
    state = hashlib.sha256("\n".join([str(split), *parts]).encode())
    state.update(part.tobytes())
    state.update(row.tobytes())
    return Index(place, parts, part, row, entry, table.select(DESCRIBED), state.hexdigest()[:32])
