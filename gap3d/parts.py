"""Immutable Parquet parts: written once under a temporary name, then published by their digest."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gap3d import fingerprints
from gap3d.schemas import StageSchema, schema_of
from gap3d.temporary import SUFFIX as TEMPORARY
from gap3d.temporary import sweep, temporary_file


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
    sweep(path.parent, f".{escape(path.name)}.*{TEMPORARY}")
    with temporary_file(path.parent, f".{path.name}") as temporary:
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
        self.rows: list[tuple[str, str, str]] = []  # key, digest, what the digest leaves out; in file order
        self.name = ""  # once it is published
        self.bytes = 0
        self._pending: list[Mapping[str, Any]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="part")
        self._writing: Future[None] | None = None
        self._writer = pq.ParquetWriter(
            self.temporary,
            self.columns,
            compression=schema.compression,  # none by default: PNG does not compress, tokens hardly; the rest is small
            use_dictionary=False,
            write_page_checksum=True,
            write_statistics=["key"],
            # One page per row group and column: tokens then lie in the file as they lie in memory, and a
            # reader maps them (gap3d.target_parts).
            data_page_size=1 << 30,
        )

    def add(self, key: str, digest: str, data: Mapping[str, Any]) -> int:
        """Append one row; returns its position in the part."""
        self._pending.append({"key": key, **data})
        exempt = {name: data[name] for name in self.schema.exempt}
        self.rows.append((key, digest, fingerprints.digest_of(exempt) if exempt else ""))
        self.bytes += sum(size_of(value) for value in data.values())
        if len(self._pending) >= self.schema.row_group_rows:
            self._write_group()
        return len(self.rows) - 1

    def _write_group(self) -> None:
        # In a thread of its own: the digests of the next rows are computed while this group is written.
        self._wait()
        if self._pending:
            table, self._pending = table_of(self.columns, self._pending), []
            self._writing = self._thread.submit(self._writer.write_table, table, row_group_size=table.num_rows)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def close(self) -> str:
        """Publish the part, once; returns its file name."""
        if self.name:
            return self.name
        self._write_group()
        self._wait()
        self._thread.shutdown()
        self._writer.close()
        state = hashlib.sha256(self.columns.metadata.get(b"gap3d", b""))
        for row in self.rows:
            state.update(("\0".join(row) + "\n").encode())
        name = f"{state.hexdigest()[:32]}.parquet"
        fsync_path(self.temporary)
        self.temporary.replace(self.folder / name)
        self.name = name
        fsync_path(self.folder)
        return name

    def discard(self) -> None:
        """Drop an unpublished part."""
        self._thread.shutdown()
        with contextlib.suppress(OSError, ValueError):  # the disk may be full: what is left goes with the file
            self._writer.close()
        self.temporary.unlink(missing_ok=True)


def written_with(path: Path, stage: str) -> tuple[StageSchema, dict[str, str]]:
    """Schema and metadata that ``PartWriter`` wrote a part of a stage with.

    Raises:
        ValueError: see ``schema_of``.
    """
    with pq.ParquetFile(path) as file:
        zstd = file.metadata.row_group(0).column(0).compression == "ZSTD"
        columns = file.schema_arrow
    metadata = {"gap3d": (columns.metadata or {}).get(b"gap3d", b"").decode()}
    return schema_of(stage, columns.remove_metadata(), "zstd" if zstd else "none"), metadata


def name_of(path: Path) -> str:
    """The name of a part that another program wrote: the digest of its bytes."""
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()[:32]}.parquet"


def publish(path: Path, folder: Path) -> str:
    """Move a finished file of the same file system in as a part; returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    name = name_of(path)
    fsync_path(path)
    path.replace(folder / name)
    fsync_path(folder)
    return name


def size_of(value: Any) -> int:
    """Bytes of a cell, near enough to bound a part."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list):
        return 8 * len(value)
    return len(value) if isinstance(value, bytes | bytearray | memoryview | str) else 16


def table_of(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as one Arrow table; arrays of tokens go in where they lie, without a copy."""
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_fixed_size_binary(field.type):
            columns.append(pa.chunked_array([cell_of(field, value) for value in values]))
        elif arrays := [value for value in values if isinstance(value, np.ndarray)]:
            offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
            child = pa.array(np.concatenate(arrays), type=field.type.value_type)
            columns.append(pa.ListArray.from_arrays(pa.array(offsets), child, type=field.type))
        else:
            columns.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def cell_of(field: pa.Field, value: Any) -> pa.Array:
    """One fixed-size binary value.

    Raises:
        ValueError: it has another size.
    """
    buffer = pa.py_buffer(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value)
    if buffer.size != field.type.byte_width:
        raise ValueError(f"column {field.name}: a value of {buffer.size} bytes, expected {field.type.byte_width}")
    return pa.FixedSizeBinaryArray.from_buffers(field.type, 1, [None, buffer])


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
        return table.take(
            pa.array([base[g] + p - starts[g] for g, p in zip(held.tolist(), wanted.tolist(), strict=True)])
        )
