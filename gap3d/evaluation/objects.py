"""Which objects generation is measured on, and in which order (docs/method.md 8.3).

The released evaluation shuffles all objects of the dataset's table, those without captions too. A collection may have
admitted captioned ones alone; so its catalog keeps beside its rows which SHA-256s the table describes.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gap3d.parts import write_atomically
from gap3d.store import Store

DESCRIBED = "described.parquet"  # in a collection's folder: column sha256, of all that source.described_by describes


def describe(store: Store, hashes: Sequence[str]) -> None:
    """Keep which files the tables of ``source.described_by`` describe.

    Args:
        store: the collection.
        hashes: their SHA-256s, sorted; none where there are no tables.
    """
    path = store.folder / DESCRIBED
    if not hashes:
        path.unlink(missing_ok=True)
    elif described(store) != hashes:
        made = pa.BufferOutputStream()
        pq.write_table(pa.table({"sha256": hashes}), made)
        write_atomically(path, made.getvalue().to_pybytes())


def described(store: Store) -> list[str]:
    """SHA-256s of all files that the collection's tables describe, captioned or not, sorted; none without tables."""
    path: Path = store.folder / DESCRIBED
    return pq.read_table(path).column("sha256").to_pylist() if path.is_file() else []


def objects_of(store: Store, count: int | None, seed: int) -> list[str]:
    """object_ids of a collection in the order of the protocol: by sha256, shuffled, those with captions, the first.

    What is shuffled are the files that the collection's tables describe, one object each, and after them the other
    captioned objects; without tables, all objects of the catalog.

    Args:
        store: the collection; its catalog says what there is.
        count: how many at most; None takes all that have captions.
        seed: of the shuffle.
    """
    rows: dict[str, tuple[str, bool]] = {}
    for shard in store.shards:
        found = store.read(store.manifest("catalog", shard), ["sha256", "captions"])
        rows |= {key: (row["sha256"], bool(row["captions"])) for key, row in found.items()}
    # The released evaluation names an object's folder by its sha256 and sorts the names.
    keys = sorted(rows, key=lambda key: (rows[key][0], key))
    if hashes := described(store):
        told = set(hashes)
        captioned = [key for key in keys if rows[key][1]]
        first = {rows[key][0]: key for key in reversed(captioned)}
        rest = [key for key in captioned if rows[key][0] not in told]
        order = [first[each] for each in shuffled(hashes, seed) if each in first] + shuffled(rest, seed)
    else:
        order = [key for key in shuffled(keys, seed) if rows[key][1]]
    return order[:count]


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """The same in another order."""
    found = list(names)
    random.Random(seed).shuffle(found)
    return found
