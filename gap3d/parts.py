"""Immutable Parquet parts: written once under a temporary name, then published by their digest."""

import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gap3d.schemas import StageSchema

TEMPORARY = ".tmp"


def fsync_path(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a small file at once: a reader sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


class PartWriter:
    """Streams rows into one part, a row group at a time.

    The file is named by the digest of its rows and appears whole, or not at all.
    """

    def __init__(self, folder: Path, schema: StageSchema, metadata: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.schema = schema
        self.columns = schema.columns.with_metadata({k.encode(): v.encode() for k, v in metadata.items()})
        self.temporary = folder / f".part.{uuid.uuid4().hex}{TEMPORARY}"
        self.rows: list[tuple[str, str]] = []  # (key, digest), in file order
        self.bytes = 0
        self._pending: list[Mapping[str, Any]] = []
        self._writer = pq.ParquetWriter(
            self.temporary,
            self.columns,
            compression="NONE",  # tokens and PNG do not compress; the rest is small
            use_dictionary=False,
            write_page_checksum=True,
            write_statistics=["key"],
            # One page per row of tokens: a reader of one row reads one row.
            data_page_size=1 << 20,
        )

    def add(self, key: str, digest: str, data: Mapping[str, Any]) -> int:
        """Append one row; returns its position in the part."""
        self._pending.append({"key": key, **data})
        self.rows.append((key, digest))
        self.bytes += sum(size_of(value) for value in data.values())
        if len(self._pending) >= self.schema.row_group_rows:
            self._write_group()
        return len(self.rows) - 1

    def _write_group(self) -> None:
        if self._pending:
            self._writer.write_batch(batch_of(self.columns, self._pending), row_group_size=len(self._pending))
            self._pending.clear()

    def close(self) -> str:
        """Publish the part; returns its file name."""
        self._write_group()
        self._writer.close()
        state = hashlib.sha256(self.columns.metadata.get(b"gap3d", b""))
        for key, digest in self.rows:
            state.update(f"{key}\0{digest}\n".encode())
        name = f"{state.hexdigest()[:32]}.parquet"
        fsync_path(self.temporary)
        self.temporary.replace(self.folder / name)
        fsync_path(self.folder)
        return name

    def discard(self) -> None:
        """Drop an unpublished part."""
        self._writer.close()
        self.temporary.unlink(missing_ok=True)


def size_of(value: Any) -> int:
    """Bytes of a cell, near enough to bound a part."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, bytes | bytearray | memoryview | str) else 16


def batch_of(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows as one Arrow batch; arrays of tokens go in without becoming Python objects."""
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_fixed_size_binary(field.type) and all(isinstance(v, np.ndarray) for v in values):
            data = np.concatenate([np.ascontiguousarray(v).reshape(-1).view(np.uint8) for v in values])
            if data.nbytes != field.type.byte_width * len(rows):
                raise ValueError(f"column {field.name}: {data.nbytes} bytes, expected {field.type.byte_width * len(rows)}")
            arrays.append(pa.FixedSizeBinaryArray.from_buffers(field.type, len(rows), [None, pa.py_buffer(data)]))
        elif pa.types.is_list(field.type) and all(isinstance(v, np.ndarray) for v in values):
            offsets = np.cumsum([0, *(len(v) for v in values)], dtype=np.int32)
            child = pa.array(np.concatenate(values), type=field.type.value_type)
            arrays.append(pa.ListArray.from_arrays(pa.array(offsets), child, type=field.type))
        else:
            arrays.append(pa.array(values, type=field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def read_rows(path: Path, positions: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a part by position, in the order asked for; only their row groups are read.

    Args:
        path: the part.
        positions: row positions in the file.
        columns: column names; None reads all.
    """
    with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        wanted = np.asarray(positions, dtype=np.int64)
        groups = np.unique(np.searchsorted(starts, wanted, side="right") - 1)
        table = file.read_row_groups(groups.tolist(), columns=list(columns) if columns else None)
        base = dict(zip(groups.tolist(), np.cumsum([0, *(sizes[g] for g in groups)])[:-1].tolist(), strict=True))
        held = np.searchsorted(starts, wanted, side="right") - 1
        return table.take(pa.array([base[g] + p - starts[g] for g, p in zip(held.tolist(), wanted.tolist(), strict=True)]))
